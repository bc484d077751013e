import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.context.terminal import guest_locale, guest_terminal
from claude_vm.context.terminfo import described_names, terminfo_file

KNOWN = ("xterm", "xterm-256color", "dumb")


def compiled(name="odd-term", *, magic=0o432, names=None, strings=(0, -1), table=b"\x1b[H\0", extra=b""):
    text = f"{name}|an odd terminal".encode() + b"\0" if names is None else names
    booleans = b"\1"
    size = 4 if magic == 0o1036 else 2
    data = struct.pack("<6h", magic, len(text), len(booleans), 1, len(strings), len(table)) + text + booleans
    data += bytes(len(data) % 2) + bytes(size) + struct.pack(f"<{len(strings)}h", *strings) + table
    return data + extra


def installed():
    return [
        p
        for folder in ("/lib/terminfo", "/usr/share/terminfo", "/etc/terminfo")
        for p in Path(folder).glob("*/*")
    ]


@pytest.mark.skipif(not installed(), reason="this host has no compiled terminal descriptions")
def test_every_description_of_this_host_is_sound():
    for path in installed():
        assert described_names(path.read_bytes()), path


@pytest.mark.skipif(not installed(), reason="this host has no compiled terminal descriptions")
def test_an_extended_description_of_the_compiler_is_sound(tmp_path):
    source = tmp_path / "odd.ti"
    source.write_text(
        "odd-term|an odd terminal,\n\tam, cols#80, RGB, Tc, XX#70000, clear=\\E[H, Smulx=\\E[4:%p1%dm,\n"
    )
    subprocess.run(["tic", "-x", "-o", tmp_path / "db", source], check=True)
    data = (tmp_path / "db" / "o" / "odd-term").read_bytes()
    assert described_names(data) == ("odd-term", "an odd terminal")
    assert terminfo_file("odd-term", data).path == ".terminfo/o/odd-term"
    for size in range(len(data)):
        if described_names(data[:size]) is not None:
            assert (
                data[size:] in {b"", b"\0"} or size <= data.index(b"\x1b[H\0") + 5
            )  # the plain part is whole


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\0" * 12,
        compiled(magic=0o433),
        compiled()[:-1],
        compiled(strings=(99,)),
        compiled(names=b"odd-term"),
        compiled(names=b"\0"),
        compiled(names=b"odd\x1b-term\0"),
        compiled(extra=b"\0\0\0"),
        compiled() + bytes(40_000),
        compiled()[:2] + struct.pack("<h", -1) + compiled()[4:],
    ],
)
def test_what_is_no_description_of_that_terminal_is_refused(data):
    assert terminfo_file("odd-term", data) is None


@given(st.binary(max_size=200))
def test_any_bytes_are_judged_without_an_exception(data):
    described_names(data)
    described_names(compiled()[:12] + data)


@pytest.mark.parametrize("name", ["", "../x", "a/b", "-x", ".x", "x" * 65, "a b", "a\n", "é", "a\0"])
def test_a_name_that_is_no_terminals_never_becomes_a_path(name):
    assert terminfo_file(name, compiled(name.replace("\0", ""))) is None
    assert guest_terminal({"TERM": name}, known_terms=KNOWN, known_locales=()).term == "xterm-256color"


def test_a_known_terminal_is_passed_on():
    found = guest_terminal({"TERM": "xterm", "COLORTERM": "truecolor"}, known_terms=KNOWN, known_locales=())
    assert (found.term, found.files) == ("xterm", ())
    assert found.environment == {"TERM": "xterm", "COLORTERM": "truecolor", "LANG": "C.UTF-8"}


def test_an_unknown_terminal_is_taught_to_the_guest():
    found = guest_terminal({"TERM": "odd-term"}, known_terms=KNOWN, known_locales=(), terminfo=compiled())
    assert found.term == found.environment["TERM"] == "odd-term"
    (file,) = found.files
    assert (file.path, file.data, file.mode) == (".terminfo/o/odd-term", compiled(), 0o644)


@pytest.mark.parametrize("data", [None, b"junk", compiled()[:-1]])
def test_an_unknown_terminal_that_can_not_be_taught_becomes_an_ordinary_one(data):
    found = guest_terminal({"TERM": "odd-term"}, known_terms=KNOWN, known_locales=(), terminfo=data)
    assert (found.term, found.files) == ("xterm-256color", ())


def test_a_strange_colorterm_is_not_passed_on():
    found = guest_terminal({"TERM": "xterm", "COLORTERM": "\x1b[31m"}, known_terms=KNOWN, known_locales=())
    assert "COLORTERM" not in found.environment


@pytest.mark.parametrize(
    ("client", "expected"),
    [
        ({}, {"LANG": "C.UTF-8"}),
        ({"LANG": ""}, {"LANG": "C.UTF-8"}),
        ({"LANG": "en_US.UTF-8"}, {"LANG": "C.UTF-8"}),
        ({"LANG": "C"}, {"LANG": "C"}),
        ({"LC_ALL": "POSIX"}, {"LC_ALL": "POSIX"}),
        ({"LANG": "C.utf8", "LC_TIME": "de_DE"}, {"LANG": "C.UTF-8", "LC_TIME": "C.UTF-8"}),
        ({"LC_CTYPE": "UTF-8"}, {"LC_CTYPE": "C.UTF-8"}),
        ({"LANG": "de_CH.utf8@x"}, {"LANG": "de_CH.UTF-8@x"}),
        ({"LANG": "C\n"}, {"LANG": "C.UTF-8"}),
        ({"LC_EVIL": "x"}, {"LANG": "C.UTF-8"}),
    ],
)
def test_a_locale_that_the_guest_lacks_becomes_the_one_that_it_has(client, expected):
    assert guest_locale(client, ("C.UTF-8", "de_CH.UTF-8@x")) == expected
