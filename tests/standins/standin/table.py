"""Columns for people."""


def table(rows: list[list[str]]) -> list[str]:
    """Return lines in which each column is four wider than its widest cell; the last one is as it is."""
    widths = [max(len(row[n]) for row in rows) for n in range(len(rows[0]) - 1)]
    return ["    ".join([*map(str.ljust, row, widths), row[-1]]) for row in rows]
