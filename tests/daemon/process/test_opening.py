"""What the daemon, and a supervisor inside a client, open their supervisor with."""

from contextlib import asynccontextmanager

import pytest

from claude_vm.drivers.api import InstanceSpec
from claude_vm.supervisor.daemon.pool import admission
from claude_vm.supervisor.daemon.process import in_client, main

pytestmark = pytest.mark.anyio

SPEC = InstanceSpec("i-0123456789", "t", "g", cpus=1, memory_mib=1024, disk_gib=20)


class OpenedError(Exception):
    """The supervisor was opened; that is all that is looked at."""


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """Return the arguments with which a supervisor is opened, in a home that wants three VMs ready."""
    seen = {}

    @asynccontextmanager
    async def open_supervisor(home, supervisor_id, **more):
        seen.update(more, home=home)
        raise OpenedError
        yield

    monkeypatch.setattr(main, "open_supervisor", open_supervisor)
    monkeypatch.setattr(in_client, "open_supervisor", open_supervisor)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CLAUDE_VM_HOME", raising=False)
    (tmp_path / ".claude-vm").mkdir()
    (tmp_path / ".claude-vm.toml").write_text("[pool]\nsize = 3\n")
    return seen


async def open_daemon(tmp_path):
    await main.run_daemon(tmp_path / ".claude-vm", idle_s=1.0, ready=lambda: None)


async def open_inside_a_client(tmp_path):
    server = in_client._InClientServer(None, tmp_path / ".claude-vm", "p1", None)
    await server._serve()


@pytest.mark.parametrize("open_it", [open_daemon, open_inside_a_client])
async def test_no_clone_is_begun_without_room(opened, tmp_path, monkeypatch, open_it):
    with pytest.raises(OpenedError):
        await open_it(tmp_path)
    monkeypatch.setattr(admission, "DISK_MARGIN_BYTES", 0)
    monkeypatch.setattr(admission, "MEMORY_MARGIN_MIB", 0)
    monkeypatch.setattr(admission, "MEMORY_SHARE", 0)
    opened["admit"](SPEC)
    monkeypatch.setattr(admission, "DISK_MARGIN_BYTES", 1 << 70)
    with pytest.raises(admission.DiskFullError):
        opened["admit"](SPEC)


async def test_the_daemon_keeps_ready_what_its_users_file_says(opened, tmp_path):
    with pytest.raises(OpenedError):
        await open_daemon(tmp_path)
    assert opened["policy"].size == 3


async def test_a_daemon_with_a_wrong_file_keeps_nothing_ready(opened, tmp_path):
    (tmp_path / ".claude-vm.toml").write_text("[pool]\nsize = -3\n")
    with pytest.raises(OpenedError):
        await open_daemon(tmp_path)
    assert opened["policy"].size == 0


async def test_a_supervisor_inside_a_client_keeps_nothing_ready(opened, tmp_path):
    with pytest.raises(OpenedError):
        await open_inside_a_client(tmp_path)
    assert "policy" not in opened
