import signal
import subprocess
import sys
import tomllib
from pathlib import Path

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


def test_a_completion_is_found_without_the_parser(scripted):
    done = subprocess.run(
        [sys.executable, "-c", REPORT, "pool", ""],
        env=scripted.environ | {"_CLAUDE_VM_COMPLETE": "bash"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert done.stdout.split() == ["status", "fill", "drain"]
    loaded = set(done.stderr.rsplit("\n", 1)[1].split(" "))
    assert loaded & {"typer", "click", "asyncio", "anyio"} == set()


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


def test_ctrl_c_while_the_program_loads_ends_it_without_a_word():
    """From the first of our modules on; for what the interpreter does before, see `test_launcher.py`."""
    program = (
        "import os, signal, sys\n"
        "class Interrupting:\n"
        "    def find_spec(name, path=None, target=None):\n"
        "        if name == 'claude_vm.supervisor.cli.main':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupting)\n"
        "from {module} import {name}\n"
    )
    scripts = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts
    for place in scripts.values():
        module, _, name = place.partition(":")
        code = program.replace("{module}", module).replace("{name}", name)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (-signal.SIGINT, b"")


def test_who_ignores_ctrl_c_goes_on_ignoring_it():
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        "import claude_vm.supervisor.cli.start\n"
        "assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
