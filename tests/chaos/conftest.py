"""Homes in which something is killed, full or broken; and what must not be left of that."""

import importlib.util
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def load(name, path):
    """Load a module of the tests under a name of its own; once."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


surveys = load("claude_vm_tests_survey", HERE / "survey.py")
for _name in ("endurance", "malformed"):
    load(f"claude_vm_tests_{_name}", HERE / f"{_name}.py")
users = load("claude_vm_tests_user", HERE.parent / "daemon" / "user.py")


@pytest.fixture
def anyio_backend():
    return "asyncio"


def settled_user(root, pool_size):
    """Return a user whose home has a template and a daemon that keeps so many simulated VMs ready."""
    user = users.User(root)
    configure(user, pool_size)
    done = user.run("setup", "--no-agent")
    assert done.returncode == 0, done.stderr.decode()
    user.configure = lambda size: configure(user, size)
    # A first session: it leaves what a template keeps, its time of use
    assert user.run("shell", "true").returncode == 0
    assert user.run("pool", "drain", "--all").returncode == 0
    user.survey = surveys.Survey(user.data, user.json)
    return user


def configure(user, pool_size):
    """Write the user's file: small VMs, and room for them whatever the host has."""
    text = f'[vm]\nmemory = 1\n[pool]\nsize = {pool_size}\nmemory_budget = "64GB"\n'
    (user.home / ".claude-vm.toml").write_text(text)


@pytest.fixture
def user(tmp_path):
    """A user with a template of a simulated VM and nothing kept ready."""
    made = settled_user(tmp_path, 0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def pool_user(tmp_path_factory):
    """A user with one simulated VM kept ready. For a whole module: each test leaves it as it was."""
    made = settled_user(tmp_path_factory.mktemp("pool"), 1)
    yield made
    made.close()
