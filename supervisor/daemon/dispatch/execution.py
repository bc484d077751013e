"""Carries out an instance's effects: driver calls and SSH. `dispatcher` orders them and answers for them."""

import contextlib
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from functools import partial

import anyio
import anyio.abc
import msgspec
import structlog

from claude_vm.drivers.api import Access, Driver, InstanceSpec, Mount, Phase, Progress, tell_no_progress
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.tasks import open_tasks
from claude_vm.supervisor.core import effects as fx
from claude_vm.supervisor.core import events as ev
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.dispatch.faults import Faults
from claude_vm.supervisor.daemon.dispatch.instance import Instance, Watchers
from claude_vm.supervisor.daemon.dispatch.reconnection import Reconnection
from claude_vm.supervisor.daemon.drivers import DriverSet
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.ssh.errors import ConnectError, LinkLostError, SshError
from claude_vm.supervisor.ssh.link import Link, connect
from claude_vm.supervisor.ssh.shells import HeldProcess, ShellKind, prime

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 60.0
"""For the SSH handshake with a guest under software emulation on a busy host."""

CLOSE_TIMEOUT_S = 2.0

VM_DEATH_S = 2.0
"""How much later than the loss of its connection the death of a VM may be noticed, in seconds."""

TERM = "xterm-256color"
"""The terminal for which shells are primed before anybody came with one; then it is the latest client's."""

AdmitClone = Callable[[InstanceSpec], None]
"""Refuses a clone, by a `DriverError`, for which this host has no room. Never waits."""


def admit_all(spec: InstanceSpec) -> None:
    """Refuse nothing."""


class Execution:
    """The work behind the effects. `sessions` are all sessions; `started` is told that a command runs."""

    def __init__(
        self,
        drivers: DriverSet,
        sessions: Mapping[str, Session],
        watchers: Watchers,
        *,
        started: Callable[[Instance, str], None],
        admit: AdmitClone,
        faults: Faults | None,
    ) -> None:
        self._drivers = drivers
        self._sessions = sessions
        self._watchers = watchers
        self._started = started
        self._admit = admit
        self._faults = faults
        self._term = TERM

    def expect(self, session: Session) -> None:
        """The next sessions are likely to come from a terminal like this one's."""
        if session.plan.pty is not None:
            self._term = session.plan.pty.term

    async def carry_out(
        self, effect: fx.InstanceEffect, instance: Instance, session: Session | None
    ) -> ev.EffectEnded:
        """Do what an effect says; return its answer. `session` is the one that the instance is for, if any.

        Raises:
            DriverError: See the driver's call.
            SshError: The guest is not reached, or lost.
        """
        driver = await self._drivers.get(instance.driver)
        name = instance.instance_id
        kind = type(effect).__name__.lower()
        if self._faults is not None:
            await self._faults.inject(f"before:{kind}", name, driver, instance.link)
        answer = await self._do(effect, instance, driver, session)
        if self._faults is not None:
            await self._faults.inject(f"after:{kind}", name, driver, instance.link)
        return answer

    async def _do(
        self, effect: fx.InstanceEffect, instance: Instance, driver: Driver, session: Session | None
    ) -> ev.EffectEnded:
        name = instance.instance_id
        match effect:
            case fx.Clone(key=key):
                spec = _spec(name, key)
                self._admit(spec)
                await driver.clone(spec)
                return ev.CloneDone(at=anyio.current_time(), instance_id=name)
            case fx.Prestart():
                await driver.prestart(name)
                self._watchers.watch_vm(instance)
                return ev.PrestartDone(at=anyio.current_time(), instance_id=name)
            case fx.Start():
                access = await self._start(instance, driver, session)
                return ev.StartDone(at=anyio.current_time(), instance_id=name, restored=access.restored)
            case fx.Connect():
                async with _vm_death_first():
                    await self._connect(instance, driver, session)
                return ev.ConnectDone(at=anyio.current_time(), instance_id=name)
            case fx.Run(session_id=session_id):
                async with _vm_death_first():
                    status = await self._run(instance, driver, self._sessions[session_id])
                return ev.RunDone(
                    at=anyio.current_time(), instance_id=name, session_id=session_id, status=status
                )
            case fx.Delete():
                await self._delete(instance, driver)
                return ev.DeleteDone(at=anyio.current_time(), instance_id=name)
        raise AssertionError(effect)  # pragma: no cover - the core has no other effects

    async def _start(self, instance: Instance, driver: Driver, session: Session | None) -> Access:
        """Start it, and connect meanwhile: SSH's handshake is the longest part of a RAM clone's start."""
        # one that was started ahead may have to be replaced by another process
        instance.stop_watching()
        progress = await _marking(session, driver)
        async with open_tasks() as tasks:
            ahead = _Ahead(instance, tasks)
            access = instance.access = await driver.start(instance.instance_id, progress, ahead.begin)
            self._watchers.watch_vm(instance)
            if session is not None:
                session.mark("connect")
            ahead.started()
        return access

    async def _connect(self, instance: Instance, driver: Driver, session: Session | None) -> None:
        """Connect, and have the shells wait: the one that its session needs, or both if nobody knows."""
        if instance.access is None:
            raise DriverError("the instance was not started")
        if instance.refusal is not None:
            raise instance.refusal
        ahead, instance.ahead = instance.ahead, None
        instance.link = ahead or await connect(instance.access, timeout_s=CONNECT_TIMEOUT_S)
        if session is not None:
            session.mark("prime")
        if self._faults is not None:
            await self._faults.inject("before:prime", instance.instance_id, driver, instance.link)
        instance.shells = await prime(instance.link, _kinds(session), term=self._term_for(session))
        self._watchers.watch_link(instance, instance.link)

    def _term_for(self, session: Session | None) -> str:
        pty = None if session is None else session.plan.pty
        return self._term if pty is None else pty.term

    async def _run(self, instance: Instance, driver: Driver, session: Session) -> int:
        """Run the session's main command, or follow the one that runs already; return its exit status."""
        process = HeldProcess.found(session.session_id) if session.found else None
        try:
            if process is None:
                process = await self._start_command(instance, driver, session)
            reach = self._reach(instance, driver, session)
            return await reach.during(process, partial(session.carry, process))
        finally:
            session.unlinked()
            if process is not None:
                await process.aclose()

    async def _start_command(self, instance: Instance, driver: Driver, session: Session) -> HeldProcess:
        link, shells, instance.shells = instance.link, instance.shells, None
        if link is None or shells is None:
            raise DriverError("the instance is not connected")
        process = await session.start(driver, instance.instance_id, link, shells)
        self._started(instance, session.session_id)
        return process

    @staticmethod
    def _reach(instance: Instance, driver: Driver, session: Session) -> Reconnection:
        async def connect_again() -> Link:
            if instance.access is None:
                raise ConnectError("nobody knows how to reach the instance")
            return await connect(instance.access, timeout_s=CONNECT_TIMEOUT_S)

        return Reconnection(instance, session, driver, connect_again)

    async def _delete(self, instance: Instance, driver: Driver) -> None:
        """The VM first: it is thrown away, so nothing in it needs a farewell."""
        instance.stop_watching()
        instance.access = None
        await driver.delete(instance.instance_id)
        links = (instance.link, instance.ahead)
        instance.link = instance.ahead = None
        for link in links:
            if link is not None:
                with anyio.move_on_after(CLOSE_TIMEOUT_S):
                    await link.aclose()


