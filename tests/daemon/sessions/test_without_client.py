"""A session that never had a client: its caller, its place, its plan and its life, on a simulated guest."""

from contextlib import asynccontextmanager

import anyio
import pytest

from claude_vm.supervisor.daemon.clients.caller import Caller
from claude_vm.supervisor.daemon.clients.workspace import Workspace
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.place.driver import choose_driver
from claude_vm.supervisor.daemon.place.plan import plan_session
from claude_vm.supervisor.daemon.place.resolve import resolve
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.daemon.state import identity
from claude_vm.supervisor.daemon.supervisor import open_supervisor
from claude_vm.supervisor.daemon.templates.current import build_template
from claude_vm.supervisor.grammar.flags import Flags
from claude_vm.supervisor.ssh.launch import LaunchMode

pytestmark = pytest.mark.anyio


class NoOne:
    """A console that nobody reads."""

    async def say(self, text):
        pass

    say_verbose = warn = say

    async def confirm(self, question):
        return False

    async def unless_interrupted(self, work):
        return await work()

    @asynccontextmanager
    async def progress(self):
        yield lambda phase, detail: None


class Reading:
    def __init__(self):
        self.pieces = {0: b"", 1: b""}

    async def take(self, output, offset, data):
        assert offset == len(self.pieces[output])
        self.pieces[output] += data


@asynccontextmanager
async def opened(tmp_path, monkeypatch):
    """Give a place to stand, of a supervisor of its own."""
    for name in ("home", "project"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    data = tmp_path / "home/.claude-vm"
    async with open_supervisor(data, identity.in_process_id(), in_process=True) as supervisor:
        caller = Caller(
            flags=Flags(driver="sim"),
            cwd=tmp_path.resolve() / "project",
            environ={"HOME": str(tmp_path / "home"), "PATH": "/usr/bin:/bin"},
        )
        yield Workspace(supervisor, caller, NoOne())


async def built(workspace):
    project, settings = await workspace.mountable_project(), await workspace.settings()
    driver = await choose_driver(workspace, settings, project)
    return await build_template(workspace, driver, settings, project, agent=False)


async def test_it_runs_in_its_callers_place_and_has_as_many_readers_as_are_wanted(tmp_path, monkeypatch):
    async with opened(tmp_path, monkeypatch) as workspace:
        template = await built(workspace)
        place = await resolve(workspace)
        assert (place.key.template, place.project.root) == (template.name, workspace.caller.cwd)
        argv = ("sh", "-c", 'read x; echo "hello$x"; pwd >&2; exit 3')
        session = Session(
            "a1b2c3d4", await plan_session(workspace, place, mode=LaunchMode.EXEC, argv=argv, label="hello")
        )
        readers = Reading(), Reading()
        for reader in readers:
            session.outputs.add(reader, counts=False)
        await workspace.supervisor.dispatcher.begin(session)
        with anyio.fail_after(60):
            await session.over.wait()
        assert (session.outcome.status, session.outcome.code) == (3, "")
        for reader in readers:
            assert reader.pieces == {0: b"hello\n", 1: f"{workspace.caller.cwd}\n".encode()}
        assert [ended.plan.label for ended in workspace.supervisor.sessions.ended] == ["hello"]


async def test_where_nobody_answers_no_template_is_built(tmp_path, monkeypatch):
    async with opened(tmp_path, monkeypatch) as workspace:
        with pytest.raises(CommandError) as caught:
            await resolve(workspace)
        assert caught.value.code == "template-missing"
