"""Which figures there are, and what measures each."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from claude_vm.bench.errors import BadRequestError, BenchError
from claude_vm.bench.figures import claims, crowd, endings, guests, idle, projects, ready, streams, waits
from claude_vm.bench.lab import Lab
from claude_vm.bench.records import Figures, Line, Sample

ALONE: Mapping[str, Callable[[Lab, int], Figures]] = {
    "F2": claims.warm,
    "F5": endings.burst,
    "F6": guests.memory,
    "F7": crowd.crowd,
    "F8": streams.streams,
    "F11": endings.ends,
    "F12": guests.agent,
    "F14": endings.starts,
    "F15": projects.sizes,
    "F20": ready.ready,
    "F21": idle.idle,
    "S1": claims.made,
}
"""Figures that are measured by themselves."""

ORDER = (
    *("F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "F10", "F11", "F12", "F14", "F15", "F20", "F21", "S1"),
)

TARGETS = tuple(figure for figure in ORDER if figure.startswith("F"))
"""Those that have a target; the others are for gates."""


def measure(lab: Lab, figures: Sequence[str], rounds: int) -> Figures:
    """Measure figures; those whose waits are compared share one interleaved run.

    A figure that can't be measured here has its lines without a value, or one line that says why.

    Raises:
        BenchError: There is no such figure.
    """
    unknown = [figure for figure in figures if figure not in ORDER]
    if unknown:
        raise BadRequestError(f"there is no figure {unknown[0]}", f"the figures are: {', '.join(ORDER)}")
    samples: list[Sample] = []
    lines: list[Line] = []
    together = [figure for figure in ORDER if figure in figures and figure in waits.UNITS]
    work: list[tuple[str, Callable[[], Figures]]] = []
    if together:
        work.append((together[0], lambda: waits.waits(lab, together, rounds)))
    alone = [figure for figure in ORDER if figure in figures and figure in ALONE]
    work += [(figure, partial(ALONE[figure], lab, rounds)) for figure in alone]
    for figure, do in work:
        try:
            more_samples, more_lines = do()
        except BenchError as error:
            more_samples = []
            more_lines = [Line(key=figure, what="not measured", target="", bound=0.0, note=str(error))]
        samples += more_samples
        lines += more_lines
    return samples, sorted(lines, key=lambda line: ORDER.index(line.key.partition(".")[0]))
