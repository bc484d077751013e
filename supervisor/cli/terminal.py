"""Which modes a program has set on the terminal, read from its output, and how to undo them.

A full-screen program that dies with its VM leaves the alternate screen, mouse reports, keyboard protocols
and more switched on. So every byte that goes to the terminal passes `ModeTracker.feed`, and at the end
`ModeTracker.undo` gives what resets exactly that which is still on, and nothing for a clean terminal.

Source: the xterm control sequences (invisible-island.net/xterm/ctlseqs), the kitty keyboard protocol
(sw.kovidgoyal.net/kitty/keyboard-protocol).
"""

import re

_PRIVATE_MODES = {
    1: False,  # application cursor keys
    5: False,  # reverse video
    6: False,  # origin relative to the scroll region
    7: True,  # automatic wrap
    9: False,  # mouse: X10
    25: True,  # cursor visible
    66: False,  # application keypad
    1000: False,  # mouse: buttons
    1001: False,  # mouse: highlight
    1002: False,  # mouse: drag
    1003: False,  # mouse: all motion
    1004: False,  # focus events
    1005: False,  # mouse: UTF-8 coordinates
    1006: False,  # mouse: SGR coordinates
    1015: False,  # mouse: urxvt coordinates
    1016: False,  # mouse: pixel coordinates
    2004: False,  # bracketed paste
    2026: False,  # synchronized output
    2031: False,  # reports of the colour scheme
    2048: False,  # reports of the size in the input
}
"""Modes of ``CSI ? n h`` and their state on a terminal that nobody has changed."""

_SCREENS = (1049, 1047, 47)
"""Modes that switch to the alternate screen."""

_INSERT = 4
"""Mode of ``CSI n h``: characters push the rest of the line."""

_SEQUENCE = re.compile(
    rb"(?P<shift>[\x0e\x0f])|\x1b(?:"
    rb"\[(?P<private>[<=>?]?)(?P<numbers>[0-9:;]*)(?P<between>[ -/]*)(?P<final>[@-~])"
    rb"|(?P<charset>[()][ -/]*[0-~])"
    rb"|(?P<single>[=>c])"
    rb")"
)
_BEGUN = re.compile(rb"\x1b(?:\[[0-?]*[ -/]*|[ -/]*)\Z")
_TEXT_BEGUN = re.compile(rb"\x1b[]PX^_][^\x1b\x07\x18\x1a]*\Z")
_TEXT_ENDS = re.compile(rb"[\x1b\x07\x18\x1a]")

_LONGEST = 256
"""Bytes of an unfinished sequence that are kept; a terminal would have given up as well."""

_CANCEL = b"\x18"


