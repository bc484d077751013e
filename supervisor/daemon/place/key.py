"""Which VM a session in this place, with these flags and settings, would get.

One function, because a VM that is kept ready is worth something only if a session asks for exactly that one.
"""

from collections.abc import Iterable
from pathlib import Path

from claude_vm.context.config.layers import Settings
from claude_vm.context.mounts import plan_mounts
from claude_vm.context.project import Project, check_apart
from claude_vm.drivers.api import Driver, Mount, TemplateRecord
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.daemon.clients.workspace import Workspace, check_text
from claude_vm.supervisor.daemon.pool.policy import MIB_PER_GB


async def session_mounts(
    workspace: Workspace, driver: Driver, settings: Settings, project: Project, guest_home: str
) -> tuple[Mount, ...]:
    """Return what a session here would have mounted, in a guest whose user's home is `guest_home`.

    Raises:
        MountError: A mount is not possible.
        LinkError: It leads out of where guests can write.
        ProjectError: A writable mount would give away claude-vm's own data.
        CommandError: The path of a mount is no text.
    """
    capabilities = await driver.capabilities()
    mounts = plan_mounts(
        project,
        (*settings.mount_specs, *workspace.caller.flags.mounts),
        guest_home=guest_home,
        home=workspace.caller.home,
        max_mounts=capabilities.max_mounts,
        guard=workspace.guard(),
    )
    for mount in mounts:
        check_text(mount.host, "mount")
    check_apart([Path(mount.host) for mount in mounts if mount.writable], workspace.supervisor.folders)
    return mounts


def session_key(
    driver: Driver, settings: Settings, template: TemplateRecord, mounts: Iterable[Mount]
) -> PoolKey:
    """Return the key of the VM: driver, generation, sizes and mounts."""
    return PoolKey(
        driver=driver.name,
        template=template.name,
        generation=template.generation,
        cpus=_size(settings, "vm.cpus", settings.vm.cpus, template.cpus),
        memory_mib=_size(settings, "vm.memory", settings.vm.memory * MIB_PER_GB, template.memory_mib),
        disk_gib=_size(settings, "vm.disk", settings.vm.disk, template.disk_gib),
        mounts=tuple(_mount_key(mount) for mount in mounts),
    )


def _mount_key(mount: Mount) -> MountKey:
    return MountKey(
        host=mount.host,
        guest=mount.guest,
        writable=mount.writable,
        device=mount.device,
        inode=mount.inode,
    )


def _size(settings: Settings, key: str, value: int, template: int) -> int:
    """A size that some layer sets counts; else the session's VM is as large as its template."""
    return template if settings.origin(key) == "default" else value
