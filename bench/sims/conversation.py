"""Many clients in one process: the thin client's protocol, without a process and without a terminal."""

import select
import socket
import time
from collections.abc import Sequence

from claude_vm.bench.errors import BenchError
from claude_vm.bench.site import Site
from claude_vm.supervisor.wire import paths
from claude_vm.supervisor.wire.client import DaemonConnection, invoke
from claude_vm.supervisor.wire.errors import WireError
from claude_vm.supervisor.wire.framing import decode_json, encode
from claude_vm.supervisor.wire.messages import FrameType

WAIT_S = 60.0


class Conversation:
    """One session as its client sees it. Instants are of ``time.monotonic()``, None until they come."""

    def __init__(self, site: Site, argv: Sequence[str]) -> None:
        """Connect and invoke; returns when the daemon has welcomed us.

        Raises:
            BenchError: There is no daemon, or it refuses.
        """
        self.begun_at = time.monotonic()
        self.output_at: float | None = None
        self.ended_at: float | None = None
        self.status: int | None = None
        self.said = ""
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(paths.socket_path(str(site.home)))
            message: dict[str, object] = {"argv": list(argv), "cwd": str(site.project), "env": dict(site.env)}
            self._connection: DaemonConnection = invoke(connection, message)
        except (OSError, WireError) as error:
            connection.close()
            raise BenchError(f"the daemon does not accept a claim: {error}") from error

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._connection.fileno()

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.ended_at is not None

    def end_input(self) -> None:
        """Let the session's command see the end of its input."""
        self._connection.put(encode(FrameType.STDIN_EOF))
        self._connection.flush()

    def take(self) -> None:
        """Take what came."""
        frames = self._connection.receive()
        now = time.monotonic()
        for kind, payload in frames:
            self._take(kind, payload, now)
        if self._connection.ended and self.ended_at is None:
            self.ended_at = now
        if self.ended_at is not None:
            self._connection.close()

    def _take(self, kind: FrameType, payload: bytes, now: float) -> None:
        if kind is FrameType.STDOUT:
            self.output_at = self.output_at or now
        elif kind is FrameType.NOTE:
            self.said = str(decode_json(kind, payload).get("text", ""))
        elif kind is FrameType.EXIT:
            status = decode_json(kind, payload).get("status")
            self.status = status if isinstance(status, int) else None
            self.ended_at = now

    def wait(self) -> None:
        """Take frames until it is over.

        Raises:
            BenchError: It is not in time.
        """
        deadline = time.monotonic() + WAIT_S
        while not self.ended:
            if not self._connection.has_early_frames:
                wait_any([self], deadline)
            self.take()

    def close(self) -> None:
        """Go away; a session that runs ends."""
        self._connection.close()


def wait_any(conversations: Sequence[Conversation], deadline: float) -> list[Conversation]:
    """Return those that have something to take.

    Raises:
        BenchError: None has, until the deadline.
    """
    poller = select.poll()
    known = {conversation.fileno(): conversation for conversation in conversations}
    for descriptor in known:
        poller.register(descriptor, select.POLLIN)
    ready = poller.poll(max(0.0, deadline - time.monotonic()) * 1000)
    if not ready:
        raise BenchError(f"{len(known)} simulated sessions gave no more output")
    return [known[descriptor] for descriptor, _ in ready]
