"""Which `limactl` a test runs: the stand-in beside this file, or the real one where the machine has it.

A report never calls the stand-in Lima: see `Tally`.
"""

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

PROGRAM = Path(__file__).with_name("limactl")
STAND_IN = "stand-in for limactl"
_MARK = "+standin"


class Choice(NamedTuple):
    """One `limactl`. `label` is what reports call it; `program` is None for the stand-in."""

    label: str
    program: Path | None

    def install(self, prefix: Path) -> Path:
        """Make it ``bin/limactl`` below a folder, as an installation would, and return the ``bin``."""
        target = prefix / "bin" / "limactl"
        target.parent.mkdir(parents=True, exist_ok=True)
        if self.program is not None:
            target.symlink_to(self.program)
            return target.parent
        # An interpreter with PyYAML, which the one that `env` finds may lack.
        words = shlex.join([sys.executable, "-IB", str(PROGRAM)])
        variable = f"LIMACTL_STANDIN_PROGRAM={shlex.quote(str(target))}"
        target.write_text(f'#!/bin/sh\n{variable} exec {words} "$@"\n', encoding="utf-8")
        target.chmod(0o755)
        return target.parent


def choices(wanted: str) -> list[Choice]:
    """Return what there is of ``all``, ``stand-in`` or ``real``: the stand-in always, the real one maybe."""
    found = [Choice(STAND_IN, None)] if wanted != "real" else []
    real = _real() if wanted != "stand-in" else None
    return found if real is None else [*found, real]


def _real() -> Choice | None:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = shutil.which("limactl", path=folder)
        if path is None:
            continue
        version = _version(path)
        if version and _MARK not in version:
            return Choice(version, Path(path).absolute())
    return None


def _version(path: str) -> str:
    """Return what a `limactl` says it is, such as ``limactl 2.2.0``; nothing when it can't be run."""
    # Root gets no answer.
    done = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    return done.stdout.strip().replace(" version ", " ") if done.returncode == 0 else ""


class Tally:
    """How many tests ran with which `limactl`, for the summary of a run."""

    def __init__(self) -> None:
        self._found: dict[str, dict[str, int]] = {}

    def count(self, label: str, outcome: str) -> None:
        counts = self._found.setdefault(label, {})
        counts[outcome] = counts.get(outcome, 0) + 1

    def lines(self) -> list[str]:
        """Return a line for each `limactl`."""
        found = []
        for label, counts in self._found.items():
            numbers = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
            found.append(f"{label}: {numbers}")
        if self._found.keys() == {STAND_IN}:
            found.append(
                "Lima itself was not tested: there is no limactl on this machine's PATH, or it was left out"
            )
        return found
