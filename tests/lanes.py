"""Run the tests in lanes side by side: the end-to-end suite, other real VMs, and all that needs none.

    python tests/lanes.py [PYTEST'S ARGUMENTS]

Each lane waits much, for guests or for time to pass, and together they take little longer than the longest.
Tests that measure time come last, when the machine is quiet. Each line says which lane it is of; the first
status of pytest's that is none of success is ours. Which tests a lane has: see `lane` in conftest.py.

Lima's driver is tested with the stand-in where the machine has no `limactl`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from standins import choice

SIDE_BY_SIDE = ("e2e", "vm", "rest")
AFTERWARDS = ("timed",)


def run(name, words, folder):
    """Run one lane, with a folder of its own for temporary files: what one makes is no leak of the others."""
    temporary = Path(folder, name)
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    if name == "vm" and shutil.which("limactl") is None:
        programs = choice.Choice(choice.STAND_IN, None).install(Path(folder, "stand-in"))
        environment["PATH"] = os.pathsep.join([str(programs), environment.get("PATH", os.defpath)])
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", f"--lane={name}", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as lane:
        for line in lane.stdout:
            sys.stdout.write(f"{name:5} | {line}")
            sys.stdout.flush()
    return lane.returncode


def main(words):
    """Run all lanes; return the status."""
    ends = []
    with tempfile.TemporaryDirectory(prefix="cv-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        for lanes in SIDE_BY_SIDE, AFTERWARDS:
            with ThreadPoolExecutor() as threads:
                ends += threads.map(lambda lane: run(lane, words, folder), lanes)
    ran = [status for status in ends if status != pytest.ExitCode.NO_TESTS_COLLECTED]
    return next(filter(None, ran), 0) if ran else pytest.ExitCode.NO_TESTS_COLLECTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