class ModeTracker:
    """The terminal's modes as the output so far has set them. Pure: knows bytes only."""

    def __init__(self) -> None:
        self._rest = b""
        self._in_text = False
        self._reset()

    def _reset(self) -> None:
        self._changed: set[int] = set()
        self._screen = 0
        self._keyboard = {False: 0, True: 0}
        self._keyboard_flags = {False: False, True: False}
        self._keypad = self._insert = self._shape = self._region = False
        self._styled = self._other_keys = self._line_drawing = self._shifted = False

    def feed(self, data: bytes) -> None:
        """Take output that goes to the terminal, cut anywhere."""
        if self._in_text:
            end = _TEXT_ENDS.search(data)
            self._shift(data[: end.start()] if end else data)
            if end is None:
                return
            self._in_text = False
            data = data[end.start() :]
        if self._rest:
            data = self._rest + data
            self._rest = b""
        last = data.rfind(b"\x1b")
        if last < 0:
            self._shift(data)
            return
        for match in _SEQUENCE.finditer(data):
            self._take(match)
        tail = data[last : last + _LONGEST]
        if _BEGUN.match(tail) and len(data) - last < _LONGEST:
            self._rest = tail
        elif _TEXT_BEGUN.match(data, last):
            self._in_text = True

    def undo(self) -> bytes:
        """Return what sets the terminal back, or ``b""``. Afterwards the tracker knows a clean terminal."""
        parts = [_CANCEL] if self._rest or self._in_text else []
        alternate = bool(self._screen)
        parts += [b"\x1b[?%d%c" % (m, b"h" if _PRIVATE_MODES[m] else b"l") for m in sorted(self._changed)]
        parts += self._undo_keyboard(screen=True) if alternate else []
        if alternate:
            parts.append(b"\x1b[?%dl" % self._screen)
        parts += self._undo_keyboard(screen=False)
        for on, sequence in (
            (self._other_keys, b"\x1b[>4m"),
            (self._keypad, b"\x1b>"),
            (self._insert, b"\x1b[4l"),
            (self._region, b"\x1b7\x1b[r\x1b8"),  # resetting it moves the cursor
            (self._shape, b"\x1b[0 q"),
            (self._line_drawing, b"\x1b(B"),
            (self._shifted, b"\x0f"),
            (self._styled, b"\x1b[0m"),
        ):
            if on:
                parts.append(sequence)
        self._rest = b""
        self._in_text = False
        self._reset()
        return b"".join(parts)

    def _undo_keyboard(self, *, screen: bool) -> list[bytes]:
        parts = [b"\x1b[<%du" % self._keyboard[screen]] if self._keyboard[screen] else []
        if self._keyboard_flags[screen]:
            parts.append(b"\x1b[=0u")
        return parts

    def _shift(self, data: bytes) -> None:
        """Note the last shift, also inside of texts, where terminals differ: one too many harms nobody."""
        if b"\x0e" in data or b"\x0f" in data:
            self._shifted = data.rfind(b"\x0e") > data.rfind(b"\x0f")

    def _take(self, match: re.Match[bytes]) -> None:
        if match["shift"]:
            self._shift(match["shift"])
        elif match["final"] is not None:
            if match["final"] == b"m" and not match["private"]:
                self._styled = match["numbers"] not in {b"", b"0"}
            else:
                self._take_control(match)
        elif match["single"] == b"c":
            self._reset()
        elif match["single"]:
            self._keypad = match["single"] == b"="
        elif match["charset"][:1] == b"(":
            self._line_drawing = match["charset"] != b"(B"

    def _take_control(self, match: re.Match[bytes]) -> None:
        numbers = [int(n) if n.isdigit() and len(n) < 6 else 0 for n in match["numbers"].split(b";")]
        match match["private"] + match["between"] + match["final"]:
            case b"?h":
                self._set_modes(numbers, on=True)
            case b"?l":
                self._set_modes(numbers, on=False)
            case b"h" | b"l" if _INSERT in numbers:
                self._insert = match["final"] == b"h"
            case b"r":
                self._region = match["numbers"] not in {b"", b"0", b"0;0", b";"}
            case b" q":
                self._shape = numbers[0] != 0
            case b">u" | b"<u" | b"=u":
                self._take_keyboard(match["private"], numbers, given=bool(match["numbers"]))
            case b">m" if numbers[0] == 4:
                self._other_keys = len(numbers) > 1 and numbers[1] != 0
            case b"!p":
                self._soft_reset()

    def _set_modes(self, numbers: list[int], *, on: bool) -> None:
        for mode in numbers:
            if mode in _SCREENS:
                self._screen = mode if on else 0
            elif mode in _PRIVATE_MODES:
                (self._changed.discard if _PRIVATE_MODES[mode] is on else self._changed.add)(mode)

    def _take_keyboard(self, private: bytes, numbers: list[int], *, given: bool) -> None:
        """Each screen has a stack of its own; setting flags at its bottom is no push."""
        screen = bool(self._screen)
        if private == b">":
            self._keyboard[screen] = min(self._keyboard[screen] + 1, 99)
        elif private == b"<":
            self._keyboard[screen] = max(self._keyboard[screen] - (numbers[0] if given else 1), 0)
        elif not self._keyboard[screen]:
            self._keyboard_flags[screen] = numbers[0] != 0

    def _soft_reset(self) -> None:
        self._keypad = self._insert = self._region = self._styled = self._line_drawing = False
        self._changed -= {1, 6, 7, 25}
