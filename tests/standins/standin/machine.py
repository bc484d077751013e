"""The command line of an instance's QEMU.

Words from ``QEMU_SYSTEM_X86_64`` come first; of our own, those that they already decide are left out, with a
warning.
"""

import os
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

from . import cidata, disks
from .errors import LimaError
from .instance import Instance
from .log import LOG, quoted
from .sizes import parse_size
from .sshkeys import ADDRESS

_FIRMWARE: Final = (
    Path("/usr/local/share/qemu/edk2-x86_64-code.fd"),
    Path("/usr/share/qemu/edk2-x86_64-code.fd"),
    Path("/usr/share/edk2/x64/OVMF_CODE.4m.fd"),
    Path("/usr/share/OVMF/OVMF_CODE.fd"),
    Path("/usr/share/OVMF/OVMF_CODE_4M.fd"),
)


def command(found: Instance, port: int) -> list[str]:
    """Return the program with its arguments; sockets and logs of an earlier run are removed.

    Raises:
        LimaError: QEMU isn't there, or can't do what the instance needs.
    """
    settings, folder = found.settings(), found.folder
    program, given = _program(settings["arch"])
    accelerator = _accelerator()
    _check_accelerator(program, accelerator)
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
    LOG.debug(f"QEMU version {version.removeprefix('QEMU emulator version ').split(' ')[0]} detected")
    line = _Line(given)
    line.once("-m", str(parse_size(settings["memory"]) >> 20))
    line.once("-cpu", "host" if accelerator == "kvm" else "max")
    if accelerator == "tcg":
        line.once("-machine", "q35,vmport=off")
        line.once("-accel", "tcg,thread=multi,tb-size=512")
        line.add("-global", "ICH9-LPC.disable_s3=1", "-global", "ICH9-LPC.disable_s4=1")
    else:
        line.once("-machine", f"q35,accel={accelerator}")
    cpus = settings["cpus"]
    line.once("-smp", f"{cpus},sockets=1,cores={cpus},threads=1")
    if not settings["firmware"]["legacyBIOS"]:
        line.add("-drive", f"if=pflash,format=raw,readonly=on,file={_firmware()}")
    line.add("-device", "qemu-xhci,id=usb-bus")
    line.add("-drive", f"file={folder / 'disk'},if=none,discard=on,id=boot-disk")
    line.add("-device", "virtio-blk-pci,drive=boot-disk,bootindex=1")
    line.once("-boot", "order=c,splash-time=0,menu=on")
    for path in disks.attach(found):
        line.add("-drive", f"file={path},if=virtio,discard=on")
    line.add("-drive", f"id=cdrom0,if=none,format=raw,readonly=on,file={folder / 'cidata.iso'}")
    line.add("-device", "virtio-scsi,id=scsi0", "-device", "scsi-cd,bus=scsi0.0,drive=cdrom0")
    _add_kernel(line, folder)
    forward = f"hostfwd=tcp:{ADDRESS}:{port}-:22"
    line.add("-netdev", f"user,id=net0,net={cidata.NETWORK},dhcpstart={cidata.GUEST_ADDRESS},{forward}")
    line.add("-device", f"virtio-net-pci,netdev=net0,mac={cidata.mac_address(folder)}")
    line.add("-device", "virtio-rng-pci")
    if settings["audio"]["device"] in ("", "none"):
        line.add("-audiodev", "none,id=snd0")
    _add_display(line, settings)
    line.add("-parallel", "none")
    line.add(*_console(folder, "serial"), "-serial", "chardev:char-serial")
    line.add(*_console(folder, "serialv"))
    line.add("-device", "virtio-serial-pci,id=virtio-serial0,max_ports=1")
    line.add("-device", "virtconsole,chardev=char-serial-virtio,id=console0")
    _add_mounts(line, settings)
    monitor = _fresh(folder / "qmp.sock")
    line.add("-chardev", f"socket,id=char-qmp,path={monitor},server=on,wait=off", "-qmp", "chardev:char-qmp")
    line.add("-name", f"lima-{found.name}", "-pidfile", str(folder / "qemu.pid"))
    return [program, *line.words]


