"""What a run of the bench leaves: one JSON document with every sample, so that any figure can be made again.

All instants are seconds after the start of the process that was measured, on ``time.monotonic()``, which is
one clock for all processes of a host: so the daemon's instants and ours can stand side by side.
"""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from claude_vm.bench.errors import BenchError

SCHEMA = 1

SHOWN = "shown"
"""The instant of the first byte of output, or of the whole prompt, on the user's side."""

EXITED = "exited"


class Environment(msgspec.Struct, frozen=True, kw_only=True):
    """Where a run took place. `load` is the one-minute load average before and after it."""

    machine: str
    processor: str
    cpus: int
    memory_mib: int
    system: str
    accelerator: str
    accelerator_reason: str
    versions: dict[str, str]
    template: str = ""
    load: tuple[float, float] = (0.0, 0.0)


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """One measured command.

    `mode` is ``cold``, ``clone``, ``restore``, ``warm``, or the name of a baseline; `kind` is ``prompt`` or
    ``output``. `source` is how the session's VM came (``warm``, ``paused``, ``making``, ``made``), as the
    daemon says.
    Samples of one `unit` were started together. A negative `round` is warm-up and counts for nothing.
    """

    mode: str
    pattern: str = "sequential"
    kind: str = "prompt"
    round: int = 0
    unit: int = 0
    ok: bool = True
    error: str = ""
    source: str = ""
    instants: dict[str, float] = {}

    @property
    def shown_ms(self) -> float:
        """Milliseconds from the start of the process to what the user waits for."""
        return self.instants[SHOWN] * 1000


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """One figure against its target.

    `key` is stable, such as ``F1.p50``. `value` is a ratio, or a quantity in `unit`; None: it was not
    measured, and `note` says why. It shall be at most `bound`, or at least with `at_least`. Not `judged`: for
    information, or for a gate.
    """

    key: str
    what: str
    target: str
    bound: float
    value: float | None = None
    unit: str = "x"
    at_least: bool = False
    measured: str = ""
    note: str = ""
    judged: bool = True

    @property
    def verdict(self) -> str:
        """``ok``, ``miss``, or a dash when there is nothing to judge."""
        if self.value is None or not self.judged or not math.isfinite(self.value):
            return "-"
        good = self.value >= self.bound if self.at_least else self.value <= self.bound
        return "ok" if good else "miss"


Figures = tuple[list[Sample], list[Line]]
"""What a measurement gives: its samples, and a line for each of its figures."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """A whole run. `created_at` is a Unix time in seconds."""

    created_at: float
    environment: Environment
    command: str
    samples: tuple[Sample, ...] = ()
    lines: tuple[Line, ...] = ()
    schema: int = SCHEMA


def write(report: Report, path: Path) -> None:
    """Write a report as JSON.

    Raises:
        BenchError: The file can't be written.
    """
    try:
        path.write_bytes(msgspec.json.format(msgspec.json.encode(report), indent=1) + b"\n")
    except OSError as error:
        raise BenchError(f"{path} can't be written: {error.strerror}") from error


def read(path: Path) -> Report:
    """Read a report.

    Raises:
        BenchError: The file is not there, or is no report of a version that we know.
    """
    try:
        report = msgspec.json.decode(path.read_bytes(), type=Report)
    except OSError as error:
        raise BenchError(f"{path} can't be read: {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise BenchError(f"{path} is not a report of the bench: {error}") from error
    if report.schema != SCHEMA:
        raise BenchError(f"{path} has the schema {report.schema}; this version knows {SCHEMA}")
    return report


def counted(samples: Iterable[Sample], mode: str, pattern: str = "", kind: str = "") -> list[Sample]:
    """Return the samples of a mode that are no warm-up, failed ones too."""
    return [
        sample
        for sample in samples
        if sample.mode == mode
        and sample.round >= 0
        and pattern in {"", sample.pattern}
        and kind in {"", sample.kind}
    ]


def shown_ms(samples: Iterable[Sample], mode: str, pattern: str = "", kind: str = "") -> list[float]:
    """Return the waiting times of the samples that succeeded, in milliseconds."""
    return [sample.shown_ms for sample in counted(samples, mode, pattern, kind) if sample.ok]


def success(samples: Sequence[Sample]) -> float:
    """Return the share of samples that succeeded, 0 to 1; 1 when there are none."""
    return sum(sample.ok for sample in samples) / len(samples) if samples else 1.0
