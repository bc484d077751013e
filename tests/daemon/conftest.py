import importlib.util
import sys
from pathlib import Path

import pytest


def load(name):
    """Load a module that lies beside this file."""
    spec = importlib.util.spec_from_file_location(
        f"claude_vm_tests_{name}", Path(__file__).with_name(f"{name}.py")
    )
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


memory = load("memory")
users = load("user")


@pytest.fixture(autouse=True)
def validated(monkeypatch):
    """Each supervisor in this process validates its core after each event."""
    monkeypatch.setenv("CLAUDE_VM_VALIDATE", "1")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """VMs in memory, and a folder with the journal of their supervisor."""
    return memory.World(tmp_path, monkeypatch)


@pytest.fixture
def user(tmp_path):
    made = users.User(tmp_path)
    yield made
    made.close()


@pytest.fixture
def ready(user):
    """A user whose project has a template."""
    done = user.run("setup", "--no-agent")
    assert done.returncode == 0, done.stderr.decode()
    return user
