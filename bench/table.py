"""Reports for people: plain tables."""

from collections.abc import Sequence

from claude_vm.bench.records import Line, Report, Sample, counted, success
from claude_vm.bench.stats import percentile
from claude_vm.supervisor.wire.escape import escape_cell


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> list[str]:
    """Return aligned columns, line by line; the first `left` ones and the last are flush left."""
    shown = [[escape_cell(cell) for cell in row] for row in (head, *rows)]
    widths = [max(len(row[index]) for row in shown) for index in range(len(head))]
    lines = []
    for row in shown:
        cells = [
            cell.ljust(width) if index < left or index == len(head) - 1 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return lines


def groups(samples: Sequence[Sample]) -> list[tuple[str, str, str]]:
    """Return the (mode, pattern, kind) that there are, in order of appearance."""
    return list(dict.fromkeys((s.mode, s.pattern, s.kind) for s in samples if s.round >= 0))


def samples_table(samples: Sequence[Sample]) -> list[str]:
    """Return the waiting times by mode and pattern, in milliseconds."""
    rows = []
    for mode, pattern, kind in groups(samples):
        of_group = counted(samples, mode, pattern, kind)
        good = [sample.shown_ms for sample in of_group if sample.ok]
        figures = ["-"] * 5
        if good:
            figures = [f"{percentile(good, percent):.1f}" for percent in (50, 95, 99, 0, 100)]
        errors = {sample.error for sample in of_group if sample.error}
        rows.append(
            (mode, pattern, kind, str(len(of_group)), f"{success(of_group):.0%}", *figures, _short(errors))
        )
    head = ("mode", "pattern", "until", "n", "success", "p50", "p95", "p99", "min", "max", "ms")
    return columns(head, rows, left=3)


def _short(errors: set[str]) -> str:
    text = "; ".join(sorted(errors))
    return text if len(text) <= 60 else text[:59] + "…"


def ratio_text(line: Line) -> str:
    """Return how a line's ratio is shown: its own, or that of the quantity to its bound."""
    if line.value is None:
        return "-"
    if line.unit == "x":
        return f"{line.value:.2f}"
    return f"{line.value / line.bound:.2f}" if line.bound else "-"


def lines_table(lines: Sequence[Line]) -> list[str]:
    """Return the figures against their targets; what was noted stands beneath, by number."""
    notes: list[str] = []
    rows = []
    for line in lines:
        mark = ""
        if line.note:
            if line.note not in notes:
                notes.append(line.note)
            mark = f" [{notes.index(line.note) + 1}]"
        measured = line.measured or "not measured"
        rows.append((line.key, line.what, line.target, measured, ratio_text(line), line.verdict + mark))
    shown = columns(("figure", "what", "target", "measured", "ratio", "verdict"), rows, left=4)
    return [*shown, *(f"[{number}] {note}" for number, note in enumerate(notes, 1))]


def environment_lines(report: Report) -> list[str]:
    """Return where a run took place, in a few lines."""
    found = report.environment
    versions = ", ".join(f"{name} {version}" for name, version in found.versions.items())
    load = f"load {found.load[0]:.1f} before, {found.load[1]:.1f} after"
    lines = [
        f"{found.machine}, {found.cpus} x {found.processor}, {found.memory_mib} MiB, {found.system}",
        f"accelerator {found.accelerator} ({found.accelerator_reason}); {load}",
        versions,
    ]
    return [*lines, *([f"template {found.template}"] if found.template else [])]


def report_lines(report: Report) -> list[str]:
    """Return a whole report for a terminal, line by line."""
    lines = environment_lines(report)
    if report.samples:
        lines += ["", *samples_table(report.samples)]
    if report.lines:
        lines += ["", *lines_table(report.lines)]
    return lines
