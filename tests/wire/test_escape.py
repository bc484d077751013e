import json
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.supervisor.wire.escape import escape_cell, escape_json, escape_line, printed

BIDIRECTIONAL = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}


def is_harmless(character):
    return (
        unicodedata.category(character) not in {"Cc", "Cs", "Zl", "Zp"}
        and unicodedata.bidirectional(character) not in BIDIRECTIONAL
    )


@given(st.text(st.characters(codec=None)))
def test_nothing_that_acts_on_a_terminal_is_left(text):
    escaped = escape_line(text)
    assert all(is_harmless(c) for c in escaped if c != "\t")
    assert escape_line(escaped) == escaped
    assert "\t" not in escape_cell(text)
    escaped.encode()


def test_every_character_is_either_harmless_or_changed():
    for code in range(0x110000):
        character = chr(code)
        if not is_harmless(character) and character != "\t":
            assert escape_line(character).startswith("\\"), hex(code)


@pytest.mark.parametrize("text", ["plain", "ümlaut €", "日本語", "👩‍💻 emoji", "a\tb c", "עברית", "C:\\x1b"])
def test_ordinary_text_stays(text):
    assert escape_line(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b2J", "\\x9b2J"),
        ("a\rb", "a\\x0db"),
        ("a\r\nb", "a\\x0d\\x0ab"),
        ("a\nb\tc", "a\\x0ab\tc"),
        ("a\x85b", "a\\x85b"),
        ("\x7f\x00", "\\x7f\\x00"),
        ("evil\u202egpj.exe", "evil\\u202egpj.exe"),
        ("\u2028", "\\u2028"),
        (b"\xff\x1b".decode("utf-8", "surrogateescape"), "\\xff\\x1b"),
        ("\ud800", "\\ud800"),
        ("\U000e0041", "\\U000e0041"),
    ],
)
def test_what_acts_becomes_visible(text, shown):
    assert escape_line(text) == shown


def test_a_cell_has_no_tab_either():
    assert escape_cell("a\nb\tc") == "a\\x0ab\\x09c"


@given(st.lists(st.text(st.characters(codec=None))))
def test_so_many_lines_are_printed_as_were_given(lines):
    shown = printed(lines)
    assert len(shown.splitlines()) == shown.count("\n") == len(lines)


@given(st.text())
def test_escaped_json_has_the_same_value_and_nothing_that_acts(text):
    value = {text: [text]}
    escaped = escape_json(json.dumps(value, ensure_ascii=False, indent=1))
    assert json.loads(escaped) == value
    assert all(is_harmless(c) for c in escaped if c != "\n")
