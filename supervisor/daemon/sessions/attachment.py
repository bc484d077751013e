"""A client at a session: its input, size, signals and agent, and what it is told."""

from collections.abc import Callable

import anyio

from claude_vm.supervisor.daemon.sessions.outputs import STDOUT
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.ssh.agent import OpenAgent
from claude_vm.supervisor.ssh.errors import InputClosedError
from claude_vm.supervisor.wire.connected_client import Client, Level, TerminalSize


class Attachment:
    """One client at one session, as `Session.attach` takes it. It forwards its SSH agent only if it wants to.

    What becomes of the session without it, its command decides.
    """

    def __init__(
        self, session: Session, client: Client, *, quiet: bool, verbose: bool, forwards_agent: bool = False
    ) -> None:
        self._session = session
        self._client = client
        self._verbose = verbose
        self.hints = not quiet
        self.open_agent: OpenAgent | None = client.open_agent if forwards_agent else None

    async def take(self, output: int, offset: int, data: bytes) -> None:  # noqa: ARG002 - a reader's signature
        """Write a piece of output to the client; wait as long as its reader has not taken enough before.

        Raises:
            OutputClosedError: Nobody reads it any more.
        """
        await (self._client.send_stdout if output == STDOUT else self._client.send_stderr)(data)

    def tell(self, text: str, level: Level) -> None:
        """Tell the client a line, unless it is quiet, or not verbose enough. Never waits."""
        wanted = {"info": self.hints, "verbose": False}
        if self._verbose or wanted.get(level, True):
            self._client.note_nowait(text, level)

    def started(self, *, pty: bool) -> None:
        """Tell the client that the main command runs, which has its environment by now. Never waits."""
        self._client.forget_environment()
        self._client.started_nowait(pty=pty)

    async def serve(self, stop: Callable[[str], None]) -> None:
        """Carry input, sizes and signals until cancelled. `stop` is told signals that no command takes."""
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._carry_input)
            while True:
                match await self._client.next_control():
                    case TerminalSize() as size:
                        self._session.resize(size)
                    case signal if not self._session.signal(signal.name):
                        stop(signal.name)

    async def _carry_input(self) -> None:
        process = await self._session.process()
        try:
            while data := await self._client.receive_stdin():
                self._session.typed(data)
                await process.write(data)
        except InputClosedError:
            return  # a command need not read all of its input
        process.write_eof()
