"""F2 and S1: what the supervisor adds to a claim, on simulated guests.

Both sides are claims by a client that runs already: over a unix socket, to the first output of a command in a
simulated guest. One goes through the supervisor, the other through a program that does the least (`bare`).
They take turns, so the difference is paired.
"""

import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from claude_vm.bench.errors import UnavailableError
from claude_vm.bench.figures.targets import added_line, ratio_line
from claude_vm.bench.lab import POOL, Lab
from claude_vm.bench.marks import instants_of
from claude_vm.bench.records import SHOWN, Figures, Line, Sample
from claude_vm.bench.sims.conversation import Conversation
from claude_vm.bench.sims.programs import bare_claim, running
from claude_vm.bench.site import Site
from claude_vm.bench.stats import percentile

WORDS = ("shell", "echo", "ready")
WARM_UP = 3


def claim(site: Site) -> tuple[float, str]:
    """Run one session through the daemon; return the seconds to its first output, and what went wrong.

    Raises:
        BenchError: The daemon takes no claim.
    """
    talk = Conversation(site, WORDS)
    try:
        talk.wait()
    finally:
        talk.close()
    if talk.output_at is None or talk.status != 0:
        return 0.0, talk.said or f"exit status {talk.status}"
    return talk.output_at - talk.begun_at, ""


def in_turns(
    ours: Callable[[], tuple[float, str]],
    bare: Callable[[], float],
    *,
    names: tuple[str, str],
    rounds: int,
    settle: Callable[[], None] = lambda: None,
) -> list[Sample]:
    """Measure both sides in turns, in an order that changes; the first `WARM_UP` rounds don't count.

    `settle` returns when the machine has nothing to do for either side.
    """
    chance = random.Random(1)  # noqa: S311 - an order, no secret
    samples = []

    def measure_ours(index: int) -> Sample:
        taken, error = ours()
        instants = {} if error else {SHOWN: taken}
        return _sample(names[0], index, instants, error)

    def measure_bare(index: int) -> Sample:
        return _sample(names[1], index, {SHOWN: bare()}, "")

    for index in range(-WARM_UP, rounds):
        sides = [measure_ours, measure_bare]
        chance.shuffle(sides)
        for side in sides:
            settle()
            samples.append(side(index))
    return samples


def _sample(mode: str, index: int, instants: dict[str, float], error: str) -> Sample:
    return Sample(mode=mode, kind="output", round=index, ok=not error, error=error, instants=instants)


def pairs_ms(samples: list[Sample], names: tuple[str, str]) -> tuple[list[float], list[float]]:
    """Return the waiting times of both sides, of the rounds where both succeeded."""
    sides: list[dict[int, float]] = [
        {s.round: s.shown_ms for s in samples if s.mode == name and s.ok and s.round >= 0} for name in names
    ]
    rounds = sorted(sides[0].keys() & sides[1].keys())
    return [sides[0][n] for n in rounds], [sides[1][n] for n in rounds]


def made(lab: Lab, rounds: int) -> Figures:
    """S1: a session whose guest is made for it."""
    site = lab.simulated("sim-made")
    names = ("sim made", "bare made")
    with tempfile.TemporaryDirectory(prefix="cvb-") as folder, running("bare", folder, "0"):
        lab.tell("S1: claims of simulated guests that are made for them")
        samples = in_turns(
            lambda: claim(site), lambda: bare_claim(Path(folder) / "s"), names=names, rounds=rounds
        )
    return samples, made_lines(samples, names)


def made_lines(samples: list[Sample], names: tuple[str, str]) -> list[Line]:
    """Return S1's lines."""
    return [ratio_line(key, *pairs_ms(samples, names)) for key in ("S1.p50", "S1.p95")]


def warm(lab: Lab, rounds: int) -> Figures:
    """F2: a warm claim."""
    names = ("sim warm", "bare warm")
    try:
        site = lab.simulated("sim-warm", pool=f"size = {POOL}\n")
        site.fill(POOL)
    except UnavailableError as error:
        return [], [replace(line, note=str(error)) for line in warm_lines([], names)]

    with tempfile.TemporaryDirectory(prefix="cvb-") as folder, running("bare", folder, str(POOL)):
        lab.tell("F2: warm claims of simulated guests")
        samples = in_turns(
            lambda: claim(site),
            lambda: bare_claim(Path(folder) / "s"),
            names=names,
            rounds=rounds,
            # A refill of one side must not run beside a claim of the other.
            settle=lambda: site.fill(POOL),
        )
    note = _note_on(site.sessions())
    return samples, [replace(line, note=note) for line in warm_lines(samples, names)]


def _note_on(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say which claims were not warm, and what of the time was the daemon's and what the guest's."""
    cold = sum(row.get("source") != "warm" for row in rows)
    notes = [f"{cold} of {len(rows)} claims were not warm"] if cold else []
    for what, begin, end in (("the daemon", "requested", "start"), ("the guest", "start", "first-output")):
        instants = [instants_of(row) for row in rows]
        taken = [(found[end] - found[begin]) * 1000 for found in instants if {begin, end} <= found.keys()]
        if taken:
            notes.append(f"{what} {percentile(taken, 50):.1f} ms")
    return ", ".join(notes)


def warm_lines(samples: list[Sample], names: tuple[str, str]) -> list[Line]:
    """Return F2's lines."""
    sides = pairs_ms(samples, names)
    return [added_line("F2.p50", *sides), added_line("F2.p95", *sides), ratio_line("F2.ratio", *sides)]
