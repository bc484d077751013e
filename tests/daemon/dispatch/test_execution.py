"""What a driver is told of a pool's key."""

from claude_vm.drivers.api import Mount
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.daemon.dispatch.execution import _spec


def test_a_driver_is_told_which_directory_is_meant_by_a_mount():
    mount = MountKey("/p", "/q", False, device=5, inode=7)
    key = PoolKey("sim", "t", "g1", cpus=2, memory_mib=1024, disk_gib=20, mounts=(mount,))

    assert _spec("i-0123456789", key).mounts == (Mount("/p", "/q", False, device=5, inode=7),)
