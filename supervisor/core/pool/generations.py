"""Which generation of each template is the one of today, as far as anybody has told."""

from collections import OrderedDict
from typing import NamedTuple

import msgspec

from claude_vm.supervisor.core.keys import PoolKey

KEPT_GENERATIONS = 128
"""Templates whose generation is remembered, those last heard of. Of others, any news is believed."""


class _Generation(NamedTuple):
    """A template's last generation that was heard of, and whether it has been deleted since."""

    name: str
    is_gone: bool = False


class Generations:
    """The last generation of each template, by driver and template."""

    def __init__(self) -> None:
        self._known: OrderedDict[tuple[str, str], _Generation] = OrderedDict()

    def is_news(self, key: PoolKey) -> bool:
        """Tell whether a key that was read from disk is of a later generation than was heard of."""
        name = key.driver, key.template
        known = self._known.get(name)
        if known is None or key.generation > known.name:
            return True
        self._known.move_to_end(name)
        return False

    def hear(self, driver: str, template: str, generation: str) -> None:
        """Note a template's new generation; "": it has been deleted."""
        before = self._known.pop((driver, template), _Generation(""))
        self._known[driver, template] = _Generation(generation or before.name, is_gone=not generation)
        if len(self._known) > KEPT_GENERATIONS:
            self._known.popitem(last=False)

    def current(self, key: PoolKey) -> PoolKey | None:
        """Return the key with its template's generation of today, or None if the template is gone."""
        known = self._known.get((key.driver, key.template))
        if known is None or known == (key.generation, False):
            return key
        return None if known.is_gone else msgspec.structs.replace(key, generation=known.name)
