"""`pool fill` and `pool drain`: what is asked of the core, and when the command ends."""

from collections import deque
from types import SimpleNamespace

import anyio
import msgspec
import pytest

from claude_vm.drivers.api import Capabilities, TemplateRecord
from claude_vm.supervisor.core.events import DrainRequested, FillRequested, PolicyChanged
from claude_vm.supervisor.core.instance import InstanceState
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.views import InstanceView, MemoryView, PoolView
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.commands import pool as module
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.state.known_folders import KnownFolders
from claude_vm.supervisor.grammar.commands.pool import DrainPool, FillPool
from claude_vm.supervisor.grammar.flags import Flags
from claude_vm.supervisor.wire.connected_client import Signal

pytestmark = pytest.mark.anyio

FILL = FillPool()
DRAIN = DrainPool()
NOTHING = {
    **dict.fromkeys(("wanted", "warm", "making", "paused", "claimed", "failures"), 0),
    "last_used_at": None,
    "last_error": "",
    "next_try_at": None,
}


class FakeCore:
    """What the commands see of the core, set by the test."""

    def __init__(self):
        self.policy = PoolPolicy(size=2, max_instances=4, memory_budget_mib=1 << 20)
        self.views = []
        self.machines = []
        self.memory = MemoryView(0, None)
        self.taken = {}

    def takes_mib(self, key):
        return self.taken.get(key)

    def pools(self):
        return list(self.views)

    def instances(self):
        return list(self.machines)


class FakeDispatcher:
    """Notes what is posted, lets the test answer, and the test says when something has changed."""

    def __init__(self):
        self.core = FakeCore()
        self.posted = []
        self.sessions = {}
        self.answer = lambda event: None
        self.waiting = anyio.Event()
        self._changed = anyio.Event()

    def post(self, event):
        self.posted.append(event)
        if isinstance(event, PolicyChanged):
            self.core.policy = event.policy
        self.answer(event)

    async def change(self):
        self.waiting.set()
        await self._changed.wait()

    def changed(self):
        self.waiting = anyio.Event()
        before, self._changed = self._changed, anyio.Event()
        before.set()


class FakeDriver:
    name = "sim"

    def __init__(self, record):
        self.record = record
        self.touched = []

    async def capabilities(self):
        return Capabilities(
            "none", "simulated", ram_clones=False, max_mounts=8, host_address="::1", isolates=False
        )

    async def templates(self):
        return [self.record]

    async def touch_template(self, name):
        self.touched.append(name)


class FakeClient:
    def __init__(self, home, cwd, *, tty):
        terminal = SimpleNamespace(stderr_tty=tty)
        self.invocation = SimpleNamespace(
            env={"HOME": str(home)}, cwd=str(cwd), terminal=terminal, terminfo=None, pid=1
        )
        self.gone = anyio.Event()
        self.notes = []
        self.signals = deque()
        self.signalled = anyio.Event()

    async def note(self, text, level="info"):
        self.notes.append(text)

    async def next_control(self):
        await self.signalled.wait()
        return Signal("INT")


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A command in a project with a template, and everything that it talks to."""
    project = tmp_path.resolve() / "project"
    project.mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(module, "template_name", lambda root: f"t-{root.name}")
    monkeypatch.setattr(
        "claude_vm.supervisor.daemon.templates.current.template_name", lambda root: f"t-{root.name}"
    )
    return SimpleNamespace(home=tmp_path, data=tmp_path / "data", project=project)


def start(world, *, flags=None, in_process=False, tty=False, settings=""):
    """Make the command. Not in the fixture: it needs the event loop."""
    (world.home / ".claude-vm.toml").write_text(settings)
    record = TemplateRecord(
        name="t-project",
        generation="g1",
        driver="sim",
        project=str(world.project),
        created_at=0.0,
        cpus=2,
        memory_mib=1024,
        disk_gib=20,
        size_bytes=0,
        user="claude",
        home="/home/claude",
        claude_version=None,
        image="",
    )
    world.driver = FakeDriver(record)
    world.dispatcher = FakeDispatcher()
    world.core = world.dispatcher.core

    async def get(name, _programs=None):
        return world.driver

    world.data.mkdir(exist_ok=True)
    supervisor = SimpleNamespace(
        dispatcher=world.dispatcher,
        drivers=SimpleNamespace(get=get, prestarting=frozenset({"sim"})),
        known_folders=KnownFolders(world.data),
        folders=(world.data,),
        in_process=in_process,
        home=world.data,
    )
    world.client = FakeClient(world.home, world.project, tty=tty)
    world.key = PoolKey(
        "sim", "t-project", "g1", cpus=2, memory_mib=1024, disk_gib=20, mounts=module_mounts(world)
    )
    return Command(supervisor, world.client, flags or Flags(driver="sim"))


def module_mounts(world):
    from claude_vm.supervisor.core.keys import MountKey

    found = world.project.stat()
    path = str(world.project)
    return (MountKey(path, path, writable=True, device=found.st_dev, inode=found.st_ino),)


def pool_view(key, **more):
    return PoolView(key=key, **(NOTHING | more))


def machine(name, state, key, *, session="", failed=0):
    return InstanceView(
        instance_id=name,
        state=state,
        since=0.0,
        key=key,
        session_id=session,
        failed_deletions=failed,
        made_at=0.0,
    )


async def finish(command, request, *steps):
    """Run the command; each time it waits, take the next step. Return how it ended, after the last one."""
    dispatcher = command.supervisor.dispatcher
    results = []
    taken = []

    async def run():
        try:
            carry_out = module.fill if isinstance(request, FillPool) else module.drain
            results.append(await carry_out(command, request))
        except CommandError as error:
            results.append(error)
        tasks.cancel_scope.cancel()

    with anyio.fail_after(10):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            for step in steps:
                await dispatcher.waiting.wait()
                taken.append(step)
                step()
                dispatcher.changed()
    assert len(taken) == len(steps), f"it ended after {len(taken)} of {len(steps)} steps"
    return results[0]


def has(world, **more):
    """Return a step after which the pool has this of the project's key."""

    def step():
        world.core.views = [pool_view(world.key, **({"wanted": 2} | more))]

    return step


