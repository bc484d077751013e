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
    ssh_port: int
    uid: int
    user: str
    home: str
    image: str = ""
    kernel: str = ""
    initrd: str = ""
    kernel_arguments: str = ""


def settings(instance: LimaInstance) -> dict[str, Any]:
    """Return what Lima is told of every instance of QEMU's, but for its images.

    Nothing of Lima's is in the guest then, and nobody's keys but its own log in.
    """
    return {
        "vmType": QEMU,
        "arch": instance.architecture,
        "cpus": instance.cpus,
        "memory": f"{instance.memory_mib}MiB",
        "disk": str(instance.disk_bytes),
        "mounts": [],
        "plain": True,
        "containerd": {"system": False, "user": False},
        "hostResolver": {"enabled": False},
        "firmware": {"legacyBIOS": instance.architecture == "x86_64"},
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


def written(said: Mapping[str, Any]) -> bytes:
    """Return settings as the text of a ``lima.yaml``."""
    return msgspec.json.format(msgspec.json.encode(said)) + b"\n"


def document(instance: LimaInstance, *, vm_type: str = QEMU, mounts: Sequence[Mount] = ()) -> bytes:
    """Return ``lima.yaml``.

    Raises:
        ValueError: `mounts` are given for QEMU, where they are not Lima's.
    """
    if mounts and vm_type != VZ:
        raise ValueError("under QEMU the mounts are not Lima's")
    said = settings(instance) | {
        "os": "Linux",
        "images": [_image(instance)],
        # None of the guest's ports on the host.
        "portForwards": [{"ignore": True, "proto": "any", "guestIP": ANYWHERE, "guestPortRange": [1, 65535]}],
        "propagateProxyEnv": False,
    }
    if vm_type == VZ:
        del said["firmware"]
        told_mounts = [_mount(mount) for mount in mounts]
        said |= {"vmType": VZ, "plain": False, "mountType": "virtiofs", "mounts": told_mounts}
    return written(said)


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
