"""Two runs side by side: what became faster or slower, and whether that is more than noise."""

from claude_vm.bench.records import Report, counted, success
from claude_vm.bench.stats import percentile
from claude_vm.bench.table import columns, groups, ratio_text

NOISE = 0.10
"""A change of a median by less than this share is not called a change."""


def change(before: float, after: float) -> str:
    """Return a change in words: ``faster``, ``slower`` or ``same``."""
    if before <= 0:
        return "-"
    share = after / before - 1
    if abs(share) < NOISE:
        return "same"
    return "slower" if share > 0 else "faster"


def compare_lines(before: Report, after: Report) -> list[str]:
    """Return the tables of a comparison: samples by mode and pattern, then figures."""
    parts: list[list[str]] = []
    if _machine(before) != _machine(after):
        parts.append(
            [f"Different machines ({_machine(before)}; {_machine(after)}): compare only the ratios."]
        )
    rows = []
    theirs = groups(after.samples)
    for group in groups(before.samples):
        if group not in theirs:
            continue
        old, new = counted(before.samples, *group), counted(after.samples, *group)
        first, second = [s.shown_ms for s in old if s.ok], [s.shown_ms for s in new if s.ok]
        cells = [*group, f"{success(old):.0%}", f"{success(new):.0%}"]
        if not first or not second:
            rows.append((*cells, "-", "-", "-", "-", "-"))
            continue
        a, b = percentile(first, 50), percentile(second, 50)
        tails = f"{percentile(second, 95) / percentile(first, 95):.2f}"
        rows.append((*cells, f"{a:.1f}", f"{b:.1f}", f"{b / a:.2f}", tails, change(a, b)))
    if rows:
        head = ("mode", "pattern", "until", "ok A", "ok B", "p50 A", "p50 B", "B/A", "p95 B/A", "")
        parts.append(columns(head, rows, left=3))
    known = {line.key: line for line in after.lines}
    figures = [
        (line.key, line.what, ratio_text(line), ratio_text(known[line.key]), known[line.key].verdict)
        for line in before.lines
        if line.key in known
    ]
    if figures:
        parts.append(columns(("figure", "what", "A", "B", "verdict B"), figures, left=2))
    if not parts:
        return ["The two runs have nothing in common."]
    return [line for part in parts for line in ("", *part)][1:]


def _machine(report: Report) -> str:
    found = report.environment
    return f"{found.machine}, {found.cpus} x {found.processor}, {found.accelerator}"