async def test_fill_asks_for_the_key_of_a_session_here_and_ends_when_so_many_are_warm(world):
    command = start(world, settings="[pool]\nsize = 2\n")
    world.dispatcher.answer = lambda event: has(world, making=1)()
    ended = await finish(
        command, FILL, has(world, warm=1, making=1), has(world, warm=1, paused=5), has(world, warm=2)
    )
    assert ended == 0
    policy, fill = world.dispatcher.posted
    assert (policy.policy.size, policy.policy.prestart_drivers) == (2, {"sim"})
    assert fill == FillRequested(at=fill.at, key=world.key, size=None)
    assert world.driver.touched == ["t-project"]
    assert world.client.notes[-1].startswith(f"2 VM(s) ready for {world.project}")


async def test_fill_counts_flags_and_mounts_as_a_session_does(world):
    other = world.home / "other"
    other.mkdir()
    flags = Flags(driver="sim", memory="3", mounts=(f"{other}:/d:ro",), no_wait=True)
    command = start(world, flags=flags)
    await module.fill(command, FILL)
    (fill,) = [e for e in world.dispatcher.posted if isinstance(e, FillRequested)]
    assert fill.key.memory_mib == 3072
    assert [(m.guest, m.writable) for m in fill.key.mounts] == [("/d", False), (str(world.project), True)]


async def test_fill_with_a_number_asks_for_so_many_whatever_the_settings_say(world):
    command = start(world, settings="[pool]\nsize = 0\n")
    request = msgspec.structs.replace(FILL, count=3)
    world.dispatcher.answer = lambda event: has(world, wanted=3)()
    assert await finish(command, request, has(world, wanted=3, warm=3)) == 0
    assert world.dispatcher.posted[-1].size == 3


async def test_fill_without_waiting_returns_at_once(world):
    command = start(world, flags=Flags(driver="sim", no_wait=True))
    assert await finish(command, FILL) == 0
    assert isinstance(world.dispatcher.posted[-1], FillRequested)


async def test_fill_of_a_full_pool_does_not_wait(world):
    command = start(world, settings="[pool]\nsize = 2\n")
    world.dispatcher.answer = lambda event: has(world, warm=2)()
    assert await finish(command, FILL) == 0


async def test_progress_is_told_on_a_terminal_only(world):
    for tty, told in ((True, 3), (False, 0)):
        command = start(world, tty=tty, settings="[pool]\nsize = 2\n")
        world.dispatcher.answer = lambda event: has(world, making=1)()
        steps = (has(world, warm=1), has(world, warm=1, failures=1, last_error="boot-failed: x", making=1))
        assert await finish(command, FILL, *steps, has(world, warm=2)) == 0
        progress = [note for note in world.client.notes if note.startswith("claude-vm: ")]
        assert len(progress) == told
        assert not progress or "boot-failed: x" in progress[-1]


@pytest.mark.parametrize(
    ("settings", "count", "code"),
    [
        ("[pool]\nsize = 0\n", None, "pool-off"),
        ("[pool]\nmax_instances = 2\n", 3, "pool-too-small"),
        ('[pool]\nmemory_budget = "2GB"\n', 3, "pool-too-small"),
    ],
)
async def test_what_can_never_be_is_refused_before_anything_is_asked(world, settings, count, code):
    command = start(world, settings=settings)
    world.core.taken[world.key] = 700
    error = await finish(command, msgspec.structs.replace(FILL, count=count))
    assert error.code == code
    assert error.hint
    assert not any(isinstance(e, FillRequested) for e in world.dispatcher.posted)


@pytest.mark.parametrize(("takes_mib", "is_refused"), [(None, False), (500, False), (1000, True)])
async def test_several_are_refused_by_what_they_take_and_unmeasured_ones_by_what_one_might(
    world, takes_mib, is_refused
):
    command = start(world, settings='[pool]\nmemory_budget = "2GB"\n')
    if takes_mib:
        world.core.taken[world.key] = takes_mib
    world.dispatcher.answer = lambda event: has(world, wanted=3, warm=3)()
    ended = await finish(command, msgspec.structs.replace(FILL, count=3))
    assert (getattr(ended, "code", "") == "pool-too-small") == is_refused
    assert is_refused or ended == 0


