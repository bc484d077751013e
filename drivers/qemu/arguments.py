"""The QEMU driver's argument list: the smallest list of devices that the guest needs.

Source: QEMU's manual, "Invocation".
"""

from collections.abc import Sequence

from claude_vm.drivers.vm.arguments import (
    EXTRA_KERNEL_ARGUMENTS,
    QemuBuild,
    VmPlan,
    generation_id,
    helper,
    machine,
    memory,
    monitor,
    mounts,
    quote,
    sandbox,
)


def arguments(host: QemuBuild, guest: VmPlan) -> list[str]:
    """Return the whole argument list of a VM, with the program's name first."""
    return [
        host.binary,
        *("-name", f"guest={quote(guest.name)}"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *sandbox(host, guest),
        *memory(guest),
        *machine(host, guest),
        *(
            "-kernel",
            guest.kernel,
            "-initrd",
            guest.initrd,
            "-append",
            f"{guest.kernel_arguments} {EXTRA_KERNEL_ARGUMENTS}",
        ),
        *_devices(host, guest),
        *mounts(guest),
        *monitor(guest),
        *("-chardev", f"file,id=serial,path={quote(guest.serial)}", "-serial", "chardev:serial"),
        *(("-incoming", "defer") if guest.incoming else ()),
    ]


def _devices(host: QemuBuild, guest: VmPlan) -> Sequence[str]:
    """Disk, network, random numbers and the helper's serial port."""
    disk = f"driver=qcow2,node-name=disk,discard=unmap,file.driver=file,file.filename={quote(guest.disk)}"
    return (
        # A flush would wait for the host's disk for the sake of data that never survive the session.
        *("-blockdev", f"{disk},cache.direct=off,cache.no-flush=on,file.cache.no-flush=on"),
        # A full disk is an error in the guest, not a guest that stands still.
        *("-device", "virtio-blk-pci,id=disk,drive=disk,werror=report,rerror=report"),
        *("-netdev", "user,id=net,ipv6=off,hostfwd=tcp:127.0.0.1:0-:22"),
        *("-device", "virtio-net-pci,netdev=net,romfile="),
        *("-object", "rng-random,id=random,filename=/dev/urandom", "-device", "virtio-rng-pci,rng=random"),
        *generation_id(host),
        *helper(guest),
    )
