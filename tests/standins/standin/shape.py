"""What kind of value each field of an instance's YAML may hold."""

from collections.abc import Mapping
from typing import Any, Final

_KINDS: Final[Mapping[str, type | tuple[type, ...]]] = {
    **dict.fromkeys(("cpus", "ssh.localPort", "user.uid"), int),
    **dict.fromkeys(
        (
            *("mountInotify", "ssh.loadDotSSHPubKeys", "ssh.forwardAgent", "ssh.forwardX11"),
            *("firmware.legacyBIOS", "upgradePackages", "containerd.system", "containerd.user", "plain"),
            *("hostResolver.enabled", "propagateProxyEnv", "user.passwordlessSudo", "nestedVirtualization"),
        ),
        bool,
    ),
    **dict.fromkeys(
        ("vmType", "os", "arch", "mountType", "timezone", "message", "user.name", "user.home", "user.shell"),
        str,
    ),
    **dict.fromkeys(
        ("images", "mounts", "provision", "probes", "portForwards", "networks", "dns", "additionalDisks"),
        list,
    ),
    **dict.fromkeys(("ssh", "firmware", "video", "containerd", "hostResolver", "user", "env", "param"), dict),
}

_WORDS: Final = {int: "int", bool: "bool", str: "string", list: "sequence", dict: "mapping", float: "float"}


def problem_with(document: object) -> str | None:
    """Tell what can't be read in a YAML file's value, in words that only resemble limactl's."""
    if not isinstance(document, dict):
        return f"[1:1] {_word(document)} was used where mapping is expected"
    for path, kind in _KINDS.items():
        value: Any = document
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is None:
            continue
        wanted = kind if isinstance(kind, type) else kind[0]
        if not isinstance(value, kind) or (wanted is int and isinstance(value, bool)):
            if wanted in (list, dict):
                return f"{_word(value)} was used where {_WORDS[wanted]} is expected: {path}"
            return f"cannot unmarshal {_word(value)} into Go struct field {path} of type {_WORDS[wanted]}"
    return None


def _word(value: object) -> str:
    return "null" if value is None else _WORDS.get(type(value), type(value).__name__)
