"""``claude-vm bench run|targets|compare|gate|picture``."""

from typing import Annotated

from claude_vm.supervisor.grammar.declaring import Argument, Flag, whole_number, words_with_commas
from claude_vm.supervisor.grammar.requests import Group, Request

MOST_ROUNDS = 10_000

Rounds = Annotated[
    int, Flag("--rounds", "Number of rounds to measure.", metavar="N", read=whole_number(1, MOST_ROUNDS))
]
JsonFile = Annotated[str, Flag("--json", "Write all samples and figures.", metavar="FILE")]
CsvFile = Annotated[str, Flag("--csv", "Write the phases of each sample.", metavar="FILE")]
ResultFile = Annotated[str, Argument("RESULT", "A file that --json wrote.")]


class Bench(Request, frozen=True):
    """Base of the commands that measure; files are as they were typed, and "" when they are not given."""


class BenchRun(Bench, frozen=True):
    """Measure the waits of each mode and pattern in this project."""

    command = "run"
    modes: Annotated[
        tuple[str, ...],
        Flag("--modes", "Some of cold,clone,restore,warm.", metavar="LIST", read=words_with_commas),
    ] = ()
    patterns: Annotated[
        tuple[str, ...],
        Flag("--patterns", "Some of sequential,staggered,burst.", metavar="LIST", read=words_with_commas),
    ] = ()
    rounds: Rounds = 20
    json: JsonFile = ""
    csv: CsvFile = ""
    picture: Annotated[str, Flag("--picture", "Draw waits and phases (png, svg).", metavar="FILE")] = ""


class BenchTargets(Bench, frozen=True):
    """Measure the figures that have a target."""

    command = "targets"
    figures: Annotated[tuple[str, ...], Argument("[FIGURE]...", "Such as F1 F10; default: all.")] = ()
    rounds: Rounds = 20
    json: JsonFile = ""
    csv: CsvFile = ""


class BenchCompare(Bench, frozen=True):
    """Put two results side by side."""

    command = "compare"
    before: Annotated[str, Argument("A", "A file that --json wrote.")]
    after: Annotated[str, Argument("B", "Another.")]


class BenchGate(Bench, frozen=True):
    """Fail if a figure of a short run is out of its bounds."""

    command = "gate"
    file: Annotated[str, Argument("FILE", "Bounds, in TOML.")]
    result: Annotated[
        str, Flag("--result", "Judge this result instead of a fresh run.", metavar="RESULT")
    ] = ""
    json: JsonFile = ""


class BenchPicture(Bench, frozen=True):
    """Draw the waits and phases of a result."""

    command = "picture"
    result: ResultFile
    file: Annotated[str, Argument("FILE", "What to draw: a png or svg file.")]


BENCH = Group(
    "bench",
    "Measure how long a user waits, against baselines in the same run.",
    (BenchRun, BenchTargets, BenchCompare, BenchGate, BenchPicture),
    alone=BenchRun,
)
