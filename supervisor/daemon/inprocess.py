"""``--no-daemon``: the supervisor in a thread of the client's own process, for one command."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import anyio
import structlog

from claude_vm.supervisor.daemon import identity, logfile
from claude_vm.supervisor.daemon.admission import admit
from claude_vm.supervisor.daemon.handler import handle
from claude_vm.supervisor.daemon.host import open_host
from claude_vm.supervisor.daemon.main import first_cause, raise_file_limit
from claude_vm.supervisor.wire import paths
from claude_vm.supervisor.wire.framing import encode_json
from claude_vm.supervisor.wire.messages import FrameType
from claude_vm.supervisor.wire.server import Client, serve_socket

log = structlog.get_logger()


def serve_one(connection: socket.socket) -> Callable[[], None]:
    """Serve the client at the other end of `connection` in a background thread; return a way to wait for it.

    The thread ends when the command has ended and nothing of it is left. It must be waited for: a process
    that ends earlier leaves its VM to the next supervisor's sweep.
    """
    raise_file_limit()
    home = Path(paths.home())
    paths.make_private(str(home / "logs"))
    logfile.configure(home / "logs" / "no-daemon.log")  # the daemon rotates its own
    # not a daemon thread: an interpreter that ends must wait for the clean-up
    thread = threading.Thread(target=_run, args=(connection,), name="supervisor")
    thread.start()
    return thread.join


def _run(connection: socket.socket) -> None:
    """Serve, and tell the client when that is impossible: nobody else would."""
    try:
        anyio.run(_serve, connection)
    except Exception as error:
        cause = first_cause(error)
        log.exception("supervisor-failed")
        refusal: dict[str, object] = {
            "code": "supervisor-failed",
            "message": f"the supervisor does not start: {cause}",
        }
        with suppress(OSError):
            connection.sendall(encode_json(FrameType.REFUSED, refusal))
    finally:
        connection.close()


async def _serve(connection: socket.socket) -> None:
    home = Path(paths.home())
    async with open_host(home, identity.in_process_id(), in_process=True, admit=partial(admit, home)) as host:

        async def handler(client: Client) -> int:
            return await handle(host, client)

        await serve_socket(connection, handler)
