"""An access as a file, for programs of this package."""

from pathlib import Path

import msgspec

from claude_vm.drivers.api import Access


def write_access(access: Access, path: Path) -> None:
    """Write an access as JSON. It names its private key, and does not hold it."""
    path.write_bytes(msgspec.json.encode(access, enc_hook=str))


def read_access(path: Path) -> Access:
    """Read what `write_access` wrote."""
    return msgspec.json.decode(path.read_bytes(), type=Access, dec_hook=lambda kind, value: kind(value))
