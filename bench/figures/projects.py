"""F15: what a session costs more in a project with very many files: nothing may look at them all."""

from collections.abc import Sequence
from pathlib import Path

from claude_vm.bench.figures.targets import FILES, ratio_line
from claude_vm.bench.lab import Lab
from claude_vm.bench.modes import SessionMode, measure
from claude_vm.bench.plan import Turn, Unit
from claude_vm.bench.records import EXITED, Figures, Line, Sample, counted

FOLDERS = 200
SIZES = (("empty", 0), ("full", FILES))
ROUNDS = 10


def fill(project: Path, files: int) -> None:
    """Make so many empty files, in folders of equal size."""
    for number in range(FOLDERS if files else 0):
        folder = project / f"{number:03}"
        folder.mkdir()
        for index in range(files // FOLDERS):
            (folder / f"{index:04}").touch()


def sizes(lab: Lab, rounds: int) -> Figures:
    """F15: warm sessions in an empty project and in a full one, in turns, from start to exit status."""
    modes: dict[str, SessionMode] = {}
    for name, files in SIZES:
        lab.tell(f"F15: a project with {files} files")
        site = lab.project(f"p-{name}")
        fill(site.project, files)
        modes[name] = SessionMode(site, warm=1)
    samples: list[Sample] = []
    for index in range(-1, min(rounds, ROUNDS)):
        order = SIZES if index % 2 else SIZES[::-1]
        for number, (name, _) in enumerate(order):
            samples += measure(Turn(index, 2 * index + number, Unit(name, kind="output")), modes[name])
    return samples, size_lines(samples)


def size_lines(samples: Sequence[Sample]) -> list[Line]:
    """Return F15's line."""
    full, empty = (
        [s.instants[EXITED] * 1000 for s in counted(samples, name) if s.ok] for name in ("full", "empty")
    )
    return [ratio_line("F15.exit", full, empty)]
