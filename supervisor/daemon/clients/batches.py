"""Long work in batches, between which other tasks run."""

from collections.abc import AsyncIterator, Iterable
from typing import TypeVar

import anyio.lowlevel

Item = TypeVar("Item")

ROWS = 100
"""Items that are worked on in a row; a listing's take some ten microseconds each."""


async def in_batches(items: Iterable[Item]) -> AsyncIterator[Item]:
    """Yield the items. Others run in between, so take what may change meanwhile as a copy."""
    for number, item in enumerate(items, 1):
        yield item
        if number % ROWS == 0:
            await anyio.lowlevel.checkpoint()
