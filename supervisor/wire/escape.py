"""Makes text of strangers harmless for a terminal: what would act on it becomes visible instead.

Names of files, branches and hosts, a guest's last words and errors all end up in lines that we print. An
escape sequence among them could rewrite the screen or type commands into some terminals, and a line end fake
a line of ours. So nothing here returns a text of several lines: who has several gives them one by one, and
only `printed` ends them. In messages values stand as they are, between quotes where that helps, not as `repr`
spells them: here they are made visible, once.
"""

from collections.abc import Iterable

_BIDIRECTIONAL = (0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
"""Characters that turn the direction of text around. Source: Unicode Standard Annex 9, section 2."""

_LINE_BREAKS = (0x2028, 0x2029)
"""Characters that some terminals take for a new line. Source: Unicode Standard Annex 14 (class BK)."""

_INVISIBLE = (
    *(0x00AD, 0x180E, 0x200B, 0xFEFF, *range(0x2060, 0x2065), *range(0x206A, 0x2070)),
    *(*range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)),
)
"""Characters that show nothing, and can make two different names look the same."""

_RAW_BYTES = range(0xDC80, 0xDD00)
"""How Python holds bytes that are no UTF-8."""

_TABLE: dict[int, str] = {}
_JSON_TABLE: dict[int, str] = {}

for _code in (*range(0x20), *range(0x7F, 0xA0)):
    _TABLE[_code] = f"\\x{_code:02x}"
    _JSON_TABLE[_code] = f"\\u{_code:04x}"
for _code in (*_BIDIRECTIONAL, *_LINE_BREAKS, *_INVISIBLE, *range(0xD800, 0xE000)):
    _TABLE[_code] = f"\\u{_code:04x}" if _code <= 0xFFFF else f"\\U{_code:08x}"
    _JSON_TABLE[_code] = (
        f"\\u{_code:04x}"
        if _code <= 0xFFFF
        else f"\\u{0xD800 + (_code - 0x10000 >> 10):04x}\\u{0xDC00 + (_code & 0x3FF):04x}"
    )
for _code in _RAW_BYTES:
    _TABLE[_code] = f"\\x{_code - 0xDC00:02x}"
    _JSON_TABLE[_code] = "\\ufffd"
del _TABLE[0x09], _JSON_TABLE[0x0A]


def escape_line(text: str) -> str:
    r"""Return a text as one line that can be printed on any terminal: of control characters only tabs stay.

    Others (``\n`` too), raw bytes that are no UTF-8, and characters that turn the direction of text or show
    nothing become visible (``\x1b``, ``\u202e``). A backslash stays, so this is not reversible.
    """
    if text.isascii() and text.isprintable():
        return text
    return text.translate(_TABLE)


def escape_cell(text: str) -> str:
    r"""Return `escape_line` of a text that stands in a column: a tab becomes ``\x09``."""
    return escape_line(text).replace("\t", "\\x09")


def printed(lines: Iterable[str]) -> str:
    """Return lines as they are printed: each escaped, and ended."""
    return "".join(f"{escape_line(line)}\n" for line in lines)


def escape_json(text: str) -> str:
    r"""Return serialized JSON whose strings hold such characters as ``\uXXXX``: the same value, harmless.

    Line ends between the values stay. Bytes that are no UTF-8, for which JSON has no word, become U+FFFD.
    """
    return text.translate(_JSON_TABLE)
