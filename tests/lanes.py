"""Run the tests in two lanes side by side: real VMs, one test after the other, and beside them the rest.

    python tests/lanes.py [PYTEST'S ARGUMENTS]

The rest mostly waits, so the whole takes little longer than its VMs do. Tests that measure time come last,
when the machine is quiet. Each line says which lane it is of; the status is pytest's, the first that is none
of success.
"""

import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SIDE_BY_SIDE = {"vm": "vm", "rest": "not vm and not timed"}
AFTERWARDS = {"timed": "timed and not vm"}
"""Names of the lanes, and the marks of their tests."""


def run(name, marks, words, folder):
    """Run one lane, with a folder of its own for temporary files: what one makes is no leak of the others."""
    temporary = Path(folder, name)
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", "-m", marks, *words],
        env=os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"},
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
    """Run all lanes, or one where the caller chooses by marks."""
    if "-m" in words:
        return subprocess.run([sys.executable, "-m", "pytest", *words], check=False).returncode
    ends = []
    with tempfile.TemporaryDirectory(prefix="cv-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        for lanes in SIDE_BY_SIDE, AFTERWARDS:
            with ThreadPoolExecutor() as threads:
                ends += threads.map(lambda lane: run(*lane, words, folder), lanes.items())
    ran = [status for status in ends if status != pytest.ExitCode.NO_TESTS_COLLECTED]
    return next(filter(None, ran), 0) if ran else pytest.ExitCode.NO_TESTS_COLLECTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
