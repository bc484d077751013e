"""A home, and git repositories in it."""

import os
import shutil
import subprocess

import pytest


@pytest.fixture
def home(tmp_path):
    folder = tmp_path.resolve() / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def git(home):
    """Run git with an environment of its own; ``git(folder, "status")`` returns what it prints."""
    program = shutil.which("git")
    if program is None:
        pytest.skip("git is not installed")

    def run(folder, *words):
        found = subprocess.run(
            [program, "-C", str(folder), "-c", "protocol.file.allow=always", *words],
            capture_output=True,
            check=True,
            env={
                "PATH": os.environ["PATH"],
                "HOME": str(home),
                "GIT_CONFIG_NOSYSTEM": "1",
                **{f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")},
            },
        )
        return os.fsdecode(found.stdout).rstrip("\n")

    return run


@pytest.fixture
def repository(home, git):
    """A repository with one commit, at ``home/code``."""
    folder = home / "code"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "sub").mkdir()
    (folder / "sub" / "file").write_text("x")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "x")
    return folder
