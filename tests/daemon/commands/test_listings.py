"""What `ps` and `pool status` print, from what they are given."""

import gc
import json
import time
from types import SimpleNamespace

import anyio
import anyio.lowlevel
import msgspec
import pytest

from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.core.effects import EndSession
from claude_vm.supervisor.core.instance import InstanceState
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.session import SessionState
from claude_vm.supervisor.core.views import InstanceView, MemoryView, PoolView, SessionView
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.commands import pool_status as status_module
from claude_vm.supervisor.daemon.commands import ps as ps_module
from claude_vm.supervisor.daemon.commands.pool_status import pool_status
from claude_vm.supervisor.daemon.commands.ps import ps
from claude_vm.supervisor.daemon.commands.stop import _find
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.sessions.plan import SessionPlan
from claude_vm.supervisor.daemon.sessions.session import EndedSession, Session
from claude_vm.supervisor.daemon.sessions.sessions import EndedSessions
from claude_vm.supervisor.grammar.commands.pool import ShowPool
from claude_vm.supervisor.grammar.commands.sessions import Ps
from claude_vm.supervisor.grammar.flags import Flags
from claude_vm.supervisor.wire.records import Invocation

pytestmark = pytest.mark.anyio

KEY = PoolKey("sim", "t", "g1", cpus=2, memory_mib=8192, disk_gib=20, mounts=(MountKey("/p", "/q", False),))
PLAN = SessionPlan(key=KEY, project="/p", command_text="make test", launch=None)
NOW = 1_000_000.0
LOOP_NOW = 500.0
POLICY = PoolPolicy(size=1, memory_budget_mib=16384)


class Listing:
    """A command that keeps what it would print."""

    def __init__(self, dispatcher, drivers=None, sessions=None):
        scanner = SimpleNamespace(reports=SimpleNamespace(all=list))
        self.supervisor = SimpleNamespace(
            dispatcher=dispatcher, sessions=sessions, drivers=drivers, scanner=scanner
        )
        self.said = []

    async def out(self, *lines):
        self.said.append("\n".join(lines))

    async def out_json(self, value):
        self.said.append(msgspec.to_builtins(value))

    async def say_verbose(self, text):
        pass


@pytest.fixture(autouse=True)
def clocks(monkeypatch):
    for module in (status_module, ps_module):
        monkeypatch.setattr(module.time, "time", lambda: NOW)
    monkeypatch.setattr(status_module.anyio, "current_time", lambda: LOOP_NOW)


def words(line):
    """Return a line without its columns' padding."""
    return " ".join(line.split())


def session(name, *, client=True, created_at=NOW - 60, source="warm"):
    made = Session(name, PLAN)
    if client:
        made.attach(object())
    made.created_at = created_at
    made.source = source
    made.phase = "run"
    return made


def seen(name, state=SessionState.RUNNING, status=None):
    return SessionView(
        session_id=name,
        state=state,
        requested_at=0,
        since=0,
        key=KEY,
        instance_id="i",
        status=status,
        source="warm",
    )


def ended(name, status=7):
    return EndedSession(
        session_id=name,
        plan=PLAN,
        created_at=NOW - 7200,
        phase="delete",
        source="made",
        marks=[("requested", 1.5), ("deleted", 2.5)],
        outcome=EndSession(session_id=name, status=status),
    )


def sessions(*running, views=(), finished=()):
    core = SimpleNamespace(sessions=lambda: list(views))
    known = SimpleNamespace(running={s.session_id: s for s in running}, ended=list(finished))
    return Listing(SimpleNamespace(core=core), sessions=known)


async def test_ps_lists_what_runs_oldest_first_and_what_has_no_client():
    command = sessions(
        session("b"),
        session("a", client=False, created_at=NOW - 90, source="resumed"),
        views=[seen("a"), seen("b")],
        finished=[ended("z")],
    )
    await ps(command, Ps())
    head, first, second = command.said[0].splitlines()
    assert words(head) == "SESSION STATE VM AGE PROJECT COMMAND"
    assert words(first) == "a running, no client resumed 2 min /p make test"
    assert words(second) == "b running warm 1 min /p make test"


