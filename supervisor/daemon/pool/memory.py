"""Tells the core what ready VMs take of the host's memory, and what the host has left.

The first VM of each kind is measured when it is connected to, be it for a session: so what the next one will
take is known before it is made. Ready ones are measured from time to time, because they grow.
"""

import itertools
import sqlite3
from collections.abc import Callable, Iterable

import anyio
import structlog

from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.events import Measured
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.drivers import DriverSet
from claude_vm.supervisor.daemon.state.journal import Journal

log = structlog.get_logger()

LOOK_S = 10.0
"""Pause between two looks at what the host has left, in seconds."""

LOOKS_PER_WEIGHING = 6
"""At each so many looks all ready VMs are measured, too; that takes about 6 ms of a core for each."""

WORTH_NOTING = 0.1
"""A figure is written down when it differs from the one that was by more than this part of it."""

Available = Callable[[], int | None]
"""Returns what the host has left, in MiB; None where nobody shall ask. Takes well under a millisecond."""


def unknown() -> None:
    """Be an `Available` that does not know."""


class MemoryWatch:
    """Looks, and posts what it has seen. The journal keeps each kind's figure for the next supervisor."""

    def __init__(
        self,
        core: Core,
        drivers: DriverSet,
        journal: Journal,
        post: Callable[[Measured], None],
        available: Available,
    ) -> None:
        self.available = available
        self._core = core
        self._drivers = drivers
        self._journal = journal
        self._post = post
        self._noted: dict[PoolKey, int] = {}

    def recall(self) -> None:
        """Tell the core what a former supervisor has measured. Before anything is taken over from it."""
        taken = tuple(self._journal.memory())
        self._noted = dict(taken)
        self._post(Measured(at=anyio.current_time(), available_mib=self.available(), taken=taken))

    async def run(self) -> None:
        """Look again and again, as long as something is ready or wanted, until cancelled."""
        for number in itertools.count(1):
            await anyio.sleep(LOOK_S)
            if any(view.wanted or view.warm for view in self._core.pools()):
                await self.look(() if number % LOOKS_PER_WEIGHING else self._ready())

    def _ready(self) -> list[tuple[PoolKey, str]]:
        views = self._core.instances()
        return [(view.key, view.instance_id) for view in views if view.state == "warm"]

    async def look_at_new(self, key: PoolKey, instance_id: str) -> None:
        """Measure an instance that was just connected to; a session's only if it is the first of its kind."""
        if key.kind not in self._noted or not self._core.session_of(instance_id):
            await self.look([(key, instance_id)])

    async def look(self, instances: Iterable[tuple[PoolKey, str]]) -> None:
        """Measure instances, and the host; tell the core the average of each kind."""
        found: dict[PoolKey, list[int]] = {}
        for key, instance_id in instances:
            taken_mib = await self._measure(key, instance_id)
            if taken_mib:
                found.setdefault(key.kind, []).append(taken_mib)
        taken = tuple((kind, sum(each) // len(each)) for kind, each in found.items())
        for kind, mib in taken:
            self._note(kind, mib)
        self._post(Measured(at=anyio.current_time(), available_mib=self.available(), taken=taken))

    async def _measure(self, key: PoolKey, instance_id: str) -> int:
        try:
            return await (await self._drivers.get(key.driver)).taken_mib(instance_id)
        except DriverError as error:
            log.warning("memory-not-measured", instance=instance_id, error=str(error))
        except Exception:  # a bug around one VM must not end the others
            log.exception("memory-not-measured", instance=instance_id)
        return 0

    def _note(self, kind: PoolKey, mib: int) -> None:
        if abs(mib - self._noted.get(kind, 0)) <= WORTH_NOTING * mib:
            return
        self._noted[kind] = mib
        try:
            self._journal.note_memory(kind, mib)
        except sqlite3.Error as error:  # the next supervisor measures by itself
            log.error("journal-not-written", error=str(error))  # noqa: TRY400
