"""Fixtures of the Lima driver's tests."""

import tempfile
from pathlib import Path

import pytest

from claude_vm.drivers.api import Owner


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def short():
    """A folder whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="cv") as name:
        yield Path(name).resolve()


@pytest.fixture
def owner(short):
    (short / "run").mkdir(mode=0o700)
    return Owner(short / "home", "sv-test", short / "run")
