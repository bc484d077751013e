import subprocess
import sys

import pytest

HEAVY = {
    *(
        "asyncio",
        "asyncssh",
        "trio",
        "anyio",
        "structlog",
        "rich",
        "pydantic",
        "websockets",
        "typer",
        "click",
    ),
    *("msgspec", "argparse", "subprocess", "logging", "pathlib", "typing", "dataclasses", "threading", "ssl"),
    *("importlib.metadata", "tempfile", "shutil", "hashlib", "inspect", "traceback", "email", "random"),
}

REPORT = """
import os, sys
from claude_vm.supervisor.cli import main
def leave(status):
    os.write(2, ("\\n" + " ".join(sys.modules)).encode())
    os._exit(status)
main._leave = leave
main.main()
"""


@pytest.mark.parametrize(
    "words", [["status", "3"], ["outputs"], ["--version"], ["progress"]], ids=lambda words: words[0]
)
def test_the_thin_client_loads_nothing_heavy(scripted, words):
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *words],
        env=scripted.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    loaded = set(done.stderr.rsplit("\n", 1)[1].split(" "))
    assert "claude_vm.supervisor.cli.main" in loaded
    assert loaded & HEAVY == set()
    assert not any(name.startswith(("claude_vm.supervisor.daemon", "claude_vm.context")) for name in loaded)


def test_the_rare_parts_are_loaded_only_when_needed(scripted):
    done = subprocess.run(
        [sys.executable, "-c", REPORT, "outputs"],
        env=scripted.environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    loaded = set(done.stderr.rsplit("\n", 1)[1].split(" "))
    rare = {"agents", "terminal", "launch"}
    assert {f"claude_vm.supervisor.cli.{name}" for name in rare} & loaded == set()
