"""Which VM a session in this place, with these flags and settings, would get.

One function, because a VM that is kept ready is worth something only if a session asks for exactly that one.
"""

from pathlib import Path

import msgspec

from claude_vm.context.mounts import plan_mounts
from claude_vm.context.project import check_apart
from claude_vm.drivers.api import TemplateRecord
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.daemon.clients.workspace import check_text
from claude_vm.supervisor.daemon.pool.policy import MIB_PER_GB
from claude_vm.supervisor.daemon.templates.current import Target


async def planned_mounts(target: Target, guest_home: str) -> tuple[MountKey, ...]:
    """Return what is to be mounted, in a guest whose user's home is `guest_home`.

    Raises:
        MountError: A mount is not possible.
        LinkError: It leads out of where guests can write.
    """
    caller = target.workspace.caller
    mounts = plan_mounts(
        target.project,
        (*target.settings.mounts, *caller.flags.mounts),
        guest_home=guest_home,
        home=caller.home,
        max_mounts=(await target.driver.capabilities()).max_mounts,
        guard=target.workspace.guard(),
    )
    return tuple(MountKey(**msgspec.structs.asdict(mount)) for mount in mounts)


async def session_key(target: Target, template: TemplateRecord) -> PoolKey:
    """Return the key of the VM: driver, generation, sizes and mounts.

    Raises:
        MountError: A mount is not possible.
        LinkError: It leads out of where guests can write.
        ProjectError: A writable mount would give away claude-vm's own data.
        CommandError: The path of a mount is no text.
    """
    mounts = await planned_mounts(target, template.home)
    for mount in mounts:
        check_text(mount.host, "mount")
    check_apart([Path(mount.host) for mount in mounts if mount.writable], target.workspace.supervisor.folders)
    sizes = target.settings.vm

    def size(name: str, value: int, own: int) -> int:
        """A size that some layer sets counts; else the session's VM is as large as its template."""
        return own if target.settings.origin(f"vm.{name}") == "default" else value

    return PoolKey(
        driver=target.driver.name,
        template=template.name,
        generation=template.generation,
        cpus=size("cpus", sizes.cpus, template.cpus),
        memory_mib=size("memory", sizes.memory * MIB_PER_GB, template.memory_mib),
        disk_gib=size("disk", sizes.disk, template.disk_gib),
        mounts=mounts,
    )
