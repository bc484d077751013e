"""Names that a reader meets in one place only."""

import ast
from collections import Counter
from pathlib import Path

TREE = Path(__file__).resolve().parents[2]
PRODUCT = ("bench", "context", "drivers", "supervisor")


def test_each_class_name_is_used_once():
    found = Counter(
        node.name
        for folder in PRODUCT
        for path in (TREE / folder).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    )
    assert len(found) > 300
    assert [name for name, times in found.items() if times > 1] == []