async def test_a_name_with_a_line_end_makes_no_line_of_a_listing():
    forged = EndedSession(
        session_id="z",
        plan=SessionPlan(key=KEY, project="/p\nX ended (0)", command_text="true", launch=None),
        created_at=NOW, phase="delete", source="made", marks=[], outcome=EndSession(session_id="z", status=7),
    )  # fmt: skip
    command = sessions(finished=[forged])
    await ps(command, Ps(all=True))
    assert len(command.said[0].splitlines()) == 2
    assert "/p\\x0aX ended (0)" in command.said[0]


async def test_ps_all_lists_also_what_has_ended_with_its_status():
    command = sessions(session("b"), views=[seen("b")], finished=[ended("z")])
    await ps(command, Ps(all=True))
    assert words(command.said[0].splitlines()[1]) == "z ended (7) made 2 h /p make test"
    assert len(command.said[0].splitlines()) == 3


async def test_ps_all_json_has_stable_keys_with_how_the_vm_came_and_the_marks():
    command = sessions(session("b", source=""), views=[seen("b", SessionState.QUEUED)], finished=[ended("z")])
    await ps(command, Ps(all=True, json=True))
    old, new = command.said[0]
    assert old == {
        "session": "z",
        "state": "ended",
        "phase": "delete",
        "project": "/p",
        "command": "make test",
        "created_at": NOW - 7200,
        "driver": "sim",
        "cpus": 2,
        "memory_mib": 8192,
        "pty": False,
        "source": "made",
        "status": 7,
        "attached": False,
        "marks": [{"name": "requested", "at": 1.5}, {"name": "deleted", "at": 2.5}],
        "ports": [],
        "reports": [],
    }
    assert new.keys() == old.keys()
    assert (new["state"], new["source"], new["status"], new["attached"]) == ("queued", "", None, True)


async def test_a_session_whose_client_is_being_told_of_its_end_is_listed_once():
    told = session("z")
    told.outcome = EndSession(session_id="z", status=3)
    command = sessions(told, finished=[ended("z", 3)])
    await ps(command, Ps(all=True, json=True))
    (row,) = command.said[0]
    assert (row["state"], row["status"]) == ("ended", 3)


async def test_a_status_is_shown_as_soon_as_it_is_settled():
    command = sessions(session("b"), views=[seen("b", SessionState.ENDING, status=4)])
    await ps(command, Ps(json=True))
    assert command.said[0][0]["status"] == 4


def pools(*views, machines=(), policy=POLICY, project="/p"):
    used_mib = sum(each.takes_mib * (each.warm + each.making + each.paused) for each in views)
    core = SimpleNamespace(
        policy=policy,
        memory=MemoryView(used_mib, 20_000 if views else None),
        pools=lambda: list(views),
        instances=lambda: list(machines),
    )

    async def templates():
        return [SimpleNamespace(name="t", project=project)]

    async def get(name):
        if name == "gone":
            raise DriverError("it is not installed")
        return SimpleNamespace(templates=templates)

    return Listing(SimpleNamespace(core=core), SimpleNamespace(get=get))


def pool_view(key=KEY, **more):
    nothing = {
        **dict.fromkeys(("wanted", "warm", "making", "paused", "claimed", "failures"), 0),
        "last_used_at": None,
        "last_error": "",
        "next_try_at": None,
        "takes_mib": 300,
        "is_measured": True,
    }
    return PoolView(key=key, **(nothing | more))


def machine(state=InstanceState.WARM):
    return InstanceView(
        instance_id="i", state=state, since=0, key=KEY, session_id="", failed_deletions=0, made_at=0
    )


STATUS = ShowPool()
AS_JSON = ShowPool(json=True)


