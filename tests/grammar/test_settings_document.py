"""`docs/configuration.md` says what the declarations say."""

import runpy
from pathlib import Path

import pytest

from claude_vm.context.config.schema import settings_table

_made = runpy.run_path(str(Path(__file__).with_name("settings_document.py")))
BEGIN, END, document, table = (_made[name] for name in ("BEGIN", "END", "document", "table"))

DOCUMENT = Path(__file__).parents[2] / "docs/configuration.md"


def test_table_in_the_document_is_that_of_the_declarations():
    text = DOCUMENT.read_text()
    assert document(text) == text


def test_table_has_a_row_for_every_setting_and_as_many_cells():
    rows = table().splitlines()[2:]
    assert len(rows) == len(settings_table())
    for row, entry in zip(rows, settings_table().values(), strict=True):
        assert row.startswith(f"| `{entry.key}` |")
        assert row.replace("\\|", "").count("|") == 6


@pytest.mark.parametrize("text", ["", BEGIN, END, END + BEGIN, BEGIN + BEGIN + END, BEGIN + END + END])
def test_document_without_its_markers_is_refused(text):
    with pytest.raises(ValueError, match="needs"):
        document(text)


def test_what_stands_around_the_table_stays():
    assert document(f"a{BEGIN}old{END}b") == f"a{BEGIN}\n{table()}{END}b"
