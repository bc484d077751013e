"""The import rules find what breaks them: a copy of the program with imports that should not be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import claude_vm

ROOT = Path(__file__).parents[2]
PARTS = ("supervisor", "drivers", "context", "bench")

WRONG = {
    "bench/stats.py": "claude_vm.supervisor.cli.notes",
    "context/terminal.py": "claude_vm.supervisor.statuses",
    "context/ports.py": "claude_vm.supervisor.core.keys",
    "drivers/locks.py": "claude_vm.supervisor.core.keys",
    "drivers/sim/store.py": "claude_vm.drivers.lima.home",
    "drivers/vm/disk.py": "claude_vm.drivers.qemu.arguments",
    "supervisor/grammar/layout.py": "claude_vm.supervisor.core.keys",
    "supervisor/ssh/owner.py": "claude_vm.drivers.process",
    "supervisor/ssh/launch.py": "claude_vm.drivers.memory",
    "supervisor/ssh/link.py": "claude_vm.supervisor.wire.errors",
    "supervisor/wire/framing.py": "claude_vm.context.errors",
    "supervisor/cli/notes.py": "claude_vm.supervisor.daemon.errors",
    "supervisor/cli/polling.py": "claude_vm.drivers.api",
    "supervisor/core/keys.py": "claude_vm.supervisor.ssh.owner",
    "supervisor/daemon/errors.py": "claude_vm.drivers.newone",
    "supervisor/daemon/pool/room.py": "claude_vm.supervisor.daemon.sessions.plan",
    "supervisor/daemon/ports/loopback.py": "asyncssh",
}
"""Files and what they must not import."""


def lint(folder):
    return subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache", ROOT / "pyproject.toml"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    ).stdout


@pytest.fixture
def copy(tmp_path):
    (installed,) = claude_vm.__path__
    for part in PARTS:
        source = Path(installed, part)
        shutil.copytree(source, tmp_path / "claude_vm" / part, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "claude_vm" / "__init__.py").touch()  # so that it is this one alone, not a part of the name
    return tmp_path / "claude_vm"


def test_each_import_that_should_not_be_is_found_and_so_is_a_circle(copy):
    (copy / "drivers" / "newone.py").write_text("")
    for file, imported in WRONG.items():
        with (copy / file).open("a") as text:
            text.write(f"import {imported}\n")
    for one, other in (("plan", "surroundings"), ("surroundings", "plan")):
        with (copy / "supervisor/daemon/sessions" / f"{one}.py").open("a") as text:
            text.write(f"import claude_vm.supervisor.daemon.sessions.{other}\n")

    found = lint(copy.parent)

    importers = {file: "claude_vm." + file.removesuffix(".py").replace("/", ".") for file in WRONG}
    missed = [
        file
        for file, imported in WRONG.items()
        if not any(importers[file] in line and imported in line for line in found.splitlines())
    ]
    assert missed == [], found
    assert ".plan -> .surroundings" in found or ".surroundings -> .plan" in found
