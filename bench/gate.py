"""Bounds that a run must keep: a TOML file, applied to the figures of one run.

::

    [run]
    rounds = 20                  # of a fresh run
    attempts = 3                 # a bound is broken when each of them breaks it
    figures = ["F2", "F10"]      # what it measures

    [[bound]]
    figure = "F2.p50"            # a line of ``bench targets``
    max = 3.0                    # or: min
    why = "…"
    may_be_missing = true        # only where a host or a version can't measure it

A gate's bounds are looser than the targets: a target says what is good, a gate what is a regression on a
noisy machine. So a bound is a ratio, whose two sides were measured beside each other, and what breaks it is
measured again: noise comes and goes, a regression stays.
"""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec

from claude_vm.bench.errors import BenchError
from claude_vm.bench.records import Line


class GateRun(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a fresh run for this gate measures, and how often."""

    figures: tuple[str, ...]
    rounds: Annotated[int, msgspec.Meta(ge=1)] = 20
    attempts: Annotated[int, msgspec.Meta(ge=1)] = 1


class Bound(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One bound. Exactly one of `max` and `min` is set."""

    figure: str
    why: str
    max: float | None = None
    min: float | None = None
    may_be_missing: bool = False


class Gate(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A gate file."""

    run: GateRun
    bound: Annotated[tuple[Bound, ...], msgspec.Meta(min_length=1)]


class Verdict(msgspec.Struct, frozen=True):
    """What became of one bound. `text` is for people."""

    figure: str
    kept: bool
    text: str


def read_gate(path: Path) -> Gate:
    """Read a gate file.

    Raises:
        BenchError: It is not there, is no TOML, or says something that no gate says.
    """
    try:
        gate = msgspec.convert(tomllib.loads(path.read_text()), type=Gate)
    except OSError as error:
        raise BenchError(f"{path} can't be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise BenchError(f"{path} is not a gate: {error}") from error
    for bound in gate.bound:
        if (bound.max is None) == (bound.min is None):
            raise BenchError(f"{path}: {bound.figure} needs either max or min")
    return gate


def judge(gate: Gate, lines: Sequence[Line]) -> list[Verdict]:
    """Return what becomes of each bound. A figure that is not there breaks it, unless it may be missing."""
    known = {line.key: line for line in lines}
    return [_judge(bound, known.get(bound.figure)) for bound in gate.bound]


def _judge(bound: Bound, line: Line | None) -> Verdict:
    limit = f"at most {bound.max:g}" if bound.max is not None else f"at least {bound.min:g}"
    if line is None or line.value is None:
        why = line.note if line is not None and line.note else "it is not in this run"
        word = "skipped" if bound.may_be_missing else "FAILED"
        return Verdict(
            bound.figure, bound.may_be_missing, f"{word}  {bound.figure}: not measured ({why}); {limit}"
        )
    kept = not (
        (bound.max is not None and not line.value <= bound.max)
        or (bound.min is not None and not line.value >= bound.min)
    )
    unit = "" if line.unit == "x" else f" {line.unit}"
    text = f"{bound.figure}: {line.value:.3g}{unit}, {limit} ({line.measured or line.what})"
    return Verdict(bound.figure, kept, f"ok      {text}" if kept else f"FAILED  {text}; {bound.why}")


def broken_figures(verdicts: Sequence[Verdict]) -> tuple[str, ...]:
    """Return the figures, as `bench targets` takes them, whose bounds are broken."""
    return tuple(dict.fromkeys(verdict.figure.split(".")[0] for verdict in verdicts if not verdict.kept))


def retried(before: Sequence[Verdict], again: Sequence[Verdict]) -> list[Verdict]:
    """Return the verdicts after another attempt at what was broken."""
    return [old if old.kept else new for old, new in zip(before, again, strict=True)]


def gate_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the verdicts, and the sum of them."""
    failed = [verdict.figure for verdict in verdicts if not verdict.kept]
    end = f"out of bounds: {', '.join(failed)}" if failed else f"all {len(verdicts)} bounds are kept"
    return [*(verdict.text for verdict in verdicts), end]
