"""Fixtures of the QEMU driver's tests."""

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
        yield Path(name)


@pytest.fixture
def owner(tmp_path, short):
    return Owner(tmp_path / "home", "sv-test", short)
