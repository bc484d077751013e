"""`ps --story`: what happened to a session or a VM, and what is told of an id that has no story."""

import json
from types import SimpleNamespace

import msgspec
import pytest

from claude_vm.supervisor.core import events
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.story import FINISHED_KEYS, NOTE_LENGTH, STEPS_PER_KEY
from claude_vm.supervisor.daemon.commands.ps import ps
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.grammar.commands.sessions import Ps

pytestmark = pytest.mark.anyio

KEY = PoolKey("sim", "t", "g1", cpus=2, memory_mib=512, disk_gib=4)


class Told:
    """A command on a core in which things have happened. It keeps what it would print."""

    def __init__(self):
        self.core = Core()
        self.supervisor = SimpleNamespace(dispatcher=SimpleNamespace(core=self.core))
        self.said = []
        self.json = None

    async def out(self, *lines):
        self.said += lines

    async def out_json(self, value):
        self.json = msgspec.to_builtins(value)

    def happens(self, kind, at, **fields):
        self.core.handle(kind(at=at, **fields))
        self.core.validate()

    def begins(self, name="a1b2c3d4", vm="i-0123456789"):
        self.happens(events.SessionRequested, 100.0, session_id=name, instance_id=vm, key=KEY)

    def fails(self, message, name="a1b2c3d4", vm="i-0123456789"):
        self.begins(name, vm)
        self.happens(events.EffectFailed, 100.25, instance_id=vm, code="disk-full", message=message)
        self.happens(events.DeleteDone, 101.5, instance_id=vm)

    async def refused(self, name):
        with pytest.raises(CommandError) as caught:
            await ps(self, Ps(story=name))
        assert caught.value.code == "no-such-story"
        return caught.value


@pytest.fixture
def told():
    return Told()


async def test_the_story_of_a_session_that_has_ended_reads_from_top_to_bottom(told):
    told.fails("no space left")
    await ps(told, Ps(story="a1b2c3d4"))
    head, *lines = told.said
    assert head == "session a1b2c3d4: ended"
    assert [" ".join(line.split()) for line in lines] == [
        "SECONDS FROM CAUSE TO NOTE",
        "0.000 absent SessionRequested queued",
        "0.000 queued admit preparing i-0123456789",
        "0.250 preparing EffectFailed ending disk-full: no space left",
        "1.500 ending release ended disk-full",
    ]


async def test_the_story_of_a_vm_is_found_by_the_beginning_of_its_id_and_told_in_json(told):
    told.begins()
    await ps(told, Ps(story="i-01", json=True))
    step = {"at": 100.0, "before": "absent", "cause": "make", "after": "cloning", "note": "a1b2c3d4"}
    assert told.json == {"id": "i-0123456789", "kind": "vm", "state": "cloning", "steps": [step]}


async def test_what_a_guest_put_into_an_error_can_not_reach_the_terminal_or_fill_it(told):
    told.fails("\x1b[2J\n" + "x" * 1000)
    await ps(told, Ps(story="a1b2c3d4"))
    assert "\\x1b[2J\\x0a" in told.said[4]
    assert not any(set(line) & {"\x1b", "\n"} or len(line) > NOTE_LENGTH + 100 for line in told.said)


async def test_a_story_whose_beginning_is_not_kept_says_so(told):
    told.happens(events.InstanceFound, 0.0, instance_id="i-0", reason="left behind")
    for n in range(STEPS_PER_KEY):
        at = 100.0 * n
        told.happens(events.EffectFailed, at, instance_id="i-0", code="busy", message="m")
        told.happens(events.Tick, at + 60.0)
    await ps(told, Ps(story="i-0"))
    assert told.said[0] == "vm i-0: deleting (what came before is not kept)"
    assert len(told.said) == 2 + STEPS_PER_KEY


async def test_an_id_with_a_slip_in_it_gets_the_nearest_ones(told):
    told.begins()
    error = await told.refused("a1b2c3e4")
    assert error.message == "'a1b2c3e4' is neither a session nor a VM of this daemon"
    assert error.hint == "did you mean a1b2c3d4?"


async def test_an_id_that_nobody_ever_had_is_told_where_to_look(told):
    told.begins()
    error = await told.refused("f" * 1000)
    assert error.hint == "list sessions with: claude-vm ps --all"
    assert len(error.message) < 150


async def test_a_beginning_of_several_ids_names_some_of_them(told):
    for n in range(5):
        told.begins(f"a{n}", f"i-{n}")
    error = await told.refused("a")
    assert error.message == "'a' is ambiguous"
    assert error.hint == "did you mean a0 or a1 or a2?"


async def test_a_story_that_is_not_kept_any_more_is_told_as_such(told):
    for n in range(FINISHED_KEYS + 1):
        told.fails("m", f"a{n:03}", f"i-{n:03}")
    error = await told.refused("a000")
    assert error.message == "what happened to 'a000' is no longer kept"
    assert str(FINISHED_KEYS) in error.hint
    await ps(told, Ps(story="a001"))
    assert told.said[0] == "session a001: ended"


def test_the_story_of_a_session_and_of_its_vm_are_told_by_the_real_program(ready):
    assert ready.run("shell", "exit 3").returncode == 3
    (ended,) = ready.json("ps", "--all")
    told = ready.json("ps", "--story", ended["session"])
    assert (told["kind"], told["state"]) == ("session", "ended")
    assert [step["after"] for step in told["steps"]] == ["queued", "preparing", "running", "ending", "ended"]
    vm = ready.json("ps", "--story", told["steps"][1]["note"])
    assert (vm["kind"], vm["state"]) == ("vm", "deleted")
    refused = ready.run("ps", "--story", "nobody")
    assert refused.returncode == 1
    assert b"[no-such-story]" in refused.stderr
    assert json.loads(ready.run("ps", "--json").stdout) == []
