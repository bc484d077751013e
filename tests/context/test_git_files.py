"""Reading git's files as git reads them."""

import pytest

from claude_vm.context.git_files import core_value, flaw


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("[core]\n\tbare = true\n", "true"),
        ("[CORE] BARE=yes", "yes"),
        ("[core]\nbare\n", "true"),
        ("[core]\nbare =\n", ""),
        ('[core]\nbare = "a b" # x\n', "a b"),
        ("[core]\nbare = a b ; x\n", "a b"),
        ('[core]\nbare = "#x"\n', "#x"),
        ("[core]\nbare = a\\tb\\\\\n", "a\tb\\"),
        ("[core]\nbare = a\\\nb\n", "ab"),
        ("[core]\nbare = 1\n[core]\nbare = 2\n", "2"),
        ('[core "x"]\nbare = 1\n', None),
        ("[other]\nbare = 1\n", None),
        ("# [core]\n# bare = 1\n", None),
        ("[core]\nbarely = 1\n", None),
        ("", None),
    ],
)
def test_value_is_what_git_says(tmp_path, git, text, value):
    (tmp_path / "config").write_text(text)
    assert core_value(tmp_path, "bare") == value
    if value is not None:
        # git prints an implicit true as nothing unless it is asked for a boolean
        said = git(tmp_path, "config", "--file", str(tmp_path / "config"), "--get", "core.bare")
        assert said == ("" if text == "[core]\nbare\n" else value)


def test_worktrees_own_configuration_wins(tmp_path):
    (tmp_path / "config").write_text("[core]\nbare = true\n")
    (tmp_path / "config.worktree").write_text("[core]\nbare = false\n")
    assert core_value(tmp_path, "bare") == "false"


@pytest.mark.parametrize(
    ("head", "is_one"),
    [
        (b"ref: refs/heads/main\n", True),
        (b"ref:refs/heads/x", True),
        (b"ref: heads/x\n", False),
        (b"0" * 40 + b"\n", True),
        (b"0" * 64 + b"\n", True),
        (b"0" * 41 + b"\n", False),
        (b"", False),
    ],
)
def test_git_directory_is_told_by_its_head(tmp_path, head, is_one):
    (tmp_path / "objects").mkdir()
    (tmp_path / "refs").mkdir()
    assert flaw(tmp_path)
    (tmp_path / "HEAD").write_bytes(head)
    assert (not flaw(tmp_path)) is is_one
    (tmp_path / "refs").rmdir()
    assert flaw(tmp_path)


def test_head_may_be_a_symlink_into_refs(tmp_path):
    (tmp_path / "objects").mkdir()
    (tmp_path / "refs").mkdir()
    (tmp_path / "HEAD").symlink_to("refs/heads/main")
    assert flaw(tmp_path) == ""
    (tmp_path / "HEAD").unlink()
    (tmp_path / "HEAD").symlink_to("elsewhere")
    assert flaw(tmp_path)
