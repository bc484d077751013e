"""Plain tables and quantities for listings."""

from collections.abc import Sequence

from claude_vm.supervisor.wire.escape import escape_cell


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return aligned columns, two spaces apart, line by line; the last column is not padded.

    Each row is one line, whatever the names in it are: a guest can make some of them.
    """
    lines = [head, *([escape_cell(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head) - 1)]
    return [
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[-1]])
        for line in lines
    ]


def ago(seconds: float) -> str:
    """Return a duration in its largest fitting unit, as in ``42 s`` or ``3 h``."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def size_text(size_bytes: float) -> str:
    """Return a size in bytes as people read it, as in ``1.4 GB`` (powers of 1024)."""
    for unit, factor in (("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)):
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f} {unit}"
    return f"{size_bytes:.0f} B"
