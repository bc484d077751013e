"""Progress that drivers report without waiting, told to a client by a task of its own."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from claude_vm.drivers.api import Phase
from claude_vm.drivers.tasks import open_tasks
from claude_vm.supervisor.conditions import AutoResetEvent
from claude_vm.supervisor.wire.connected_client import Client, Level

TICK_S = 1.0
"""How often the elapsed time of a silent phase is told again, in seconds, on a terminal."""


class ClientProgress:
    """A `claude_vm.drivers.api.Progress`: an instance is called with a phase and a detail.

    Each phase is told once, with the seconds since the beginning; details are told under ``-v``.
    """

    def __init__(self, client: Client, *, quiet: bool, verbose: bool) -> None:
        self._client = client
        self._quiet = quiet
        self._verbose = verbose
        self._begun = time.monotonic()
        self._pending: list[tuple[str, Level]] = []
        self._phase: Phase | None = None
        self._news = AutoResetEvent()

    def __call__(self, phase: Phase, detail: str) -> None:
        """Take a phase and a detail. Never waits, never raises."""
        if self._quiet:
            return
        if phase != self._phase:
            self._phase = phase
            self._pending.append((self._so_far(phase), "progress"))
        if detail and self._verbose:
            self._pending.append((f"  {detail}", "verbose"))
        self._news.set()

    def _so_far(self, phase: Phase) -> str:
        return f"{phase.words} ({time.monotonic() - self._begun:.0f} s)"

    async def _tell(self) -> None:
        terminal = self._client.invocation.terminal.stderr_tty
        while True:
            with anyio.move_on_after(TICK_S if terminal and self._phase else None):
                await self._news.wait()
            if terminal and self._phase and not self._pending:
                self._pending.append((self._so_far(self._phase), "progress"))
            await self._flush()

    async def _flush(self) -> None:
        while self._pending:
            text, level = self._pending.pop(0)
            await self._client.note(text, level)


@asynccontextmanager
async def open_progress(client: Client, *, quiet: bool, verbose: bool) -> AsyncIterator[ClientProgress]:
    """Open a progress that is told to `client` while the context lasts; what is left is told at its end."""
    progress = ClientProgress(client, quiet=quiet, verbose=verbose)
    try:
        async with open_tasks() as tasks:
            tasks.start_soon(progress._tell)  # noqa: SLF001 - its own opener
            yield progress
            tasks.cancel_scope.cancel()
    finally:
        await progress._flush()  # noqa: SLF001
