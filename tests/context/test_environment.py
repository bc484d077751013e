"""Variables for the session."""

import os

import pytest

from claude_vm.context.environment import resolve_environment
from claude_vm.context.errors import VariableError


def resolve(tmp_path, **given):
    return resolve_environment(**{"environ": {}, "cwd": tmp_path, **given})


def from_text(tmp_path, text):
    (tmp_path / "f").write_bytes(text.encode("utf-8", "surrogateescape"))
    return resolve(tmp_path, env_files=["f"])


def test_later_kind_wins_and_within_a_kind_the_later_one(tmp_path):
    (tmp_path / "f").write_text("A=f\nB=f\nC=f\nD=f\nD=f2\n")
    (tmp_path / "g").write_text("C=g\n")
    assert resolve(
        tmp_path,
        env_files=["f", str(tmp_path / "g")],
        inherit=["B", "A", "ABSENT"],
        environ={"A": "i", "B": "i", "SECRET": "x"},
        env=["A=1", "A=2=3", "E="],
    ) == {"A": "2=3", "B": "i", "C": "g", "D": "f2", "E": ""}


@pytest.mark.parametrize(
    ("line", "value"),
    [
        ("A=b", "b"),
        ("  export A = b c  ", "b c"),
        ("A=", ""),
        ("A=b # c", "b"),
        ("A=b#c", "b#c"),
        ("A=#c", ""),
        ("A='b # \" $x \\n' # c", 'b # " $x \\n'),
        ('A="b # \' $x"', "b # ' $x"),
        (r'A="\n\t\r\"\\\x"', '\n\t\r"\\x'),
        ("A=$HOME`x`", "$HOME`x`"),
        ("A==b", "=b"),
        ("A=é\udcff", "é\udcff"),
        ("A=it's", "it's"),
        ("\ufeffA=b\r", "b"),
    ],
)
def test_lines_of_a_file_mean_what_they_say(tmp_path, line, value):
    assert from_text(tmp_path, line + "\n") == {"A": value}


def test_comments_and_empty_lines_do_not_count(tmp_path):
    assert from_text(tmp_path, "\n# A=1\n   # B=2\n\t\nC=3") == {"C": "3"}


@pytest.mark.parametrize(
    "line", ["x", "=x", "1A=x", "A-B=x", 'A="x', "A='x", 'A="x" y', "export A", "A B=x", 'A="x\\"']
)
def test_wrong_line_is_an_error_with_file_and_line(tmp_path, line):
    with pytest.raises(VariableError, match=r"^f:2: ") as caught:
        from_text(tmp_path, f"OK=1\n{line}\n")
    assert caught.value.code == "bad-environment"


def test_every_problem_is_reported_and_no_value(tmp_path):
    (tmp_path / "f").write_text("A='hunter2\n")
    with pytest.raises(VariableError) as caught:
        resolve(tmp_path, env_files=["f", "gone"], inherit=["1x"], env=["B", "2=hunter2", "C=hunter2\0"])
    assert len(caught.value.lines) == 6
    assert "hunter2" not in str(caught.value)
    assert "--inherit-env B" in str(caught.value)


def test_file_with_nul_fifo_or_too_much_is_an_error(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "nul").write_bytes(b"A=\0")
    (tmp_path / "big").write_bytes(b"#" * (1024 * 1024 + 1))
    for name in ("fifo", "nul", "big", "."):
        with pytest.raises(VariableError, match=f"'{name}'"):
            resolve(tmp_path, env_files=[name])


def test_more_variables_than_a_session_may_have_are_refused(tmp_path):
    (tmp_path / "f").write_text("".join(f"V{number}=x\n" for number in range(10_001)))
    with pytest.raises(VariableError, match="there are 10001 variables; at most 10000"):
        resolve(tmp_path, env_files=["f"])
