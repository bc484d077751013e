"""What Lima is told of an instance: its ``lima.yaml``, written as JSON, which is YAML too.

On Linux a VM's mounts, memory and devices come from us (see `arguments`), so Lima is told of none: `plain`
keeps it from starting anything in the guest. On macOS (vz) there is no QEMU, so mounts are Lima's own there:
virtiofs, whose read-only mode the host enforces.

Source: Lima's `templates/default.yaml` and `pkg/limayaml` (v2.2).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from claude_vm.drivers.api import Mount

QEMU: Final = "qemu"
VZ: Final = "vz"

ANYWHERE: Final = "0.0.0.0"  # noqa: S104 - nothing listens there: what does is not forwarded


class LimaInstance(msgspec.Struct, frozen=True):
    """What is to be known of an instance. `disk_bytes` is its disk's size as it is, so Lima changes nothing.

    `image` is where the disk came from; Lima does not look at it again. `kernel` and `initrd` are given where
    there is no boot loader.
    """

    architecture: str
    cpus: int
    memory_mib: int
    disk_bytes: int
    image: str
    ssh_port: int
    uid: int
    user: str
    home: str
    kernel: str = ""
    initrd: str = ""
    kernel_arguments: str = ""


def document(instance: LimaInstance, *, vm_type: str = QEMU, mounts: Sequence[Mount] = ()) -> bytes:
    """Return ``lima.yaml``.

    Raises:
        ValueError: `mounts` are given for QEMU, where they are not Lima's.
    """
    if mounts and vm_type != VZ:
        raise ValueError("under QEMU the mounts are not Lima's")
    said: dict[str, Any] = {
        "vmType": vm_type,
        "os": "Linux",
        "arch": instance.architecture,
        "images": [_image(instance)],
        "cpus": instance.cpus,
        "memory": f"{instance.memory_mib}MiB",
        "disk": str(instance.disk_bytes),
        "mounts": [_mount(mount) for mount in mounts],
        # Nothing of Lima's in the guest, and none of the guest's ports on the host.
        "plain": vm_type == QEMU,
        "portForwards": [{"ignore": True, "proto": "any", "guestIP": ANYWHERE, "guestPortRange": [1, 65535]}],
        "containerd": {"system": False, "user": False},
        "hostResolver": {"enabled": False},
        "propagateProxyEnv": False,
        "video": {"display": "none"},
        "ssh": {"localPort": instance.ssh_port, "loadDotSSHPubKeys": False, "forwardAgent": False},
        "user": {
            "name": instance.user,
            "uid": instance.uid,
            "home": instance.home,
            "shell": "/bin/bash",
            "comment": "",
        },
    }
    if vm_type == QEMU:
        said["firmware"] = {"legacyBIOS": instance.architecture == "x86_64"}
    else:
        said["mountType"] = "virtiofs"
    return msgspec.json.format(msgspec.json.encode(said)) + b"\n"


def _image(instance: LimaInstance) -> Mapping[str, Any]:
    found: dict[str, Any] = {"location": instance.image, "arch": instance.architecture}
    if instance.kernel:
        kernel = {"location": instance.kernel, "arch": instance.architecture}
        found["kernel"] = {**kernel, "cmdline": instance.kernel_arguments}
    if instance.initrd:
        found["initrd"] = {"location": instance.initrd, "arch": instance.architecture}
    return found


def _mount(mount: Mount) -> Mapping[str, Any]:
    return {"location": mount.host, "mountPoint": mount.guest, "writable": mount.writable}
