"""What a client tells about itself, decoded strictly. For the daemon's side: it uses msgspec."""

import base64
import binascii
from typing import TypeVar

import msgspec

from claude_vm.supervisor.wire.errors import ProtocolError
from claude_vm.supervisor.wire.framing import decode_json
from claude_vm.supervisor.wire.messages import (
    MAX_TERMINFO,
    PROTOCOL,
    VERSION_MISMATCH_BUSY,
    VERSION_MISMATCH_IDLE,
    FrameType,
)
from claude_vm.supervisor.wire.version import VERSION

_Record = TypeVar("_Record")


class Terminal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The client's terminal. Sizes are 0 when there is none; width and height are in pixels, often 0."""

    stdin_tty: bool = False
    stdout_tty: bool = False
    stderr_tty: bool = False
    term: str = ""
    rows: int = 0
    columns: int = 0
    width: int = 0
    height: int = 0


class Invocation(msgspec.Struct, frozen=True, kw_only=True):
    """A command line and where it was typed.

    `argv` is without the program's name. Strings may have surrogates that stand for bytes that are no UTF-8:
    ``text.encode("utf-8", "surrogateescape")`` gives the bytes. None holds a NUL, so each may become an
    argument or a variable. `terminfo` is the compiled entry of `Terminal.term`, when guests may lack it.
    `pid` is what its HELLO said.
    """

    argv: tuple[str, ...]
    cwd: str
    env: dict[str, str]
    terminal: Terminal = Terminal()
    terminfo: bytes | None = None
    pid: int = 0


class Hello(msgspec.Struct, frozen=True):
    """The first frame of each side. `pid` is the process's own idea of its number."""

    protocol: int
    version: str
    pid: int


class Refusal(msgspec.Struct, frozen=True):
    """Why a client is not served. `code` is stable."""

    code: str
    message: str
    hint: str = ""


def decode_hello(payload: bytes) -> Hello:
    """Return a HELLO's content.

    Raises:
        ProtocolError: It isn't as it must be.
    """
    return _convert(FrameType.HELLO, decode_json(FrameType.HELLO, payload), Hello)


def decode_argv(payload: bytes) -> tuple[str, ...]:
    """Return the arguments of an INVOKE of any protocol's version, and nothing when there are none.

    Raises:
        ProtocolError: It is no JSON object.
    """
    argv = decode_json(FrameType.INVOKE, payload).get("argv")
    return tuple(a for a in argv if isinstance(a, str)) if isinstance(argv, list) else ()


def decode_invocation(payload: bytes) -> Invocation:
    """Return an INVOKE's content.

    Raises:
        ProtocolError: It isn't as it must be.
    """
    message = decode_json(FrameType.INVOKE, payload)
    terminfo = message.get("terminfo")
    if isinstance(terminfo, str):
        try:
            message["terminfo"] = base64.b64decode(terminfo, validate=True)
        except (ValueError, binascii.Error) as error:
            raise ProtocolError("a frame INVOKE whose terminfo is no base64") from error
    invocation = _convert(FrameType.INVOKE, message, Invocation)
    for text in (*invocation.argv, invocation.cwd, *invocation.env, *invocation.env.values()):
        _check_text(text)
    if not invocation.cwd.startswith("/"):
        raise ProtocolError("a frame INVOKE whose directory is not absolute")
    if invocation.terminfo is not None and len(invocation.terminfo) > MAX_TERMINFO:
        raise ProtocolError("a frame INVOKE whose terminfo is too large")
    return invocation


def decode_answer(payload: bytes) -> str | None:
    """Return an ANSWER's line.

    Raises:
        ProtocolError: It isn't as it must be.
    """
    line = decode_json(FrameType.ANSWER, payload).get("line")
    if line is None or isinstance(line, str):
        return line
    raise ProtocolError("a frame ANSWER whose line is no string")


def judge(hello: Hello, argv: tuple[str, ...], *, busy: bool) -> Refusal | None:
    """Return why a client of this version is refused, or None when it is served.

    ``daemon stop`` and ``daemon status`` are served in every version: they are the way out. With `busy`,
    the daemon has sessions; without, it must end after this refusal, so that the client can start its own.
    """
    if (hello.protocol, hello.version) == (PROTOCOL, VERSION):
        return None
    words = [a for a in argv if not a.startswith("-")][:2]
    if words in (["daemon", "stop"], ["daemon", "status"]):
        return None
    theirs = hello.version if hello.version != VERSION else f"{hello.version}, protocol {hello.protocol}"
    what = f"the running claude-vm daemon is version {VERSION}, this command is {theirs}"
    if busy:
        return Refusal(
            VERSION_MISMATCH_BUSY,
            f"{what}, and it has sessions",
            "wait for its sessions to end, or end them with: claude-vm daemon stop",
        )
    return Refusal(VERSION_MISMATCH_IDLE, what, "it has no sessions and ends now; repeat the command")


def _convert(kind: FrameType, message: dict[str, object], record: type[_Record]) -> _Record:
    try:
        return msgspec.convert(message, type=record, strict=True)
    except (msgspec.ValidationError, RecursionError) as error:
        raise ProtocolError(f"a frame {kind.name} that can't be used: {error}") from error
    except UnicodeEncodeError as error:  # a key with a surrogate, which it can't compare
        raise ProtocolError(f"a frame {kind.name} with a key that is no text") from error


def _check_text(text: str) -> None:
    if "\0" in text:
        raise ProtocolError("a frame INVOKE with a NUL in a string")
    try:
        text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ProtocolError("a frame INVOKE with a surrogate that stands for no byte") from error
