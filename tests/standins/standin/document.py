"""Reading an instance's YAML: the file itself, under what `_config` says, over what is built in.

The user's ``_config/default.yaml`` and ``_config/override.yaml`` are mixed into *every* instance each time
that it is looked at; ``_config/base.yaml`` into new ones.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import MISSING, bases, defaults, names, shape, validation
from .errors import LimaError, os_error_text
from .log import LOG, quoted

Document = dict[str, Any]

_KNOWN = frozenset(
    name
    for line in (
        "base minimumLimaVersion vmType vmOpts os arch images cpuType cpus memory disk additionalDisks",
        "mounts mountTypesUnsupported mountType mountInotify ssh firmware audio video provision probes",
        "upgradePackages containerd guestInstallPrefix portForwards copyToHost message networks env param",
        "dns hostResolver propagateProxyEnv caCerts rosetta plain timezone nestedVirtualization user tpm",
        "osOpts",
    )
    for name in line.split()
)


def parse(data: bytes, what: str) -> Document:
    """Return a YAML file's mapping. Unknown fields are only warned of.

    Raises:
        LimaError: it isn't YAML, or no mapping.
    """
    found = _load(data, what) if data.strip() else {}
    problem = shape.problem_with(found)
    if problem is not None:
        raise LimaError(f"failed to unmarshal YAML ({what}): {problem}")
    assert isinstance(found, dict)
    unknown = sorted(set(map(str, found)) - _KNOWN)
    if unknown:
        LOG.warning(
            "Non-strict YAML detected; please check for typos",
            comment=what,
            error=f'unknown field "{unknown[0]}"',
        )
    return found


def load(data: bytes, path: Path) -> Document:
    """Return an instance's whole configuration, with every default filled in.

    Raises:
        LimaError: one of the files can't be read.
    """
    main = parse(data, f"main file {quoted(path)}")
    lower = _optional("default.yaml", "default file")
    upper = _optional("override.yaml", "override file")
    _check_parameters(main)
    return defaults.fill(main, lower, upper, path.parent)


def read(path: Path) -> Document:
    """Return the configuration of the instance whose file this is, checked.

    Raises:
        FileNotFoundError: there is no such file.
        LimaError: it can't be read, or what it says is not allowed.
    """
    document = load(path.read_bytes(), path)
    validation.check(document)
    return document


def embed(data: bytes, locator: str, read_template: Callable[[str], bytes]) -> bytes:
    """Return a new instance's YAML with its bases mixed in; without any it keeps its bytes.

    `locator` says where the YAML is from, and bases are relative to it. With bases, the result is JSON, and
    comments are gone: the real one keeps them.

    Raises:
        LimaError: a base can't be read, or it is no YAML.
    """
    found = parse(data, locator) if data.strip() else {}
    general = names.config_dir() / "base.yaml"
    if general.exists():
        base = found.get("base") or []
        found["base"] = [*(base if isinstance(base, list) else [base]), str(general)]
    if not found.get("base"):
        return data

    def read_base(location: str) -> Document:
        if "://" not in location and not location.startswith(("template:", "/")):
            location = str(Path(locator).parent / location)
        return parse(read_template(location), location)

    return json.dumps(bases.merged(found, read_base), indent=2).encode() + b"\n"


def warn_of_system(data: bytes) -> None:
    """Warn when a new guest is none with Linux."""
    system = (_load(data, "") or {}).get("os") if data.strip() else None  # type: ignore[attr-defined]
    if system not in (None, "", "Linux"):
        LOG.warning("Support for non-Linux guests is experimental")


def _check_parameters(document: Document) -> None:
    """Refuse parameters that no script uses."""
    texts = json.dumps([document.get(key) for key in ("provision", "probes", "copyToHost", "portForwards")])
    for key in document.get("param") or {}:
        if not re.search(rf"{{{{[^}}]*\.Param\.{re.escape(key)}[^}}]*}}}}|\bPARAM_{re.escape(key)}\b", texts):
            users = "any provision, probe, copyToHost, or portForward"
            raise LimaError(f"field `param` key {quoted(key)} is not used in {users}")


def _optional(name: str, what: str) -> Document:
    path = names.config_dir() / name
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LimaError(os_error_text(error, "open")) from None
    return parse(data, f"{what} {quoted(path)}")


def _load(data: bytes, what: str) -> object:
    try:
        return json.loads(data)
    except ValueError:
        pass
    try:
        import yaml
    except ImportError:
        raise LimaError(f"{MISSING}: YAML that isn't JSON, without PyYAML") from None
    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise LimaError(f"failed to unmarshal YAML ({what}): {error}") from None
