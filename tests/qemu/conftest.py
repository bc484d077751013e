"""Fixtures of the QEMU driver's tests."""

import importlib.util
import tempfile
from pathlib import Path

import pytest

import claude_vm.drivers.api
from claude_vm.drivers.api import Owner

GUEST = Path(claude_vm.drivers.api.__file__).with_name("guest")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def helper():
    """The guest helper's module, which nothing on the host imports otherwise."""
    spec = importlib.util.spec_from_file_location("guest_helper", GUEST / "helper.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def short():
    """A folder whose path leaves room for the name of a socket."""
    with tempfile.TemporaryDirectory(prefix="cv") as name:
        yield Path(name)


@pytest.fixture
def owner(tmp_path, short):
    return Owner(tmp_path / "home", "sv-test", short)
