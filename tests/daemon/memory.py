"""A dispatcher over VMs in memory: they outlive their supervisor, and time is virtual."""

import contextlib

import anyio
import trio
from trio.testing import MockClock

from claude_vm.drivers.api import (
    Access,
    Capabilities,
    InstanceRecord,
    InstanceStatus,
    TemplateRecord,
    tell_nobody,
)
from claude_vm.drivers.errors import DriverError, GuestError, TemplateMissingError
from claude_vm.drivers.vm.phases import VmPhase
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.events import FillRequested
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.daemon import adopt
from claude_vm.supervisor.daemon.dispatch import execution
from claude_vm.supervisor.daemon.dispatch.dispatcher import Dispatcher
from claude_vm.supervisor.daemon.sessions.attachment import Attachment
from claude_vm.supervisor.daemon.sessions.plan import Launch, SessionPlan
from claude_vm.supervisor.daemon.sessions.scanning import Scanner
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.daemon.sessions.sessions import Sessions
from claude_vm.supervisor.daemon.sessions.surroundings import Surroundings
from claude_vm.supervisor.daemon.state.journal import Journal
from claude_vm.supervisor.daemon.state.reports import Reports
from claude_vm.supervisor.ssh.errors import ConnectError, SessionUnknownError
from claude_vm.supervisor.ssh.launch import LaunchMode
from claude_vm.supervisor.ssh.remaining import RemainingWork

NAME = "qemu"
"""The driver's name: one of those that a supervisor looks through at its start."""

PHASES = (VmPhase.RESTORE, VmPhase.IDENTITY, VmPhase.MOUNTS)


def in_virtual_time(main, *args):
    """Run an async function to its end; a hang ends it with an error."""

    async def bounded():
        with trio.fail_after(100_000):
            return await main(*args)

    return trio.run(bounded, clock=MockClock(autojump_threshold=0))


class Gate:
    """Where calls of a driver's method wait; `reached` counts them."""

    def __init__(self):
        self.reached = 0
        self.open = anyio.Event()

    async def passed(self):
        self.reached += 1
        await self.open.wait()


class Vm:
    """A VM in memory, with what its guest holds: sessions by id, None while they run."""

    def __init__(self, spec, port):
        self.spec = spec
        self.port = port
        self.running = False
        self.prestarted = False
        self.stopped = anyio.Event()
        self.reason = ""
        self.sessions = {}
        self.ended_inputs = []
        self.primed = set()
        self.links = []
        self.breaks_watching = False
        self.taken_mib = 200

    def die(self, reason="it was killed"):
        self.running = False
        self.reason = reason
        self.stopped.set()
        for link in self.links:
            link.lose("the VM died")

    def stand_still(self):
        """From now on it says nothing. (A gate keeps new connections from being made.)"""
        for link in self.links:
            link.stand_still()

    def go_on(self):
        for link in self.links:
            link.go_on()

    def end_session(self, session_id, status):
        self.sessions[session_id] = status
        for link in self.links:
            link.news.set()


class Cloud:
    """All VMs of the host. They outlive each supervisor."""

    def __init__(self, folder):
        self.key = folder / "k\udcff"  # a path need not be text
        self.key.touch()
        self.vms = {}
        self.ports = iter(range(1000, 10_000))
        self.templates = {"t": "g1"}
        self.calls = []
        self.failures = {}
        self.gates = {}
        self.refuse_connections = False
        self.replaces_processes = False
        self.tells = 1  # how often a start tells that its guest can be reached, before its end

    def gate(self, method):
        self.gates[method] = Gate()
        return self.gates[method]

    def vm(self, port):
        return next(vm for vm in self.vms.values() if vm.port == port)


