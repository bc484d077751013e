"""What an instance's configuration says where its own file is silent.

`main` is the instance's file, `lower` the user's ``default.yaml``, `upper` the user's ``override.yaml``. A
value is taken from the first of `upper`, `main`, `lower` that has it. Most lists are joined in that order, so
that the strongest rule comes first; mounts and networks the other way round, where a later entry changes an
earlier one.
"""

import os
import platform
import pwd
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

from . import names
from .sizes import format_size

Document = dict[str, Any]

_GIB: Final = 1 << 30
_ARCHITECTURES: Final = {"amd64": "x86_64", "arm64": "aarch64"}


def _memory() -> str:
    half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    return format_size(min(half, 4 * _GIB))


def _timezone() -> str:
    try:
        return Path("/etc/timezone").read_text(encoding="utf-8").strip()
    except OSError:
        pass
    zone = os.path.realpath("/etc/localtime")
    return zone.partition("/zoneinfo/")[2]


def machine() -> str:
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def _account() -> pwd.struct_passwd:
    return pwd.getpwuid(os.getuid())


# Paths in the document, with what is built in.
_SCALARS: Final[tuple[tuple[str, Callable[[], object]], ...]] = (
    ("minimumLimaVersion", lambda: None),
    ("vmType", lambda: "qemu"),
    ("os", lambda: "Linux"),
    ("arch", machine),
    ("cpus", lambda: min(4, os.cpu_count() or 1)),
    ("memory", _memory),
    ("disk", lambda: "100GiB"),
    ("mountType", lambda: None),
    ("mountInotify", lambda: False),
    ("ssh.localPort", lambda: 0),
    ("ssh.loadDotSSHPubKeys", lambda: False),
    ("ssh.forwardAgent", lambda: False),
    ("ssh.forwardX11", lambda: False),
    ("ssh.forwardX11Trusted", lambda: False),
    ("ssh.overVsock", lambda: None),
    ("firmware.legacyBIOS", lambda: False),
    ("audio.device", lambda: ""),
    ("audio.interface", lambda: ""),
    ("video.display", lambda: "none"),
    ("video.vnc.display", lambda: None),
    ("upgradePackages", lambda: False),
    ("containerd.system", lambda: False),
    ("containerd.user", lambda: True),
    ("guestInstallPrefix", lambda: "/usr/local"),
    ("message", lambda: None),
    ("hostResolver.enabled", lambda: True),
    ("hostResolver.ipv6", lambda: False),
    ("propagateProxyEnv", lambda: True),
    ("caCerts.removeDefaults", lambda: False),
    ("plain", lambda: False),
    ("timezone", _timezone),
    ("nestedVirtualization", lambda: False),
    ("user.name", lambda: _account().pw_name),
    ("user.comment", lambda: _account().pw_gecos.split(",")[0]),
    ("user.home", lambda: "/home/{{.User}}.guest"),
    ("user.shell", lambda: "/bin/bash"),
    ("user.uid", os.getuid),
    ("user.passwordlessSudo", lambda: True),
    ("tpm", lambda: False),
)

# These take a null or an empty value for "not said".
_EMPTY_IS_UNSET: Final = frozenset({"os", "arch", "cpus", "memory", "disk", "video.display"})

# The order of the real one's output, which is also that of its documentation.
_ORDER: Final = (
    *("minimumLimaVersion", "vmType", "vmOpts", "os", "arch", "images", "cpus", "memory", "disk"),
    *("additionalDisks", "mounts", "mountTypesUnsupported", "mountType", "mountInotify", "ssh", "firmware"),
    *("audio", "video", "provision", "upgradePackages", "containerd", "guestInstallPrefix", "probes"),
    *("portForwards", "copyToHost", "message", "networks", "env", "param", "dns", "hostResolver"),
    *("propagateProxyEnv", "caCerts", "plain", "timezone", "nestedVirtualization", "user", "tpm", "osOpts"),
)

_JOINED: Final = (
    "images",
    "additionalDisks",
    "mountTypesUnsupported",
    "provision",
    "probes",
    "portForwards",
    "copyToHost",
)
_MERGED: Final = ("env", "param", "vmOpts", "osOpts")


def fill(main: Document, lower: Document, upper: Document, folder: Path) -> Document:
    """Return the configuration of the instance in a folder."""
    layers = (upper, main, lower)
    filled: Document = dict.fromkeys(_ORDER)
    for path, built_in in _SCALARS:
        _put(filled, path, _scalar(path, layers, built_in))
    for name in ("os", "arch"):
        if filled[name] == "default":
            filled[name] = "Linux" if name == "os" else machine()
    for name in _JOINED:
        filled[name] = [_copy(entry) for layer in layers for entry in layer.get(name) or ()]
    for name in _MERGED:
        filled[name] = _union(layers, name)
    filled["hostResolver"]["hosts"] = _union([layer.get("hostResolver") or {} for layer in layers], "hosts")
    filled["dns"] = upper.get("dns") or main.get("dns") or lower.get("dns") or []
    filled["networks"] = [_copy(n) for layer in reversed(layers) for n in layer.get("networks") or ()]
    template = _guest_template(filled, folder)
    filled["user"]["home"] = template(filled["user"]["home"])
    filled["additionalDisks"] = [
        {"name": disk} if isinstance(disk, str) else disk for disk in filled["additionalDisks"]
    ]
    _fill_images(filled)
    _fill_scripts(filled, template)
    filled["portForwards"] = [_forward(rule, folder) for rule in filled["portForwards"]]
    filled["mounts"] = _mounts(layers, template)
    if filled["plain"]:
        filled["portForwards"] = [rule for rule in filled["portForwards"] if rule.get("static")]
        filled["mounts"] = []
        filled["containerd"] |= {"system": False, "user": False}
        filled["timezone"] = ""
    return filled


