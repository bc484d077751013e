"""The table of `docs/configuration.md`, made from the declarations of settings and flags.

``python tests/grammar/settings_document.py FILE`` puts it between the two markers of a file.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from claude_vm.context.config.kinds import Duration, Switch
from claude_vm.context.config.schema import Entry, settings_table
from claude_vm.context.config.setting import FILES
from claude_vm.supervisor.grammar.declaring import flags_of
from claude_vm.supervisor.grammar.flags import Flags

BEGIN = "<!-- settings: begin -->"
END = "<!-- settings: end -->"
HEAD = ("Key", "Valid", "Default", "May be set by", "What it is")


def document(text: str) -> str:
    """Return a document with the table between its markers brought up to date.

    Raises:
        ValueError: The document has not both markers, once each and in order.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"the document needs {BEGIN} and then {END}, once each")
    return f"{before}{BEGIN}\n{table()}{END}{after}"


def table() -> str:
    """Return the Markdown table of all settings."""
    rows = [HEAD, ("---",) * len(HEAD), *(_row(entry) for entry in settings_table().values())]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |\n" for row in rows)


def _row(entry: Entry) -> tuple[str, ...]:
    setting = entry.setting
    doc = setting.doc
    if setting.adds_up:
        doc += "; the layers' lists add up"
    if setting.later is not None:
        doc += " *(later)*"
    return (f"`{entry.key}`", setting.kind.valid, _default(entry), ", ".join(_layers(entry)), doc)


def _layers(entry: Entry) -> Iterator[str]:
    yield "any file" if entry.files == FILES else "global file"
    if entry.setting.variable:
        yield f"`{entry.setting.variable}`"
    yield from (f"`{flag.name}`" for flag, _ in flags_of(Flags) if entry.key in {flag.sets, flag.adds_to})


def _default(entry: Entry) -> str:
    value = entry.default
    if value is None:
        return "unset"
    if isinstance(entry.setting.kind, Duration):
        return f"`{_span(value)}`"
    if isinstance(entry.setting.kind, Switch):
        return "`true`" if value else "`false`"
    if isinstance(value, tuple):
        return f"`[{', '.join(_quoted(item) for item in value)}]`"
    return f"`{_quoted(value)}`"


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else str(value)


def _span(seconds: int) -> str:
    unit, length = next(
        (u, n) for u, n in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1)) if seconds % n == 0
    )
    return f"{seconds // length}{unit}"


if __name__ == "__main__":  # pragma: no cover - three lines for people
    target = Path(sys.argv[1])
    target.write_text(document(target.read_text()))