class MemoryDriver:
    """A driver whose VMs are in a `Cloud`."""

    name = NAME

    def __init__(self, cloud):
        self.cloud = cloud

    async def _call(self, method, instance_id):
        self.cloud.calls.append((method, instance_id))
        await self._pass(method)

    async def _pass(self, method):
        await anyio.lowlevel.checkpoint()
        if method in self.cloud.gates:
            await self.cloud.gates[method].passed()
        if self.cloud.failures.get(method):
            raise self.cloud.failures[method].pop(0)

    async def diagnose(self):
        return []

    async def capabilities(self):
        return Capabilities(
            "none",
            "in memory",
            ram_clones=False,
            max_mounts=8,
            host_address="10.0.2.2",
            prestart=True,
            phases=PHASES,
        )

    async def clone(self, spec):
        await self._call("clone", spec.instance_id)
        if self.cloud.templates.get(spec.template) != spec.generation:
            raise TemplateMissingError("no such generation")
        self.cloud.vms[spec.instance_id] = Vm(spec, next(self.cloud.ports))

    async def prestart(self, instance_id):
        await self._call("prestart", instance_id)
        vm = self._known(instance_id)
        if vm.prestarted or vm.running:
            raise DriverError("it was started already")
        vm.prestarted = True

    async def start(self, instance_id, progress, reachable=tell_nobody):
        await self._call("start", instance_id)
        vm = self._known(instance_id)
        access = Access("127.0.0.1", vm.port, "u", "/h", "key", self.cloud.key, restored=True, pid=vm.port)
        progress(VmPhase.BOOT_AGAIN, "which is no phase of a start")
        for phase in PHASES:
            progress(phase, "")
            if phase is VmPhase.IDENTITY:
                for _ in range(self.cloud.tells):
                    reachable(access)
                    for _ in range(10):  # time enough to connect
                        await anyio.lowlevel.checkpoint()
        await self._pass("end_of_start")
        if self.cloud.replaces_processes:  # what was started ahead is of no use: another process takes over
            vm.stopped.set()
            for _ in range(10):
                await anyio.lowlevel.checkpoint()
            vm.stopped = anyio.Event()
        vm.running = True
        return access

    async def put_files(self, instance_id, files):
        await self._call("put_files", instance_id)
        if not self._known(instance_id).running:
            raise GuestError("it does not run")

    async def taken_mib(self, instance_id):
        await self._pass("taken_mib")
        vm = self.cloud.vms.get(instance_id)
        return vm.taken_mib if vm is not None and vm.running else 0

    async def set_clock(self, instance_id):
        await self._call("set_clock", instance_id)
        self._known(instance_id)

    async def poll(self, instance_id):
        vm = self.cloud.vms.get(instance_id)
        if vm is None:
            return InstanceStatus.ABSENT
        return InstanceStatus.RUNNING if vm.running else InstanceStatus.STOPPED

    async def wait_stopped(self, instance_id):
        vm = self._known(instance_id)
        if self.cloud.failures.get("wait_stopped"):
            raise self.cloud.failures["wait_stopped"].pop(0)
        await vm.stopped.wait()
        return vm.reason

    async def delete(self, instance_id):
        await self._call("delete", instance_id)
        vm = self.cloud.vms.pop(instance_id, None)
        if vm is not None:
            vm.die("it was deleted")

    async def list_instances(self):
        await self._pass("list_instances")
        return [InstanceRecord(name, "test", await self.poll(name)) for name in sorted(self.cloud.vms)]

    async def delete_template(self, name):
        await self._call("delete_template", name)
        del self.cloud.templates[name]

    async def templates(self):
        return [template(name, generation) for name, generation in self.cloud.templates.items()]

    def _known(self, instance_id):
        if instance_id not in self.cloud.vms:
            raise DriverError(f"there is no instance {instance_id}")
        return self.cloud.vms[instance_id]


def template(name, generation):
    return TemplateRecord(
        name=name, generation=generation, driver=NAME, project="/p", created_at=0.0, cpus=1, memory_mib=512,
        disk_gib=8, size_bytes=0, user="u", home="/h", claude_version=None, image="memory",
    )  # fmt: skip