class _Line:
    """Arguments, with those of the environment first."""

    def __init__(self, given: list[str]) -> None:
        self.words = given

    def add(self, *words: str) -> None:
        self.words += words

    def once(self, key: str, value: str) -> None:
        """Add an option, unless it is there: then ours gives way."""
        if key not in self.words:
            self.words += [key, value]
            return
        place = self.words.index(key) + 1
        other = self.words[place] if place < len(self.words) else ""
        other = "" if other.startswith("-") else other
        LOG.warning(
            f"Not adding QEMU argument {quoted(key)} {quoted(value)}, "
            f"as it conflicts with {quoted(key)} {quoted(other)}"
        )


def _program(architecture: str) -> tuple[str, list[str]]:
    name, variable = f"qemu-system-{architecture}", f"QEMU_SYSTEM_{architecture.upper()}"
    given: list[str] = []
    if value := os.environ.get(variable):
        try:
            name, *given = shlex.split(value)
        except ValueError:
            raise LimaError(
                f"failed to parse {variable} value {quoted(value)}: invalid command line string"
            ) from None
        if given:
            words = "[" + " ".join(given) + "]"
            LOG.warning(f"Specifying args ({words}) via ${variable} is supported only for debugging!")
    program = shutil.which(name)
    if program is None:
        raise LimaError(f'exec: "{name}": executable file not found in $PATH')
    return program, given


def _accelerator() -> str:
    """Return the accelerator as Lima chooses it: by the device's existence alone."""
    try:
        Path("/dev/kvm").stat()
    except OSError as error:
        reason = f"stat /dev/kvm: {(error.strerror or '').lower()}"
        LOG.warning("/dev/kvm is not available. Disabling KVM. Expect very poor performance.", error=reason)
        return "tcg"
    return "kvm"


def _check_accelerator(program: str, accelerator: str) -> None:
    words = [program, "-M", "none", "-accel", "help"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise LimaError(
            f"failed to run [{' '.join(words)}]: stdout={quoted(done.stdout)}, stderr={quoted(done.stderr)}"
        )
    if accelerator not in (done.stdout or done.stderr):
        raise LimaError(f"accelerator {quoted(accelerator)} is not supported by {program}")


def _firmware() -> Path:
    for path in _FIRMWARE:
        if path.exists():
            LOG.info(f"Using system firmware ({quoted(path)})")
            return path
    raise LimaError(
        "could not find firmware for `x86_64` (hint: try setting `firmware.legacyBIOS` to `true`)"
    )


def _add_kernel(line: _Line, folder: Path) -> None:
    if (folder / "kernel").exists():
        line.once("-kernel", str(folder / "kernel"))
    if (folder / "kernel.cmdline").exists():
        line.once("-append", (folder / "kernel.cmdline").read_text(encoding="utf-8"))
    if (folder / "initrd").exists():
        line.once("-initrd", str(folder / "initrd"))


def _add_display(line: _Line, settings: dict[str, Any]) -> None:
    display = settings["video"]["display"]
    line.once("-display", display)
    if display == "none":
        line.add("-vga", "none")
    else:
        line.add("-device", "virtio-vga", "-device", "virtio-keyboard-pci", "-device", "virtio-mouse-pci")


def _add_mounts(line: _Line, settings: dict[str, Any]) -> None:
    for mount in settings["mounts"]:
        location, point = mount["location"], mount["mountPoint"]
        Path(location).mkdir(parents=True, exist_ok=True)
        import hashlib

        tag = "lima-" + hashlib.sha256(f"{location}:{point}".encode()).hexdigest()[:16]
        options = f"local,mount_tag={tag},path={location},security_model={mount['9p']['securityModel']}"
        line.add("-virtfs", options if mount["writable"] else f"{options},readonly=on")


def _console(folder: Path, name: str) -> list[str]:
    """Return a console whose output goes to a log, also while nobody is connected."""
    kind = "char-serial-virtio" if name == "serialv" else "char-serial"
    socket, log = _fresh(folder / f"{name}.sock"), _fresh(folder / f"{name}.log")
    return ["-chardev", f"socket,id={kind},path={socket},server=on,wait=off,logfile={log}"]


def _fresh(path: Path) -> Path:
    path.unlink(missing_ok=True)
    return path
