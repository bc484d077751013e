"""Run the tests in two lanes side by side: all real VMs one after the other, and what needs none.

    python tests/lanes.py [PYTEST'S ARGUMENTS]

The lane that is done first takes what is left of the parts without VMs. Tests that measure time come last,
when the machine is quiet. Each line says which part it is of; the first status of pytest's that is none of
success is ours. What failed is said once more at the end, where a long log is read first. Which tests a part
has: see `part` in conftest.py.

Lima's driver is tested with the stand-in where the machine has no `limactl`, and only when its code has
changed since its tests last passed; see `standins/tested.py`.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain
from pathlib import Path
from queue import Empty, Queue

import pytest
from standins import choice, tested

VMS = ("e2e", "vm")
OTHERS = ("rest", "daemon", "chaos", "ssh")  # the shortest last, so that both lanes end at the same time
AFTERWARDS = ("timed",)
OF_A_FAILURE = (
    "____",
    "E  ",
    "FAILED ",
    "ERROR ",
)  # how pytest's lines begin: the test, its error, the summary


def run(name, words, folder):
    """Run one part, with a folder of its own for temporary files: what one makes is no leak of the others.

    Returns its status, and its lines about failures.
    """
    failures = []
    temporary = Path(folder, name)
    temporary.mkdir()
    environment = os.environ | {"TMPDIR": str(temporary), "PYTHONUNBUFFERED": "1"}
    if name == "vm" and shutil.which("limactl") is None:
        programs = choice.Choice(choice.STAND_IN, None).install(Path(folder, "stand-in"))
        environment["PATH"] = os.pathsep.join([str(programs), environment.get("PATH", os.defpath)])
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", f"--part={name}", *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as part:
        for line in part.stdout:
            sys.stdout.write(f"{name:6} | {line}")
            sys.stdout.flush()
            if line.startswith(OF_A_FAILURE):
                failures.append(f"{name:6} | {line}")
    return part.returncode, failures


def left(parts):
    """Give what nobody else has taken, one after the other."""
    with suppress(Empty):
        while True:
            yield parts.get_nowait()


def main(words):
    """Run all parts; return the status."""
    if shutil.which("limactl") is None and (label := tested.passed_with()):
        sys.stdout.write(f"Lima's tests are left out: nothing has changed since they passed with {label}\n")
        words = ["--lima-is-tested", *words]
    with tempfile.TemporaryDirectory(prefix="cv-", dir="/tmp", ignore_cleanup_errors=True) as folder:

        def lane(parts):
            return [run(part, words, folder) for part in parts]

        others = Queue()
        for part in OTHERS:
            others.put(part)
        with ThreadPoolExecutor() as threads:
            lanes = (chain(VMS, left(others)), left(others))
            ends = [*chain.from_iterable(threads.map(lane, lanes)), *lane(AFTERWARDS)]
    ran = [status for status, _ in ends if status != pytest.ExitCode.NO_TESTS_COLLECTED]
    failures = [line for _, lines in ends for line in lines]
    if failures:
        sys.stdout.writelines(["\n== what failed\n", *failures])
    return next(filter(None, ran), 0) if ran else pytest.ExitCode.NO_TESTS_COLLECTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