class MemoryLink:
    """A connection to a VM in memory."""

    def __init__(self, vm):
        self.vm = vm
        self.lost = ""
        self.closed = False
        self.still_since = None
        self.stood_still = anyio.Event()
        self.heard = anyio.Event()
        self.over = anyio.Event()
        self.news = anyio.Event()
        vm.links.append(self)

    def lose(self, reason):
        self.lost = self.lost or reason
        self.over.set()
        self.news.set()

    def stand_still(self):
        """From now on nothing comes."""
        self.still_since = anyio.current_time()
        self.stood_still.set()

    def go_on(self):
        self.still_since = None
        self.stood_still = anyio.Event()
        self.heard.set()
        self.heard = anyio.Event()

    @property
    def silent_s(self):
        return 0.0 if self.still_since is None else anyio.current_time() - self.still_since

    @property
    def is_closed(self):
        return bool(self.lost)

    def ask_often(self, interval_s):
        pass

    async def until_silent(self, seconds):
        async def over():
            await self.over.wait()
            tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(over)
            while self.silent_s < seconds:
                await self.stood_still.wait()
                await anyio.sleep(seconds - self.silent_s)
            tasks.cancel_scope.cancel()

    async def until_heard(self):
        await self.heard.wait()

    async def wait_closed(self):
        await self.over.wait()
        if self.vm.breaks_watching:
            raise RuntimeError("a bug")
        return self.lost

    async def aclose(self):
        self.closed = True
        self.lose("closed from this side")


class MemoryProcess:
    """A session's process: it writes one line, and ends when its VM is told so."""

    gap = 0

    def __init__(self, link, session_id, world=None):
        self.link = link
        self.session_id = session_id
        self.world = world
        self.lines = [b"hello\n"]
        self.attached = anyio.Event()
        self.ends_input = False
        self.read = 0

    @property
    def is_lost(self):
        return self.link is None or bool(self.link.lost)

    def keep(self, session_id):
        pass

    async def until_lost(self):
        if self.link is not None:
            await self.link.over.wait()

    async def attach(self, link):
        await anyio.lowlevel.checkpoint()
        self.world.fail("attach")
        if self.session_id not in link.vm.sessions:
            raise SessionUnknownError("no such session")
        former, self.link = self.link, link
        if former is not None:
            former.news.set()
        if self.ends_input:
            link.vm.ended_inputs.append(self.session_id)
        self.attached.set()
        self.attached = anyio.Event()

    async def read_stdout(self, limit):
        await anyio.lowlevel.checkpoint()
        if self.lines:
            line = self.lines.pop()
            self.read += len(line)
            return line
        await self.wait()
        return b""

    def position(self, output):
        return self.read if output == 0 else 0

    async def read_stderr(self, limit):
        await self.wait()
        return b""

    async def wait(self):
        while self.is_lost or self.link.vm.sessions[self.session_id] is None:
            if self.is_lost:
                await self.attached.wait()
                continue
            link = self.link
            await link.news.wait()
            link.news = anyio.Event()
        return self.link.vm.sessions[self.session_id]

    async def write(self, data):
        await anyio.lowlevel.checkpoint()

    def send_signal(self, name):
        pass

    def write_eof(self):
        self.ends_input = True

    async def remaining(self):
        return RemainingWork()

    async def aclose(self):
        await anyio.lowlevel.checkpoint()


class MemoryShells:
    def __init__(self, link, world):
        self.link = link
        self.world = world

    async def start(self, session_id, *, pty):
        await anyio.lowlevel.checkpoint()
        self.link.vm.sessions[session_id] = None
        return MemoryProcess(self.link, session_id, self.world)

    async def aclose(self):
        pass


class MemoryClient:
    """A client that has no input and takes all output."""

    def __init__(self):
        self.output = b""
        self.started_with = []
        self.notes = []

    def forget_environment(self):
        """It has none."""

    def note_nowait(self, text, level="info", beneath=()):
        self.notes.append((level, text))

    def started_nowait(self, *, pty):
        self.started_with.append(pty)

    async def receive_stdin(self):
        await anyio.sleep_forever()

    async def next_control(self):
        await anyio.sleep_forever()

    async def open_agent(self):
        raise AssertionError("its agent is offered, and not asked")

    async def send_stdout(self, data):
        self.output += data

    async def send_stderr(self, data):
        self.output += data


