"""Reading an instance's YAML: the file itself, under what `_config` says, over what is built in.

The user's ``_config/default.yaml`` and ``_config/override.yaml`` are mixed into *every* instance each time
that it is looked at; ``_config/base.yaml`` into new ones.
"""

import json
from pathlib import Path
from typing import Any

from . import MISSING, defaults, names, validation
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
    found = _load(data, what)
    if found is None:
        found = {}
    if not isinstance(found, dict):
        raise LimaError(f"failed to unmarshal YAML ({what}): a mapping is expected")
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


def embed(data: bytes) -> bytes:
    """Return a new instance's YAML with its bases mixed in; without any it keeps its bytes.

    Raises:
        LimaError: it has bases.
    """
    found = parse(data, "main file ``") if data.strip() else {}
    if found.get("base") or (names.config_dir() / "base.yaml").exists():
        raise LimaError(f"{MISSING}: `base` and `_config/base.yaml`")
    return data


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
