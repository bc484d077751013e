"""A session that never had a client: its caller, its place, its plan and its life, on a simulated guest."""

import shlex
from contextlib import asynccontextmanager

import anyio
import pytest

from claude_vm.supervisor.daemon.clients.caller import Caller
from claude_vm.supervisor.daemon.clients.workspace import Workspace
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.place.main_command import TEXT_LIMIT, resolve_claude, shell_command
from claude_vm.supervisor.daemon.place.plan import plan_session
from claude_vm.supervisor.daemon.place.resolve import resolve, resolve_target
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.daemon.state import identity
from claude_vm.supervisor.daemon.supervisor import open_supervisor
from claude_vm.supervisor.daemon.templates.current import build_template
from claude_vm.supervisor.grammar.flags import Flags

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
    return await build_template(await resolve_target(workspace), agent=False)


async def test_it_runs_in_its_callers_place_and_has_as_many_readers_as_are_wanted(tmp_path, monkeypatch):
    async with opened(tmp_path, monkeypatch) as workspace:
        template = await built(workspace)
        place = await resolve(workspace)
        assert (place.key.template, place.target.project.root) == (template.name, workspace.caller.cwd)
        words = ("sh", "-c", 'read x; echo "hello$x"; pwd >&2; exit 3')
        session = Session("a1b2c3d4", await plan_session(place, shell_command(words)))
        readers = Reading(), Reading()
        for reader in readers:
            session.outputs.add(reader, counts=False)
        await workspace.supervisor.dispatcher.begin(session)
        with anyio.fail_after(60):
            await session.over.wait()
        assert (session.outcome.status, session.outcome.code) == (3, "")
        for reader in readers:
            assert reader.pieces == {0: b"hello\n", 1: f"{workspace.caller.cwd}\n".encode()}
        assert [ended.plan.command_text for ended in workspace.supervisor.sessions.ended] == [
            shlex.join(words)
        ]


async def test_where_nobody_answers_no_template_is_built(tmp_path, monkeypatch):
    async with opened(tmp_path, monkeypatch) as workspace:
        with pytest.raises(CommandError) as caught:
            await resolve(workspace)
        assert caught.value.code == "template-missing"


async def test_claude_is_refused_what_it_could_do_only_where_its_vm_stays(tmp_path, monkeypatch):
    async with opened(tmp_path, monkeypatch) as workspace:
        await built(workspace)
        for args, code in ((["--bg", "work"], "no-background"), (["work"], "no-agent")):
            with pytest.raises(CommandError) as caught:
                await resolve_claude(workspace, args)
            assert caught.value.code == code


@pytest.mark.parametrize(
    ("words", "mode", "text"),
    [
        ((), "shell", "shell"),
        (("ls | wc",), "eval", "'ls | wc'"),
        (("ls", "a b\n"), "exec", "ls 'a b\\x0a'"),
        (("echo", "x" * 1000), "exec", "echo " + "x" * (TEXT_LIMIT - 6) + "…"),
    ],
)
def test_a_command_of_the_users_is_shown_in_one_line(words, mode, text):
    command = shell_command(words)
    assert (command.mode.value, command.argv, command.text) == (mode, words, text)
