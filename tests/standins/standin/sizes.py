"""Sizes as Lima's files write them, in powers of 1024 whatever the unit's spelling."""

import re

from .errors import LimaError

_SIZE = re.compile(r"^(\d+(?:\.\d+)*) ?([kKmMgGtTpP])?[iI]?[bB]?$")
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def parse_size(text: str) -> int:
    """Return a size in bytes.

    Raises:
        LimaError: it is no size.
    """
    found = _SIZE.match(str(text))
    if found is None:
        raise LimaError(f"invalid size: '{text}'")
    unit = (found[2] or "").lower()
    return int(float(found[1]) * 1024 ** (" kmgtp".index(unit) if unit else 0))


def format_size(count: float) -> str:
    """Return a number of bytes with four digits at most, like ``1.5GiB``."""
    unit = 0
    while count >= 1024 and unit < len(_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{count:.4g}{_UNITS[unit]}"
