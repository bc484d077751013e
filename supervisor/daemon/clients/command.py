"""One command of one client, and how it is answered."""

import json
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TypeVar

import msgspec

from claude_vm.drivers.api import Progress
from claude_vm.drivers.tasks import open_tasks
from claude_vm.supervisor.daemon.clients.batches import in_batches
from claude_vm.supervisor.daemon.clients.caller import Caller
from claude_vm.supervisor.daemon.clients.progress import open_progress
from claude_vm.supervisor.daemon.clients.workspace import Workspace
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.supervisor import Supervisor
from claude_vm.supervisor.grammar.flags import Flags
from claude_vm.supervisor.statuses import OF_SIGNAL, SESSION_FAILED
from claude_vm.supervisor.wire.connected_client import Client, Signal
from claude_vm.supervisor.wire.escape import escape_json, printed

Result = TypeVar("Result")


class Command:
    """One command of one client. `workspace` is its caller's, for which it is the console."""

    def __init__(self, supervisor: Supervisor, client: Client, flags: Flags) -> None:
        self.supervisor = supervisor
        self.client = client
        self.flags = flags
        invocation = client.invocation
        caller = Caller(
            flags=flags,
            cwd=Path(invocation.cwd),
            environ=invocation.env,
            terminal=invocation.terminal,
            terminfo=invocation.terminfo,
            pid=invocation.pid,
        )
        self.workspace = Workspace(supervisor, caller, self)

    async def out(self, *lines: str) -> None:
        """Write lines to the client's stdout. Control characters of strangers are made visible."""
        await self.client.send_stdout(printed(lines).encode())

    async def out_json(self, value: object) -> None:
        """Write a value as indented JSON to the client's stdout; the items of a list in pieces."""
        if not isinstance(value, list) or not value:
            await self.client.send_stdout((_indented(value) + "\n").encode())
            return
        before = "[\n  "
        async for item in in_batches(value):
            await self.client.send_stdout((before + _indented(item).replace("\n", "\n  ")).encode())
            before = ",\n  "
        await self.client.send_stdout(b"\n]\n")

    async def say(self, text: str) -> None:
        """Write a line to the client's stderr, unless it wants quiet."""
        if not self.flags.quiet:
            await self.client.note(text, "info")

    async def say_verbose(self, text: str) -> None:
        """Write a line to the client's stderr under ``-v``."""
        if self.flags.verbose:
            await self.client.note(text, "verbose")

    async def say_progress(self, text: str) -> None:
        """Show how far it is on the client's terminal, or under ``-v`` as a line."""
        if self.flags.verbose:
            await self.client.note(f"claude-vm: {text}", "verbose")
        elif self.client.invocation.terminal.stderr_tty and not self.flags.quiet:
            await self.client.note(f"claude-vm: {text}", "progress")

    async def warn(self, text: str) -> None:
        """Write a line to the client's stderr, whatever it wants."""
        await self.client.note(text, "error")

    async def confirm(self, question: str) -> bool:
        """Ask a question on the client's terminal; without one the answer is no."""
        answer = await self.client.prompt(f"{question} [y/N] ")
        return answer is not None and answer.strip().lower() in {"y", "yes"}

    def progress(self) -> AbstractAsyncContextManager[Progress]:
        """Return a context in which progress is told to the client."""
        return open_progress(self.client, quiet=self.flags.quiet, verbose=self.flags.verbose)

    async def unless_interrupted(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Return what `work` returns; cancel it when the client goes away or sends a signal.

        Not for sessions, whose signals belong to their main command.

        Raises:
            CommandError: The client's signal ended the work. (A client that is gone hears nothing.)
        """
        client = self.client
        results: list[Result] = []
        name = "INT"

        def interrupt(signal: str) -> None:
            nonlocal name
            name = signal
            tasks.cancel_scope.cancel()

        async def stop_when_gone() -> None:
            await client.gone.wait()
            interrupt("HUP")

        async def stop_on_signal() -> None:
            while not isinstance(control := await client.next_control(), Signal):
                pass
            interrupt(control.name)

        async with open_tasks() as tasks:
            tasks.start_soon(stop_when_gone)
            tasks.start_soon(stop_on_signal)
            results.append(await work())
            tasks.cancel_scope.cancel()
        if results:
            return results[0]
        status = OF_SIGNAL.get(name, SESSION_FAILED)
        raise CommandError("interrupted", f"interrupted by SIG{name}", status=status)


def _indented(value: object) -> str:
    # Escaped first: what is no UTF-8 can't be formatted.
    text = escape_json(json.dumps(msgspec.to_builtins(value), ensure_ascii=False))
    return msgspec.json.format(text, indent=2)
