"""Templates that are based on others: a template's own fields win, its lists come first."""

import copy
from collections.abc import Callable
from typing import Any

Document = dict[str, Any]


def merged(document: Document, read: Callable[[str], Document]) -> Document:
    """Return a template without bases, and with what it has from them.

    `read` finds a base by its location.

    Raises:
        RecursionError: a template is its own base.
    """
    found = {key: value for key, value in document.items() if key != "base"}
    for location in _locations(document.get("base")):
        base = merged(read(location), read)
        found = _under(found, base)
    return found


def _locations(base: Any) -> list[str]:
    entries = base if isinstance(base, list) else [] if base is None else [base]
    return [entry["url"] if isinstance(entry, dict) else str(entry) for entry in entries]


def _under(upper: Document, lower: Document) -> Document:
    found = copy.deepcopy(upper)
    for key, value in lower.items():
        mine = found.get(key)
        if mine is None:
            found[key] = copy.deepcopy(value)
        elif isinstance(mine, dict) and isinstance(value, dict):
            found[key] = _under(mine, value)
        elif isinstance(mine, list) and isinstance(value, list):
            found[key] = mine + copy.deepcopy(value)
    return found
