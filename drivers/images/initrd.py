"""Make the guest's initrd: an uncompressed cpio archive of busybox, `init` and the modules that it loads.

Runs inside the new system, with its Python and its kernel. Not compressed on purpose: unpacking costs more
under software emulation than reading. Usage: ``initrd.py OUTPUT``.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst for the archive.
"""

import gzip
import lzma
import os
import stat
import sys
from pathlib import Path

# What the guest's hardware and mounts need. Names that the kernel lacks, or has built in, are left out.
MODULES = (
    "virtio_pci",
    "virtio_mmio",
    "virtio_blk",
    "crc32c_generic",
    "ext4",
    "virtio_net",
    "virtio_console",
    "virtio_rng",
    "vmgenid",
    "9pnet_virtio",
    "9p",
)


def load_order(tree: Path) -> list[str]:
    """Return the modules' paths below `tree`, each after those that it needs."""
    needs = {}
    for line in (tree / "modules.dep").read_text(encoding="utf-8").splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    by_name = {Path(path).name.split(".")[0].replace("-", "_"): path for path in needs}
    order: list[str] = []

    def add(path: str) -> None:
        for other in reversed(needs[path]):
            add(other)
        if path not in order:
            order.append(path)

    for name in MODULES:
        if name in by_name:
            add(by_name[name])
    return order


def unpacked(path: Path) -> bytes:
    """Return a module's plain bytes."""
    data = path.read_bytes()
    match path.suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".ko":
            return data
        case other:
            raise SystemExit(f"{path}: modules compressed as {other} are not supported")


def entry(number: int, name: str, mode: int, data: bytes = b"") -> bytes:
    """Return one member of a "newc" archive."""
    words = (number, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % word for word in words) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)


def main() -> None:
    """Write the archive to the file that the command line names."""
    here = Path(__file__).parent
    (tree,) = (path.parent for path in Path("/lib/modules").glob("*/modules.dep"))
    order = load_order(tree)
    script, program = stat.S_IFREG | 0o644, stat.S_IFREG | 0o755
    members = [(name, stat.S_IFDIR | 0o755, b"") for name in ("bin", "modules")]
    members.append(("bin/busybox", program, Path("/usr/bin/busybox").read_bytes()))
    members.append(("init", program, (here / "init").read_bytes()))
    names = [Path(path).name.partition(".")[0] + ".ko" for path in order]
    members += [
        (f"modules/{name}", script, unpacked(tree / path)) for name, path in zip(names, order, strict=True)
    ]
    members.append(("modules/order", script, "".join(f"{name}\n" for name in names).encode()))
    members.append(("TRAILER!!!", 0, b""))
    archive = b"".join(entry(number, *member) for number, member in enumerate(members, 1))
    Path(sys.argv[1]).write_bytes(archive + bytes(-len(archive) % 512))
    os.sync()


if __name__ == "__main__":
    main()
