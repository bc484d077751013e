"""What makes two instances interchangeable."""

import msgspec


class MountKey(msgspec.Struct, frozen=True, order=True):
    """One mount of an instance, as a value. Both paths are absolute.

    `device` and `inode` are those of the host's directory: one that was removed and made anew is another one,
    while a VM that has it open still shows the old one.
    """

    host: str
    guest: str
    writable: bool
    device: int = 0
    inode: int = 0

    @property
    def shown(self) -> str:
        """The mount as people write it."""
        return f"{self.host}:{self.guest}:{'rw' if self.writable else 'ro'}"


class PoolKey(msgspec.Struct, frozen=True, cache_hash=True):
    """All that a warm instance must have in common with a claim: equal keys, equal machines.

    Sizes: `memory_mib` in MiB, `disk_gib` in GiB. The mount list counts whole and in order, because a VM's
    mounts are fixed when its process starts.
    """

    driver: str
    template: str
    generation: str
    cpus: int
    memory_mib: int
    disk_gib: int
    mounts: tuple[MountKey, ...] = ()

    @property
    def kind(self) -> "PoolKey":
        """The same without mounts: VMs of one kind take about the same memory."""
        return msgspec.structs.replace(self, mounts=()) if self.mounts else self

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Processors, MiB of memory, GiB of disk."""
        return self.cpus, self.memory_mib, self.disk_gib
