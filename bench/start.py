"""How long a user waits: whole commands, timed from their start to their end, next to a bare interpreter.

Usage: ``python -m claude_vm.bench.start [--runs N]`` in a project that has a template. Prints a table of
milliseconds. The full bench (phases, modes, gates) comes with the warm pool; this is its smallest part.
"""

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

COMMANDS: Sequence[tuple[str, Sequence[str]]] = (
    ("python -c pass", (sys.executable, "-c", "pass")),
    ("claude-vm --version", ("claude-vm", "--version")),
    ("claude-vm ps", ("claude-vm", "ps")),
    ("claude-vm shell true", ("claude-vm", "shell", "true")),
)


def measure(argv: Sequence[str]) -> float:
    """Return the wall time of a command, in milliseconds.

    Raises:
        CalledProcessError: It failed, so its time means nothing.
    """
    program = Path(sys.executable).with_name("claude-vm") if argv[0] == "claude-vm" else argv[0]
    begun = time.perf_counter()
    subprocess.run([program, *argv[1:]], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    return (time.perf_counter() - begun) * 1000


def main() -> int:
    """Time every command in turn, round by round, so that a noisy machine hits all of them."""
    parser = argparse.ArgumentParser(prog="claude_vm.bench.start")
    parser.add_argument("--runs", type=int, default=10, help="rounds after one that does not count")
    runs = parser.parse_args().runs
    times: dict[str, list[float]] = {name: [] for name, _ in COMMANDS}
    try:
        for number in range(runs + 1):
            for name, argv in COMMANDS:
                taken = measure(argv)
                if number:
                    times[name].append(taken)
    except subprocess.CalledProcessError as error:
        sys.stderr.write(error.stderr.decode(errors="replace"))
        return 1
    bare = statistics.median(times[COMMANDS[0][0]])
    lines = [f"{'command':<22}{'min':>9}{'median':>9}{'max':>9}  ms   of a bare interpreter"]
    for name, measured in times.items():
        median = statistics.median(measured)
        figures = "".join(f"{figure:>9.1f}" for figure in (min(measured), median, max(measured)))
        lines.append(f"{name:<22}{figures}{median / bare:>10.1f} x")
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