async def test_one_that_was_never_measured_must_fit_as_it_is_configured(world):
    command = start(world, flags=Flags(driver="sim", memory="3"), settings='[pool]\nmemory_budget = "2GB"\n')
    error = await finish(command, msgspec.structs.replace(FILL, count=1))
    assert error.code == "pool-too-small"
    assert "not known before the first session" in str(error)


async def test_a_supervisor_for_one_command_has_no_pool(world):
    command = start(world, in_process=True)
    assert (await finish(command, FILL)).code == "no-daemon"
    assert world.dispatcher.posted == []


async def test_three_failures_in_a_row_end_the_wait_with_the_last_error(world):
    command = start(world, settings="[pool]\nsize = 2\n")
    world.dispatcher.answer = lambda event: has(world)()
    failing = [has(world, failures=n, last_error="boot-failed: no", next_try_at=1.0) for n in (1, 2, 3)]
    error = await finish(command, FILL, *failing)
    assert error.code == "pool-fill-failed"
    assert "boot-failed: no" in str(error)


async def test_no_room_ends_the_wait_but_not_while_some_vm_is_going(world):
    command = start(world, settings="[pool]\nsize = 2\nmax_instances = 4\n")
    running = [machine(f"i{n}", InstanceState.RUNNING, world.key, session="s") for n in range(3)]

    def last(state):
        def step():
            world.core.machines = [*running, machine("i9", state, world.key, session="s")]
            has(world, warm=0)()

        return step

    world.dispatcher.answer = lambda event: last(InstanceState.DELETING)()
    error = await finish(command, FILL, last(InstanceState.DELETING), last(InstanceState.RUNNING))
    assert error.code == "pool-full"
    assert "max_instances" in str(error)


async def test_a_wish_that_is_taken_back_meanwhile_ends_the_wait(world):
    def gone():
        world.core.views = []

    for change in (gone, has(world, wanted=1)):
        command = start(world, settings="[pool]\nsize = 2\n")
        world.dispatcher.answer = lambda event: has(world, making=1)()
        assert (await finish(command, FILL, change)).code == "pool-changed"


async def test_ctrl_c_ends_the_wait_and_takes_nothing_back(world):
    command = start(world, settings="[pool]\nsize = 2\n")
    world.dispatcher.answer = lambda event: has(world, making=1)()
    error = await finish(command, FILL, world.client.signalled.set)
    assert (error.code, error.status) == ("interrupted", 130)
    assert not any(isinstance(e, DrainRequested) for e in world.dispatcher.posted)


async def test_drain_gives_up_all_kinds_of_this_projects_vms_and_waits_until_they_are_gone(world):
    command = start(world)
    kinds = [world.key, msgspec.structs.replace(world.key, mounts=(), generation="g0")]
    foreign = msgspec.structs.replace(world.key, template="other")
    world.core.views = [pool_view(key, warm=1) for key in (*kinds, foreign)]
    pools = [machine(f"i{n}", InstanceState.WARM, key) for n, key in enumerate((*kinds, foreign))]
    session = machine("i8", InstanceState.RUNNING, world.key, session="s")
    world.core.machines = [*pools, session]

    def left(*machines):
        def step():
            world.core.machines = list(machines)

        return step

    assert await finish(command, DRAIN, left(*pools[1:], session), left(pools[2], session)) == 0
    assert [e.key for e in world.dispatcher.posted] == kinds
    assert world.client.notes == ["gave up 2 VM(s)"]


async def test_drain_all_gives_up_everybodys(world):
    command = start(world)
    foreign = msgspec.structs.replace(world.key, template="other")
    world.core.views = [pool_view(foreign, warm=1)]
    world.core.machines = [machine("i1", InstanceState.WARM, foreign)]

    def empty():
        world.core.machines = []

    assert await finish(command, msgspec.structs.replace(DRAIN, all=True), empty) == 0
    assert [e.key for e in world.dispatcher.posted] == [None]


async def test_drain_does_not_wait_for_a_vm_that_a_session_got_meanwhile(world):
    command = start(world)
    world.core.views = [pool_view(world.key, making=1)]
    world.core.machines = [machine("i1", InstanceState.CONNECTING, world.key)]

    def claimed():
        world.core.machines = [machine("i1", InstanceState.RUNNING, world.key, session="s")]

    assert await finish(command, DRAIN, claimed) == 0


async def test_drain_tells_what_can_not_be_deleted(world):
    command = start(world)
    world.core.views = [pool_view(world.key, warm=1)]
    world.core.machines = [machine("i1", InstanceState.WARM, world.key)]

    def stuck():
        world.core.machines = [machine("i1", InstanceState.STUCK, world.key, failed=1)]

    error = await finish(command, DRAIN, stuck)
    assert error.code == "not-deleted"
    assert "i1" in str(error)


async def test_drain_of_nothing_is_done_at_once(world):
    command = start(world)
    assert await finish(command, DRAIN) == 0
    assert world.dispatcher.posted == []