async def test_pool_status_json_has_everything_of_a_key_and_the_totals():
    used = pool_view(wanted=2, warm=1, making=1, claimed=3, last_used_at=LOOP_NOW - 30)
    command = pools(used, machines=[machine()] * 5)
    await pool_status(command, AS_JSON)
    assert command.said[0] == {
        "size": 1,
        "instances": 5,
        "max_instances": 8,
        "memory_mib": 600,
        "memory_budget_mib": 16384,
        "available_mib": 20_000,
        "memory_reserve_mib": 0,
        "pools": [
            {
                "project": "/p",
                "template": "t",
                "driver": "sim",
                "generation": "g1",
                "cpus": 2,
                "memory_mib": 8192,
                "disk_gb": 20,
                "mounts": ["/p:/q:ro"],
                "wanted": 2,
                "warm": 1,
                "making": 1,
                "paused": 0,
                "in_sessions": 3,
                "last_used_at": NOW - 30,
                "failures": 0,
                "last_error": "",
                "next_try_at": None,
                "hindered_by": "",
                "gave_way": "",
                "takes_mib": 300,
                "is_measured": True,
            }
        ],
    }


async def test_pool_status_for_people_is_a_table_and_the_totals():
    used = pool_view(wanted=2, warm=1, claimed=3, last_used_at=LOOP_NOW - 30)
    command = pools(used, machines=[machine()] * 4)
    await pool_status(command, STATUS)
    head, row, totals = command.said[0].splitlines()
    assert head.split("  ")[0] == "READY"
    assert words(row) == "1/2 0 0 3 2 8.0 GB 0.3 GB 20 GB sim g1 30 s ago /p +/p:/q:ro"
    said = (
        "4 of 8 VM(s); 0.3 GB of 16.0 GB of memory for ready ones, 19.5 GB left on this host; 1 to be ready"
    )
    assert totals.startswith(said)


async def test_what_was_never_measured_counts_whole_and_what_gave_way_is_told_while_it_is_lacking():
    reason = "another one needed the room"
    one = pool_view(wanted=1, takes_mib=8192, is_measured=False, gave_way=reason)
    command = pools(
        one, pool_view(smaller := msgspec.structs.replace(KEY, memory_mib=1024), wanted=1, gave_way=reason)
    )
    await pool_status(command, STATUS)
    _, row, *_ = lines = command.said[0].splitlines()
    assert words(row).startswith("0/1 0 0 0 2 8.0 GB all 20 GB ")
    assert f"/p +/p:/q:ro (2 CPUs, 8.0 GB, 20 GB disk): a ready one gave way: {reason}" in lines
    assert f"/p +/p:/q:ro (2 CPUs, 1.0 GB, 20 GB disk): a ready one gave way: {reason}" in lines
    command = pools(pool_view(smaller, wanted=1, warm=1, gave_way=reason))
    await pool_status(command, STATUS)
    assert reason not in command.said[0]


async def test_failures_are_told_with_the_last_error_and_the_next_try():
    failing = pool_view(wanted=1, failures=3, last_error="boot-failed: no", next_try_at=LOOP_NOW + 4)
    command = pools(failing)
    await pool_status(command, STATUS)
    assert "/p +/p:/q:ro: 3 failure(s) in a row, next try in 4 s: boot-failed: no" in command.said[0]
    await pool_status(command, AS_JSON)
    assert command.said[1]["pools"][0]["next_try_at"] == NOW + 4


async def test_a_budget_without_room_is_told_where_vms_are_lacking_only():
    small = PoolPolicy(size=1, memory_budget_mib=8191)
    command = pools(
        pool_view(wanted=1, takes_mib=8192), pool_view(msgspec.structs.replace(KEY, cpus=1)), policy=small
    )
    await pool_status(command, AS_JSON)
    hindered, content = (row["hindered_by"] for row in command.said[0]["pools"])
    assert "memory_budget" in hindered
    assert content == ""
    await pool_status(command, STATUS)
    assert command.said[1].count("no room: ") == 1


async def test_a_template_or_driver_that_is_gone_does_not_hinder_the_listing():
    lost = msgspec.structs.replace(KEY, template="u")
    command = pools(
        pool_view(lost, claimed=1), pool_view(msgspec.structs.replace(KEY, driver="gone"), claimed=1)
    )
    await pool_status(command, AS_JSON)
    assert [row["project"] for row in command.said[0]["pools"]] == [None, None]
    await pool_status(command, STATUS)
    assert "u (gone)" in command.said[1]


