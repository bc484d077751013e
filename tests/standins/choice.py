"""Which `limactl` a test runs: the stand-in beside this file, or the real one where the machine has it.

As a program it runs a command with the stand-in first on ``PATH``, then with the real one, if there is one;
each time with ``--limactl`` at its end. A report never calls the stand-in Lima: see `Tally`.
"""

import functools
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
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


@functools.cache
def choices(wanted: str) -> tuple[Choice, ...]:
    """Return what there is of ``all``, ``stand-in`` or ``real``: the stand-in always, the real one maybe."""
    found = (Choice(STAND_IN, None),) if wanted != "real" else ()
    real = _real() if wanted != "stand-in" else None
    return found if real is None else (*found, real)


def on_path() -> str:
    """Return the label of the `limactl` that comes first on ``PATH``; nothing when there is none."""
    found = shutil.which("limactl")
    version = _version(found) if found else ""
    return STAND_IN if _MARK in version else version


def _real() -> Choice | None:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        path = shutil.which("limactl", path=folder)
        version = _version(path) if path else ""
        if path and version and _MARK not in version:
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


def main() -> int:
    """Run the command that the arguments are, once with each `limactl`; return the first bad status."""
    failed = 0
    for kind in ("stand-in", "real"):
        for choice in choices(kind):
            with tempfile.TemporaryDirectory(prefix="limactl-") as folder:
                path = os.pathsep.join([str(choice.install(Path(folder))), os.environ.get("PATH", "")])
                name = choice.label if choice.program else f"the {choice.label}"
                sys.stdout.write(f"== with {name}\n")
                sys.stdout.flush()
                command, env = [*sys.argv[1:], f"--limactl={kind}"], os.environ | {"PATH": path}
                status = subprocess.run(command, env=env, check=False).returncode
                failed = failed or abs(status)
    return failed


if __name__ == "__main__":
    sys.exit(main())
