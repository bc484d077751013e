"""The picture of a run: a box for each mode, and where its time goes."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from claude_vm.bench import phases
from claude_vm.bench.errors import BenchError
from claude_vm.bench.records import SHOWN, Report, Sample, counted
from claude_vm.bench.stats import percentile
from claude_vm.bench.table import groups

SMALLEST_SHARE = 0.04
"""A phase with a smaller share of its bar has no number in it: there is no room."""


_NO_LIBRARY, _INSTALL = "the picture needs matplotlib", "install the extra: pip install 'claude-vm[bench]'"
FORMATS = (".png", ".svg", ".pdf")


def check(path: Path) -> None:
    """Notice early what `draw` could not do.

    Raises:
        BenchError: There is no library to draw with, or the file's ending says nothing.
    """
    if path.suffix.lower() not in FORMATS:
        raise BenchError(
            f"{path} is not the name of a picture", f"its name must end with one of {', '.join(FORMATS)}"
        )
    if importlib.util.find_spec("matplotlib") is None:
        raise BenchError(_NO_LIBRARY, _INSTALL)


def draw(report: Report, path: Path) -> None:
    """Draw a report; the file's ending says how.

    Raises:
        BenchError: There is nothing to draw, no library to draw with, or the file can't be written.
    """
    shown = [group for group in groups(report.samples) if _good(report.samples, group)]
    if not shown:
        raise BenchError("the result has no samples to draw")
    try:
        import matplotlib as mpl  # noqa: PLC0415 - an extra, and heavy

        mpl.use("Agg")
        mpl.rcParams["svg.fonttype"] = "none"  # text stays text
        from matplotlib import pyplot as plt  # noqa: PLC0415 - likewise
    except ImportError as error:
        raise BenchError(_NO_LIBRARY, _INSTALL) from error
    figure, (boxes, bars) = plt.subplots(
        1, 2, figsize=(15, 2.2 + 0.55 * len(shown)), width_ratios=(1, 1.25), layout="constrained"
    )
    labels = [
        f"{mode} {pattern}\n({kind}, n={len(_good(report.samples, (mode, pattern, kind)))})"
        for mode, pattern, kind in shown
    ]
    _draw_boxes(boxes, [[s.shown_ms for s in _good(report.samples, group)] for group in shown], labels)
    _draw_phases(bars, [_good(report.samples, group) for group in shown], plt)
    found = report.environment
    figure.suptitle(
        f"claude-vm {found.versions.get('claude-vm', '')}: what a user waits for"
        f"  ({found.cpus} CPUs, {found.accelerator})",
        fontsize=13,
    )
    try:
        figure.savefig(path, dpi=110)
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} can't be drawn: {error}") from error
    finally:
        plt.close(figure)


def _good(samples: Sequence[Sample], group: tuple[str, str, str]) -> list[Sample]:
    return [sample for sample in counted(samples, *group) if sample.ok]


def _medians(samples: Sequence[Sample]) -> dict[str, float]:
    """Return the median milliseconds of each phase until what the user waits for."""
    each = [phases.phases_ms(sample, until=SHOWN) for sample in samples]
    names = phases.ordered(name for found in each for name in found)
    return {name: percentile([found.get(name, 0.0) for found in each], 50) for name in names}


def _draw_boxes(axes: Any, values: Sequence[Sequence[float]], labels: Sequence[str]) -> None:
    axes.boxplot(
        values,
        orientation="horizontal",
        whis=(5, 95),
        showfliers=True,
        widths=0.6,
        flierprops={"marker": ".", "markersize": 4},
        medianprops={"color": "C1", "linewidth": 2},
    )
    axes.set_yticks(range(1, len(labels) + 1), labels)
    axes.set_ylim(len(labels) + 0.5, 0.3)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("milliseconds from the start of the command (log scale)")
    axes.set_title("Waiting time: box 25-75 %, whiskers 5-95 %")
    axes.grid(axis="x", which="both", alpha=0.25)
    for number, of_group in enumerate(values, 1):
        axes.annotate(
            f"{percentile(of_group, 50):.0f}",
            (percentile(of_group, 50), number - 0.36),
            ha="center",
            va="bottom",
            fontsize=8,
        )


def _draw_phases(axes: Any, samples: Sequence[Sequence[Sample]], plt: Any) -> None:
    """Draw one bar a group, in percent of its whole: a boot beside a warm claim would hide the latter."""
    medians = [_medians(of_group) for of_group in samples]
    totals = [percentile([sample.shown_ms for sample in of_group], 50) for of_group in samples]
    names = phases.ordered(name for found in medians for name in found)
    colours = dict(zip(names, plt.cm.tab20(range(len(names))), strict=False))
    for row, found in enumerate(medians):
        whole, left = sum(found.values()) or 1.0, 0.0
        for name in names:
            share = found.get(name, 0.0) / whole
            if share <= 0:
                continue
            axes.barh(row, share * 100, left=left * 100, color=colours[name], height=0.6, edgecolor="white")
            if share >= SMALLEST_SHARE:
                axes.text(
                    (left + share / 2) * 100, row, f"{found[name]:.0f}", ha="center", va="center", fontsize=8
                )
            left += share
        axes.text(101, row, f"{totals[row]:.0f} ms", va="center", fontsize=9)
    axes.set_yticks(range(len(samples)), [""] * len(samples))
    axes.set_ylim(len(samples) - 0.5, -0.7)
    axes.set_xlim(0, 114)
    axes.set_xticks(range(0, 101, 20))
    axes.set_xlabel("percent of the waiting time; numbers are milliseconds (medians)")
    axes.set_title("Where the time goes")
    handles = [plt.Rectangle((0, 0), 1, 1, color=colours[name]) for name in names]
    axes.legend(handles, names, loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, title="phase")
