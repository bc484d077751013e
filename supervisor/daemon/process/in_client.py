"""The supervisor in a thread of the client's own process, for one command.

Under ``--no-daemon``; and where no daemon can be started, or this one can't, for want of room or rights: then
it writes nothing (`claude_vm.supervisor.daemon.readonly`).
"""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import structlog

from claude_vm.drivers.tasks import first_cause
from claude_vm.supervisor.daemon.commands.answer import answer
from claude_vm.supervisor.daemon.pool.admission import admit
from claude_vm.supervisor.daemon.process import logfile
from claude_vm.supervisor.daemon.process.main import raise_file_limit
from claude_vm.supervisor.daemon.readonly import open_readonly_supervisor
from claude_vm.supervisor.daemon.state import identity
from claude_vm.supervisor.daemon.state.database import NewerSchemaError
from claude_vm.supervisor.daemon.supervisor import open_supervisor
from claude_vm.supervisor.wire import paths, shortage
from claude_vm.supervisor.wire.framing import encode_json
from claude_vm.supervisor.wire.messages import FrameType
from claude_vm.supervisor.wire.server import serve_socket
from claude_vm.supervisor.wire.shortage import NotWritableError

log = structlog.get_logger()


def serve_one(connection: socket.socket, short: NotWritableError | None = None) -> Callable[[], None]:
    """Serve the client at the other end of `connection` in a background thread; return a way to wait for it.

    With `short` the supervisor stands in for the daemon, and writes nothing for that reason. The thread ends
    when the command has ended and nothing of it is left. It must be waited for: a process that ends earlier
    leaves its VM to the next supervisor's sweep.
    """
    raise_file_limit()
    home = Path(paths.home())
    server = _InClientServer(
        connection, home, identity.DAEMON_ID if short else identity.in_process_id(), short
    )
    try:
        paths.make_private(paths.runtime_directory(str(home)))
        paths.make_private(str(home / "logs"))
        logfile.configure(home / "logs" / "no-daemon.log")  # the daemon rotates its own
    except OSError as error:
        logfile.silence()
        server.short = short or shortage.of(error, str(home))
        if server.short is None:
            raise
    # not a daemon thread: an interpreter that ends must wait for the clean-up
    thread = threading.Thread(target=server.run, name="supervisor")
    thread.start()
    return thread.join


class _InClientServer:
    """Serves one client. `short` is why nothing can be written, as far as that is known."""

    def __init__(
        self, connection: socket.socket, home: Path, supervisor_id: str, short: NotWritableError | None
    ) -> None:
        self.short = short
        self._connection = connection
        self._home = home
        self._id = supervisor_id
        self._serves = False

    def run(self) -> None:
        """Serve, and tell the client when that is impossible: nobody else would."""
        try:
            while not self._is_served():
                pass
        except Exception as error:
            cause = first_cause(error)
            log.exception("supervisor-failed")
            another = isinstance(cause, identity.AlreadyRunningError)
            refusal: dict[str, object] = {
                "code": "already-running" if another else "supervisor-failed",
                "message": f"the supervisor does not start: {cause}",
            }
            if isinstance(cause, NewerSchemaError):
                refusal |= {"code": cause.code, "hint": cause.hint}
            with suppress(OSError):
                self._connection.sendall(encode_json(FrameType.REFUSED, refusal))
        finally:
            self._connection.close()

    def _is_served(self) -> bool:
        """Serve the client; return whether it was. If not, nothing can be written, and `short` says why."""
        try:
            anyio.run(self._serve)
        except Exception as error:
            if self._serves or self.short:
                raise
            self.short = shortage.of(first_cause(error), str(self._home))
            if self.short is None:
                raise
            identity.remove(self._home, self._id)  # nothing was begun, so nobody needs to sweep it
            return False
        return True

    async def _serve(self) -> None:
        opened = (
            open_readonly_supervisor(self._home, self._id, self.short)
            if self.short
            else open_supervisor(self._home, self._id, in_process=True, admit=partial(admit, self._home))
        )
        async with opened as supervisor:
            self._serves = True
            await serve_socket(self._connection, partial(answer, supervisor))