async def test_an_empty_pool_is_a_head_and_the_totals():
    command = pools(policy=PoolPolicy())
    await pool_status(command, STATUS)
    _head, totals = command.said[0].splitlines()
    assert totals == "0 of 8 VM(s); 0.0 GB of memory for ready ones; 0 to be ready for each project in use"


class Client:
    """A client that takes all output, and asks for no quiet."""

    def __init__(self):
        self.data = bytearray()
        self.invocation = Invocation(argv=(), cwd="/", env={})

    async def send_stdout(self, data):
        self.data += data


COUNT = 2000
"""More than there ever are, so that what takes its time in one piece is seen on a fast machine, too."""


async def longest_turn(command, work, request):
    """Return what a listing prints, and its longest turn on the loop in seconds of processor time."""
    real = Command(command.supervisor, Client(), Flags())
    turns = [0.0]

    async def watch():
        while True:
            before = time.thread_time()
            await anyio.lowlevel.checkpoint()
            turns.append(time.thread_time() - before)

    gc.collect()
    gc.freeze()  # as the daemon does with what was there before
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(watch)
            await anyio.lowlevel.checkpoint()
            await work(real, request)
            await anyio.lowlevel.checkpoint()  # the last turn counts, too
            tasks.cancel_scope.cancel()
    finally:
        gc.unfreeze()
    return real.client.data, max(turns)


@pytest.mark.parametrize("request_", [Ps(), Ps(json=True), Ps(all=True), Ps(all=True, json=True)], ids=str)
async def test_a_listing_of_thousands_of_sessions_has_short_turns(request_):
    marks = [(name, 1.0) for name in (*"abcdefghijklm", "ended", "deleted")]
    finished = EndedSessions(limit=COUNT)
    for number in range(COUNT):
        finished.add(msgspec.structs.replace(ended(f"{number:08x}"), marks=marks))
    running = [session(f"r{number:07x}") for number in range(COUNT)]
    command = sessions(*running, views=[seen(s.session_id) for s in running])
    command.supervisor.sessions.ended = finished
    data, took = await longest_turn(command, ps, request_)
    assert took < 0.05
    if request_.json:
        rows = json.loads(data)
        assert len(rows) == (2 * COUNT if request_.all else COUNT)
        whole = msgspec.json.format(json.dumps(rows), indent=2)
        assert data.decode() == f"{whole}\n"
    else:
        assert data.count(b"\n") == (2 * COUNT + 1 if request_.all else COUNT + 1)


async def test_an_empty_list_is_one_in_json_too():
    data, _ = await longest_turn(sessions(), ps, Ps(json=True))
    assert data == b"[]\n"


@pytest.mark.parametrize("request_", [STATUS, AS_JSON], ids=["text", "json"])
async def test_a_pool_of_a_thousand_kinds_is_listed_in_short_turns(request_, monkeypatch):
    monkeypatch.undo()
    views = [
        pool_view(msgspec.structs.replace(KEY, template=f"t{n}"), wanted=1, failures=1) for n in range(1000)
    ]
    data, took = await longest_turn(pools(*views), pool_status, request_)
    assert took < 0.05
    assert data.count(b"t999") >= 1


async def test_stopping_a_thousand_of_a_thousand_sessions_finds_them_in_a_short_time():
    running = {f"{number:08x}": SimpleNamespace(session_id=f"{number:08x}") for number in range(1000)}
    begun = time.thread_time()
    known = sorted(running)
    assert [_find(known, name) for name in running] == list(running)
    assert time.thread_time() - begun < 0.05


@pytest.mark.parametrize(
    ("name", "why"), [("0", "is ambiguous"), ("1", "is not running"), ("", "is ambiguous")]
)
async def test_a_beginning_that_names_no_session_or_several_is_told(name, why):
    with pytest.raises(CommandError, match=why):
        _find(["00000001", "00000002"], name)
    assert _find(["00000001", "00000002"], "00000002") == "00000002"
    assert _find(["0a", "0b"], "0b") == "0b"
