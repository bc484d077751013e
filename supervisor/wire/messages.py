"""The messages of the protocol between `claude-vm` and its daemon, and their numbers.

A frame is one byte of type, four bytes of length (big endian), then that many bytes. Control messages are
JSON objects, because the client must decode them with the standard library alone; streams are raw bytes.

Text: JSON as UTF-8 in which bytes that are no UTF-8 stand as they are (Python's ``surrogateescape``, in both
directions). So an argument, a variable or a directory of any bytes arrives as it was, whatever the locale.

Order: the client sends HELLO and INVOKE at once; the server answers HELLO, or REFUSED and closes. Then notes
and prompts may come, and output; a command that has a main process sends STARTED, from where on stdin flows;
EXIT is the last frame. A client that closes its side before EXIT is gone: its session ends. HELLO, REFUSED,
NOTE, EXIT and INVOKE's "argv" stay as they are in every later protocol, so that ``daemon stop`` works
across versions.

Flow control: each stream has a window of `WINDOW` bytes. Who sends data counts it; who has passed it
on (to a file descriptor, to the SSH channel) acknowledges it with the matching ACK, when it is half a window
at the latest. Nobody sends more than `WINDOW` bytes that are not acknowledged, so that signals and sizes
never wait behind data. Each channel to the SSH agent has a window of its own, `AGENT_WINDOW`, in each
direction.

This module imports the standard library only: the thin client loads it.
"""

from enum import IntEnum

PROTOCOL = 1
"""Number of this protocol. Client and daemon must agree on it."""

MAX_DATA = 64 * 1024
"""Largest piece of a stream in one frame, in bytes."""

MAX_INVOKE = 4 * 1024 * 1024
"""Largest INVOKE, in bytes. Linux gives a program 2 MiB unless its limits are raised, and so do guests."""

MAX_RAW = 1024 * 1024
"""The same if not all of its bytes are UTF-8: such ones take longer to read."""

MAX_WORDS = 10_000
"""Words that a command line may have."""

MAX_STRINGS = MAX_WORDS + 10_000
"""Strings that an INVOKE may have: words, and names and values of variables."""

MAX_TEXT = 256 * 1024
"""Largest payload of another control frame, in bytes."""

WINDOW = 512 * 1024
"""Bytes of one stream that may be under way without acknowledgement."""

AGENT_WINDOW = 128 * 1024
"""The same for one direction of a channel to the SSH agent."""

MAX_AGENTS = 16
"""Channels to the SSH agent that one client may have open at a time."""

MAX_TERMINFO = 32 * 1024
"""Largest compiled terminfo entry that travels, in bytes. Source: term(5), the extended format's limit."""


class FrameType(IntEnum):
    """Types of frames. Numbers are never reused. C: from the client, S: from the server."""

    HELLO = 1  # C, S: {"protocol": int, "version": str, "pid": int}
    REFUSED = 2  # S: {"code": str, "message": str, "hint": str}
    INVOKE = 3  # C: see `claude_vm.supervisor.wire.records.Invocation`
    NOTE = 4  # S: {"text": str, "level": "info"|"verbose"|"error"|"progress"|"urgent"}: for the user's stderr
    PROMPT = 5  # S: {"text": str}: a question that takes a line from the terminal
    ANSWER = 6  # C: {"line": str | null}: null when there is no terminal, or end of input
    STARTED = 7  # S: {"pty": bool}: the main process runs; with a PTY the terminal goes raw now
    EXIT = 8  # S: {"status": int}: 0 to 255

    STDIN = 16  # C: bytes
    STDIN_EOF = 17  # C: empty
    STDIN_ACK = 18  # S: 4 bytes, how many more bytes of stdin were passed on
    STDOUT = 19  # S: bytes
    STDOUT_ACK = 20  # C: 4 bytes
    STDOUT_CLOSED = 21  # C: empty: nobody reads the client's stdout any more
    STDERR = 22  # S: bytes
    STDERR_ACK = 23  # C: 4 bytes
    STDERR_CLOSED = 24  # C: empty
    SIZE = 25  # C: four unsigned 16-bit numbers: rows, columns, width and height in pixels
    SIGNAL = 26  # C: the signal's name without SIG, ASCII

    AGENT_OPEN = 32  # S: 4 bytes, a new channel to the client's SSH agent
    AGENT_DATA = 33  # C, S: 4 bytes of channel, then bytes
    AGENT_CLOSE = 34  # C, S: 4 bytes of channel: no more of it, in both directions
    AGENT_ACK = 35  # C, S: 4 bytes of channel, 4 bytes: how many more bytes were passed on


_TEXT = (2, MAX_TEXT)
_DATA = (1, MAX_DATA)
_NUMBER = (4, 4)
_NOTHING = (0, 0)
_AGENT = {
    FrameType.AGENT_DATA: (5, 4 + MAX_DATA),
    FrameType.AGENT_CLOSE: _NUMBER,
    FrameType.AGENT_ACK: (8, 8),
}
_SIZES_FROM_CLIENT = {
    FrameType.HELLO: _TEXT,
    FrameType.INVOKE: (2, MAX_INVOKE),
    FrameType.ANSWER: _TEXT,
    FrameType.STDIN: _DATA,
    FrameType.STDIN_EOF: _NOTHING,
    FrameType.STDOUT_ACK: _NUMBER,
    FrameType.STDOUT_CLOSED: _NOTHING,
    FrameType.STDERR_ACK: _NUMBER,
    FrameType.STDERR_CLOSED: _NOTHING,
    FrameType.SIZE: (8, 8),
    FrameType.SIGNAL: (1, 16),
    **_AGENT,
}
_SIZES_FROM_SERVER = {
    FrameType.HELLO: _TEXT,
    FrameType.REFUSED: _TEXT,
    FrameType.NOTE: _TEXT,
    FrameType.PROMPT: _TEXT,
    FrameType.STARTED: _TEXT,
    FrameType.EXIT: _TEXT,
    FrameType.STDIN_ACK: _NUMBER,
    FrameType.STDOUT: _DATA,
    FrameType.STDERR: _DATA,
    FrameType.AGENT_OPEN: _NUMBER,
    **_AGENT,
}
SIZES = _SIZES_FROM_CLIENT | _SIZES_FROM_SERVER
"""Smallest and largest payload of each type, in bytes."""

FROM_CLIENT = frozenset(_SIZES_FROM_CLIENT)
"""What the server takes."""

FROM_SERVER = frozenset(_SIZES_FROM_SERVER)
"""What the client takes."""

SIGNALS = frozenset({"HUP", "INT", "QUIT", "TERM", "USR1", "USR2", "TSTP", "CONT"})
"""Signals that a client may pass on."""

VERSION_MISMATCH_IDLE = "version-mismatch-idle"
"""Code of a refusal: the daemon is of another version, has no session, and ends now."""

VERSION_MISMATCH_BUSY = "version-mismatch-busy"
"""Code of a refusal: the daemon is of another version and has sessions."""
