"""What is a driver's own business stays with the drivers: nobody else goes by their names."""

import ast
import re
from pathlib import Path

import pytest

import claude_vm
from claude_vm.drivers.registry import DRIVERS

ANY = "|".join(DRIVERS)
SETTINGS = "config/schema.py"


def strings(file):
    """The strings of a module with their lines, but for those that only explain it."""
    nodes = list(ast.walk(ast.parse(file.read_bytes())))
    explanations = {node.value for node in nodes if isinstance(node, ast.Expr)}
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in explanations:
            yield node.lineno, node.value


# The bench has modes and folders that are called after what they measure.
@pytest.mark.parametrize(
    ("part", "pattern"),
    [("supervisor", rf"\b({ANY})\b"), ("context", rf"\b({ANY})\b"), ("bench", rf"^({ANY})$")],
)
def test_no_driver_is_named_outside_of_the_drivers_and_the_settings(part, pattern):
    (packages,) = claude_vm.__path__
    files = [file for file in Path(packages, part).rglob("*.py") if not file.match(SETTINGS)]
    assert files
    named = [
        f"{file}:{line}: {text}" for file in files for line, text in strings(file) if re.search(pattern, text)
    ]
    assert named == []
