"""What a client tells about itself, decoded strictly. For the daemon's side: it uses msgspec."""

from typing import TypeVar

import msgspec

from claude_vm.supervisor.wire.errors import ProtocolError
from claude_vm.supervisor.wire.framing import decode_json
from claude_vm.supervisor.wire.messages import (
    MAX_RAW,
    MAX_STRINGS,
    MAX_TERMINFO,
    MAX_WORDS,
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


class Invocation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
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
    return _decode(FrameType.HELLO, payload, Hello)


def decode_argv(payload: bytes) -> tuple[str, ...]:
    """Return the arguments of an INVOKE of any protocol's version. Bytes that are no UTF-8 are lost in them.

    Raises:
        ProtocolError: It has none.
    """
    _check_count(payload)
    return _shape(FrameType.INVOKE, payload, _Words).argv


def decode_invocation(payload: bytes) -> Invocation:
    """Return an INVOKE's content.

    Raises:
        ProtocolError: It isn't as it must be.
    """
    _check_count(payload)
    invocation = _decode(FrameType.INVOKE, payload, Invocation)
    if len(invocation.argv) > MAX_WORDS:
        raise ProtocolError(f"a frame INVOKE with more than {MAX_WORDS} words")
    if any(
        "\0" in text for text in (*invocation.argv, invocation.cwd, *invocation.env, *invocation.env.values())
    ):
        raise ProtocolError("a frame INVOKE with a NUL in a string")
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
    return _decode(FrameType.ANSWER, payload, _Answer).line


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


class _Words(msgspec.Struct, frozen=True):
    argv: tuple[str, ...] = ()


class _Answer(msgspec.Struct, frozen=True):
    line: str | None = None


def _check_count(payload: bytes) -> None:
    """Refuse more strings than there may be, before each of them costs something.

    Raises:
        ProtocolError: There are more.
    """
    # Each string has two quotes that no backslash is before, or one if a backslash is its last character.
    if payload.count(b'"') - payload.count(b'\\"') > 2 * MAX_STRINGS:
        raise ProtocolError(f"a frame INVOKE with more than {MAX_STRINGS} strings")


def _decode(kind: FrameType, payload: bytes, record: type[_Record]) -> _Record:
    """Return a frame's record, strictly, in a time that its size bounds.

    `msgspec` ends at the first thing that should not be there; Python's own decoder would make it all first.
    So bytes that are no UTF-8, which only that one takes, are decoded when the rest is known to be right.
    """
    found = _shape(kind, payload, record)
    if _is_text(payload):
        return found
    return msgspec.convert(decode_json(kind, payload), type=record, strict=True)


def _shape(kind: FrameType, payload: bytes, record: type[_Record]) -> _Record:
    """Return a frame's record, in which each byte that is no UTF-8 became a mark."""
    if not _is_text(payload):
        if len(payload) > MAX_RAW:
            raise ProtocolError(f"a frame {kind.name} that is not UTF-8 can have {MAX_RAW} bytes at most")
        payload = payload.decode(errors="replace").encode()
    try:
        return msgspec.json.decode(payload, type=record, strict=True)
    except (msgspec.DecodeError, RecursionError) as error:
        raise ProtocolError(f"a frame {kind.name} that can't be used: {error}") from error


def _is_text(payload: bytes) -> bool:
    try:
        payload.decode()
    except UnicodeDecodeError:
        return False
    return True
