"""What tells the kinds of VMs of a pool apart, in a few words. Pure.

Two kinds of one project differ in mounts, sizes, or the template's generation. Each is called by its project
and the mounts beside it, and by whatever else differs among those that would be called the same.
"""

from collections.abc import Callable, Mapping, Sequence

from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.daemon.pool.policy import MIB_PER_GB


def short_names(keys: Sequence[PoolKey], projects: Mapping[tuple[str, str], str]) -> list[str]:
    """Return what each kind is called, as a row of a table that has sizes and generations in other columns.

    `projects` are the paths of the templates' projects, by driver and name.
    """
    return _distinct([_name(key, projects) for key in keys], keys, (_inodes,))


def full_names(keys: Sequence[PoolKey], projects: Mapping[tuple[str, str], str]) -> list[str]:
    """Return what each kind is called where nothing else stands beside it."""
    return _distinct(short_names(keys, projects), keys, (_sizes, _generation))


def _distinct(
    begun: list[str], keys: Sequence[PoolKey], tell: Sequence[Callable[[PoolKey], str]]
) -> list[str]:
    """Return texts that go on with what differs among those that are the same so far."""
    for of in tell:
        told: dict[str, set[str]] = {}
        for text, key in zip(begun, keys, strict=True):
            told.setdefault(text, set()).add(of(key))
        begun = [
            f"{text}{of(key)}" if len(told[text]) > 1 else text for text, key in zip(begun, keys, strict=True)
        ]
    return begun


def _name(key: PoolKey, projects: Mapping[tuple[str, str], str]) -> str:
    project = projects.get((key.driver, key.template))
    mounts = [_mount(mount) for mount in key.mounts]
    beside = "".join(f" +{mount}" for mount in mounts if mount != project)
    return f"{project or f'{key.template} (gone)'}{beside}"


def _mount(mount: MountKey) -> str:
    """Return a mount as a user writes it, as short as it may be."""
    guest = "" if mount.guest == mount.host else f":{mount.guest}"
    return f"{mount.host}{guest}{'' if mount.writable else ':ro'}"


def _inodes(key: PoolKey) -> str:
    """Tell directories of one name apart: one that was removed and made anew is another one."""
    return f" (inodes {', '.join(str(mount.inode) for mount in key.mounts)})"


def _sizes(key: PoolKey) -> str:
    return f" ({key.cpus} CPUs, {key.memory_mib / MIB_PER_GB:.1f} GB, {key.disk_gib} GB disk)"


def _generation(key: PoolKey) -> str:
    return f" ({key.driver} {key.generation})"
