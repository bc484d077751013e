"""``claude-vm bench run|targets|compare|gate|picture``."""

from typing import Annotated

import typer

from claude_vm.supervisor.grammar.requests import Bench
from claude_vm.supervisor.grammar.runtime import invocation
from claude_vm.supervisor.grammar.usage import whole_number

MOST_ROUNDS = 10_000

Rounds = Annotated[
    int,
    typer.Option("--rounds", parser=whole_number(1, MOST_ROUNDS), metavar="N", help="Rounds that count."),
]
Json = Annotated[str, typer.Option("--json", metavar="FILE", help="Write all samples and figures.")]
Csv = Annotated[str, typer.Option("--csv", metavar="FILE", help="Write the phases of each sample.")]
Picture = Annotated[str, typer.Option("--picture", metavar="FILE", help="Draw waits and phases (png, svg).")]
Result = Annotated[str, typer.Argument(metavar="RESULT", help="A file that --json wrote.")]


def bench(context: typer.Context) -> Bench | None:
    """Measure how long a user waits, against baselines in the same run."""
    return run(context) if context.invoked_subcommand is None else None


def run(
    context: typer.Context,
    *,
    modes: Annotated[
        str, typer.Option("--modes", metavar="LIST", help="Of cold, clone, restore, warm; with commas.")
    ] = "",
    patterns: Annotated[
        str, typer.Option("--patterns", metavar="LIST", help="Of sequential, staggered, burst.")
    ] = "",
    rounds: Rounds = 20,
    json: Json = "",
    csv: Csv = "",
    picture: Picture = "",
) -> Bench:
    """Measure the waits of each mode and pattern in this project."""
    return Bench(
        flags=invocation(context).flags,
        action="run",
        modes=_list(modes),
        patterns=_list(patterns),
        rounds=rounds,
        json=json,
        csv=csv,
        picture=picture,
    )


def targets(
    context: typer.Context,
    figures: Annotated[
        list[str] | None,
        typer.Argument(metavar="[FIGURE]...", help="Such as F1 F10; all when none is named."),
    ] = None,
    rounds: Rounds = 20,
    json: Json = "",
    csv: Csv = "",
) -> Bench:
    """Measure the figures that have a target."""
    return Bench(
        flags=invocation(context).flags,
        action="targets",
        figures=tuple(figures or ()),
        rounds=rounds,
        json=json,
        csv=csv,
    )


def compare(
    context: typer.Context,
    before: Annotated[str, typer.Argument(metavar="A", help="A file that --json wrote.")],
    after: Annotated[str, typer.Argument(metavar="B", help="Another.")],
) -> Bench:
    """Put two results side by side."""
    return Bench(flags=invocation(context).flags, action="compare", files=(before, after))


def gate(
    context: typer.Context,
    file: Annotated[str, typer.Argument(metavar="FILE", help="Bounds, in TOML.")],
    result: Annotated[
        str, typer.Option("--result", metavar="RESULT", help="Judge this result instead of a fresh run.")
    ] = "",
    json: Json = "",
) -> Bench:
    """Fail when a figure of a short run is out of its bounds."""
    return Bench(flags=invocation(context).flags, action="gate", files=(file,), result=result, json=json)


def picture(
    context: typer.Context,
    result: Result,
    file: Annotated[str, typer.Argument(metavar="FILE", help="What to draw: a png or svg file.")],
) -> Bench:
    """Draw the waits and phases of a result."""
    return Bench(flags=invocation(context).flags, action="picture", files=(result, file))


def _list(text: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in text.split(",") if word.strip())