def get(document: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, or None."""
    value: Any = document
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return None
        value = value[key]
    return value


def _scalar(path: str, layers: tuple[Document, ...], built_in: Callable[[], object]) -> object:
    for layer in layers:
        value = get(layer, path)
        if value is not None and not (path in _EMPTY_IS_UNSET and not value):
            return value
    return built_in()


def _put(document: Document, path: str, value: object) -> None:
    *parents, last = path.split(".")
    for key in parents:
        if document.get(key) is None:
            document[key] = {}
        document = document[key]
    document[last] = value


def _union(layers: Any, name: str) -> Document:
    found: Document = {}
    for layer in reversed(list(layers)):
        found |= layer.get(name) or {}
    return found


def _copy(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def _guest_template(document: Document, folder: Path) -> Callable[[str], str]:
    """Return what puts an instance's facts into a text with ``{{.Name}}`` and the like."""
    user = document["user"]
    facts = {
        "Name": folder.name,
        "Hostname": names.hostname(folder.name),
        "UID": str(user["uid"]),
        "User": str(user["name"]),
        "Param": document["param"],
    }

    def expand(text: str) -> str:
        facts["Home"] = user["home"]

        def value(found: re.Match[str]) -> str:
            if found[2] is not None:
                return str(facts["Param"].get(found[2], "<no value>")) if found[1] == "Param" else found[0]
            return str(facts.get(found[1], found[0]))

        return re.sub(r"\{\{\s*\.(\w+)(?:\.(\w+))?\s*\}\}", value, text)

    return expand


def _fill_images(document: Document) -> None:
    for image in document["images"]:
        image["arch"] = image.get("arch") or document["arch"]
        for part in ("kernel", "initrd"):
            if image.get(part):
                image[part]["arch"] = image[part].get("arch") or image["arch"]


def _fill_scripts(document: Document, template: Callable[[str], str]) -> None:
    for step in document["provision"]:
        step["mode"] = step.get("mode") or "system"
        step["script"] = template(step.get("script") or "")
    for number, probe in enumerate(document["probes"], 1):
        probe["mode"] = probe.get("mode") or "readiness"
        probe["description"] = probe.get("description") or f"user probe {number}/{len(document['probes'])}"
        probe["script"] = template(probe.get("script") or "")


def _forward(rule: Document, folder: Path) -> Document:
    """Return a rule of port forwarding with its defaults."""
    zero = bool(rule.get("guestIPMustBeZero"))
    guest_ip = rule.get("guestIP") or ("0.0.0.0" if zero else "127.0.0.1")
    guest_port = rule.get("guestPort") or 0
    guest = rule.get("guestPortRange") or ([guest_port, guest_port] if guest_port else [1, 65535])
    host_port = rule.get("hostPort") or 0
    host = rule.get("hostPortRange") or ([host_port, host_port] if host_port else guest)
    socket = rule.get("hostSocket")
    if socket and not socket.startswith("/"):
        socket = str(folder / "sock" / socket)
    filled = {
        **rule,
        "guestIPMustBeZero": rule.get("guestIPMustBeZero", guest_ip == "0.0.0.0"),
        "guestIP": guest_ip,
        "guestPortRange": guest,
        "hostIP": rule.get("hostIP") or "127.0.0.1",
        "hostPortRange": [0, 0] if socket else host,
        "proto": rule.get("proto") or "any",
    }
    return filled | ({"hostSocket": socket} if socket else {})


def _mounts(layers: tuple[Document, ...], template: Callable[[str], str]) -> list[Document]:
    """Return all mounts: one for each place in the guest, whose later entries change the first."""
    found: dict[str, Document] = {}
    for layer in reversed(layers):
        for mount in layer.get("mounts") or ():
            location = os.path.expanduser(str(mount.get("location") or ""))  # noqa: PTH111  # "" stays ""
            point = template(str(mount.get("mountPoint") or location))
            known = found.setdefault(point, {"location": location, "mountPoint": point})
            known.update({k: _copy(v) for k, v in mount.items() if k not in ("location", "mountPoint")})
    for mount in found.values():
        mount["writable"] = bool(mount.get("writable"))
        mount["sshfs"] = {"cache": True, "followSymlinks": False, "sftpDriver": ""} | (
            mount.get("sshfs") or {}
        )
        ninep = {"securityModel": "none", "protocolVersion": "9p2000.L", "msize": "128KiB"}
        ninep["cache"] = "mmap" if mount["writable"] else "fscache"
        mount["9p"] = ninep | (mount.get("9p") or {})
    return list(found.values())