class _Ahead:
    """A connection that is begun while the driver still starts the instance."""

    def __init__(self, instance: Instance, tasks: anyio.abc.TaskGroup) -> None:
        self._instance = instance
        self._tasks = tasks
        self._scope = anyio.CancelScope()

    def begin(self, access: Access) -> None:
        """Connect; what was begun before was to a guest that did not come up."""
        self._scope.cancel()
        self._scope = anyio.CancelScope()
        link, self._instance.ahead = self._instance.ahead, None
        if link is not None:
            self._tasks.start_soon(link.aclose)
        self._tasks.start_soon(self._connect, access, self._scope)

    def started(self) -> None:
        """The guest is ready. What failed before is tried again, by the effect that is for it."""
        self._instance.refusal = None

    async def _connect(self, access: Access, scope: anyio.CancelScope) -> None:
        with scope:
            try:
                self._instance.ahead = await connect(access, timeout_s=CONNECT_TIMEOUT_S)
            except SshError as error:
                self._instance.refusal = error


@contextlib.asynccontextmanager
async def _vm_death_first() -> AsyncIterator[None]:
    """A guest is out of reach mostly because its VM died: its watcher knows more, and the core cancels us."""
    try:
        yield
    except (ConnectError, LinkLostError):
        await anyio.sleep(VM_DEATH_S)
        raise


def _kinds(session: Session | None) -> Collection[ShellKind]:
    """Return the kinds of shell that shall wait."""
    if session is None:
        return tuple(ShellKind)
    return (ShellKind.PIPES if session.plan.pty is None else ShellKind.PTY,)


async def _marking(session: Session | None, driver: Driver) -> Progress:
    """Return a driver's progress that becomes marks."""
    if session is None:
        return tell_no_progress
    phases = (await driver.capabilities()).phases

    def progress(phase: Phase, detail: str) -> None:  # noqa: ARG001 - the signature is the driver's
        if phase in phases:
            session.mark(phase.mark)

    return progress


def _spec(instance_id: str, key: PoolKey) -> InstanceSpec:
    return InstanceSpec(
        instance_id=instance_id,
        template=key.template,
        generation=key.generation,
        cpus=key.cpus,
        memory_mib=key.memory_mib,
        disk_gib=key.disk_gib,
        mounts=tuple(Mount(**msgspec.structs.asdict(mount)) for mount in key.mounts),
    )