class MemoryDrivers:
    """Stands for the daemon's set of drivers; all but one can't be opened."""

    def __init__(self, cloud):
        self.driver = MemoryDriver(cloud)

    async def get(self, name):
        await anyio.lowlevel.checkpoint()
        if name != NAME:
            raise DriverError(f"no {name} here")
        if self.driver.cloud.failures.get("open"):
            raise self.driver.cloud.failures["open"].pop(0)
        return self.driver


def key(generation="g1", memory_mib=512):
    return PoolKey(
        driver=NAME, template="t", generation=generation, cpus=1, memory_mib=memory_mib, disk_gib=8,
        mounts=(MountKey(host="/p\udcff", guest="/p", writable=False),),
    )  # fmt: skip


class World:
    """A host: its VMs, and a folder with the journal of its supervisor."""

    def __init__(self, folder, monkeypatch):
        self.cloud = Cloud(folder)
        self.folder = folder
        self.boot = "boot-1"
        self.attempts = 0  # to connect
        monkeypatch.setattr(execution, "connect", self._connect)
        monkeypatch.setattr(execution, "prime", self._prime)
        monkeypatch.setattr(execution, "HeldProcess", self)

    def found(self, session_id):
        """Stand for `HeldProcess.found`."""
        return MemoryProcess(None, session_id, self)

    @contextlib.asynccontextmanager
    async def supervisor(self, policy=None, **options):
        """A supervisor; leaving the block kills it: VMs go on, nothing is cleaned up."""
        with Journal.open(self.folder / "journal.db", self.boot) as (journal, _):
            async with anyio.create_task_group() as tasks:
                drivers = MemoryDrivers(self.cloud)
                surroundings = Surroundings(journal, "test", Scanner(Reports(self.folder)))
                sessions = Sessions(tasks, surroundings.around)
                core = Core(policy or PoolPolicy())
                dispatcher = Dispatcher(core, journal, drivers, tasks, sessions, **options)
                adopted = await adopt.adopt(dispatcher, drivers, journal)
                await surroundings.settle(adopted.lost, adopted.going_on)
                yield Supervisor(dispatcher, sessions, journal, adopted, tasks)
                tasks.cancel_scope.cancel()

    async def left_session(self, name, **changes):
        """Run a session, kill its supervisor, and return the VM in which it goes on."""
        async with self.supervisor() as supervisor:
            await supervisor.session(name, **changes)
            await settled()
        (vm,) = self.cloud.vms.values()
        return vm

    async def _connect(self, access, *, timeout_s):
        await anyio.lowlevel.checkpoint()
        self.attempts += 1
        if "connect" in self.cloud.gates:
            await self.cloud.gates["connect"].passed()
        self.fail("connect")
        if self.cloud.refuse_connections:
            raise ConnectError("nobody answers")
        return MemoryLink(self.cloud.vm(access.port))

    async def _prime(self, link, kinds, *, term):
        await anyio.lowlevel.checkpoint()
        link.vm.primed |= {str(kind) for kind in kinds}
        return MemoryShells(link, self)

    def fail(self, method):
        if self.cloud.failures.get(method):
            raise self.cloud.failures[method].pop(0)


class Supervisor:
    def __init__(self, dispatcher, sessions, journal, adopted, tasks):
        self.dispatcher = dispatcher
        self.sessions = sessions
        self.journal = journal
        self.adopted = adopted
        self.tasks = tasks

    async def session(self, name="a1", **changes):
        """Begin a session that is attached to a client."""
        client = changes.pop("client", None) or MemoryClient()
        plan = SessionPlan(
            key=changes.pop("key", key()), project="/p", command_text="sleep",
            launch=Launch(mode=LaunchMode.EXEC, argv=("sleep",), env={}, cwd="/p"), **changes,
        )  # fmt: skip
        session = Session(name, plan)
        session.client = client  # for the test to look at
        attachment = Attachment(session, client, quiet=True, verbose=False)
        session.attach(attachment)
        await self.dispatcher.begin(session)
        self.tasks.start_soon(attachment.serve, lambda signal: self.dispatcher.stop(name, signal, 130))
        return session

    def fill(self, size=None):
        self.dispatcher.post(FillRequested(at=anyio.current_time(), key=key(), size=size))


async def settled():
    """Let everything happen that needs no time."""
    await trio.testing.wait_all_tasks_blocked()
