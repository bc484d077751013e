"""Fixtures of the QEMU driver's tests."""

import importlib.util
import sys
import tempfile
from pathlib import Path

import pytest

from claude_vm.drivers.api import Owner


def load(name, path):
    """Load a module of the tests under a name of its own; once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


load("claude_vm_tests_data_folder", Path(__file__).parents[1] / "data_folder.py")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def short():
    """A folder whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="cv") as name:
        yield Path(name)


@pytest.fixture
def owner(tmp_path, short):
    return Owner(tmp_path / "home", "sv-test", short)
