"""The host's side of the guest helper's channel.

The guest's root can be what answers here. So an answer is bounded, strictly decoded, and used for nothing but
this guest; what does not fit is an error of this guest, never a traceback.
"""

import secrets
from base64 import b64encode
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from time import time
from typing import Any, Final

import anyio
import msgspec
from anyio.abc import SocketStream

from claude_vm.drivers.api import GuestFile
from claude_vm.drivers.errors import GuestError

ANSWER_LIMIT: Final = 256 * 1024
GARBAGE_LIMIT: Final = 1024 * 1024
PIECE: Final = 256 * 1024
FILES_LIMIT: Final = 8 * 1024 * 1024
_TEXT_LIMIT: Final = 16 * 1024
_BATCH: Final = 64
_CLOCK_ERROR_S: Final = 0.05
_CLOCK_TRIES: Final = 4


class HelperAnswer(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the helper may say. `status` and `output` are of `run`, the last four of `ping`."""

    id: str | None
    ok: bool
    error: str = ""
    status: int = 0
    output: str = ""
    identified: bool = False
    sealed: bool = False
    uptime_s: float = 0.0
    pid: int = 0


_decode = msgspec.json.Decoder(HelperAnswer).decode


def printable(text: str, limit: int = _TEXT_LIMIT) -> str:
    """Return a guest's text, cut, with a mark in place of each control character but newline and tab."""
    return "".join(
        char if char.isprintable() or char in "\n\t" else "\N{REPLACEMENT CHARACTER}"
        for char in text[-limit:]
    )


class Channel:
    """A connection to the helper of one guest, made when it is first needed, and again after a failure.

    Requests come one after another, also when several tasks make them. A request that is cancelled or late
    ends the connection, so that its answer can't be taken for that of a later one.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: SocketStream | None = None
        self._buffer = bytearray()
        self._lock = anyio.Lock()

    async def request(self, operation: str, *, timeout_s: float, **fields: Any) -> HelperAnswer:
        """Ask for one thing and return the answer.

        Raises:
            GuestError: The helper refuses, sends an invalid answer, or does not answer in time.
        """
        async with self._lock:
            done = False
            try:
                with anyio.fail_after(timeout_s):
                    answer = await self._exchange(operation, fields)
                done = True
            except TimeoutError:
                raise GuestError(f"the guest does not answer ({operation}, {timeout_s:g} s)") from None
            except (
                OSError,
                anyio.BrokenResourceError,
                anyio.EndOfStream,
                anyio.ClosedResourceError,
            ) as error:
                raise GuestError(f"the guest's channel is gone ({operation})") from error
            finally:
                if not done:
                    await self.aclose()
        if not answer.ok:
            raise GuestError(f"the guest can't do {operation}", detail=printable(answer.error, 2000))
        return answer

    async def put_files(self, files: Sequence[GuestFile], *, timeout_s: float) -> None:
        """Write files into the guest, in order, large ones in pieces.

        Raises:
            GuestError: The guest does not answer, says why it can't, or it is too much.
        """
        if sum(len(file.data) for file in files) > FILES_LIMIT:
            raise GuestError(f"files of more than {FILES_LIMIT >> 20} MiB at once")
        batch: list[dict[str, Any]] = []
        size = 0
        for piece in _pieces(files):
            batch.append(piece)
            size += len(piece["data"])
            if size >= PIECE or len(batch) >= _BATCH:
                await self.request("files", timeout_s=timeout_s, files=batch)
                batch, size = [], 0
        if batch:
            await self.request("files", timeout_s=timeout_s, files=batch)

    async def set_clock(self, *, timeout_s: float) -> None:
        """Set the guest's clock, again if the way there took too long for it to be right.

        Raises:
            GuestError: The guest does not answer, each time within so many seconds.
        """
        for _ in range(_CLOCK_TRIES):
            sent = time()
            await self.request("clock", timeout_s=timeout_s, unix_s=sent)
            if time() - sent < _CLOCK_ERROR_S:
                return

    async def aclose(self) -> None:
        """Close the connection; the next request makes a new one."""
        stream, self._stream = self._stream, None
        self._buffer.clear()
        if stream is not None:
            with anyio.move_on_after(1, shield=True), suppress(OSError, anyio.BrokenResourceError):
                await stream.aclose()

    async def _exchange(self, operation: str, fields: dict[str, Any]) -> HelperAnswer:
        if self._stream is None:
            self._stream = await anyio.connect_unix(self._path)
            # Whatever a former connection left unfinished ends here.
            await self._stream.send(b"\n")
        name = secrets.token_hex(8)
        await self._stream.send(msgspec.json.encode({"id": name, "op": operation, **fields}) + b"\n")
        read = 0
        while True:
            line = await self._line(self._stream)
            read += len(line)
            with suppress(msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                answer = _decode(line)
                if answer.id == name:
                    return answer
            # Late answers to a former connection, or noise.
            if read > GARBAGE_LIMIT:
                raise GuestError("the guest's helper sent an invalid answer")

    async def _line(self, stream: SocketStream) -> bytes:
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0:
                line = bytes(self._buffer[:end])
                del self._buffer[: end + 1]
                return line
            if len(self._buffer) > ANSWER_LIMIT:
                raise GuestError("the guest's helper sent an answer that does not end")
            self._buffer += await stream.receive(64 * 1024)


def _pieces(files: Sequence[GuestFile]) -> list[dict[str, Any]]:
    """Return the files as the helper takes them; all but a large file's first piece are appended."""
    return [
        {
            "path": file.path,
            "data": b64encode(file.data[start : start + PIECE]).decode("ascii"),
            "mode": file.mode,
            "owner": file.owner,
            "append": file.append or start > 0,
        }
        for file in files
        for start in range(0, max(len(file.data), 1), PIECE)
    ]
