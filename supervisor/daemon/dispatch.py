"""Turns the core's effects into driver calls, SSH and replies, and their ends into events.

There is no await between taking an event and starting its last effect: `post` is synchronous, events that
arise meanwhile wait in a queue. So what the core decided is under way, and in the journal, before anything
else can happen.
"""

import secrets
import sqlite3
import time
from collections import deque

import anyio
import structlog
from anyio.abc import TaskGroup

from claude_vm.drivers.api import Access, InstanceSpec, Mount
from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.core import effects as fx
from claude_vm.supervisor.core import events as ev
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.machine import Core
from claude_vm.supervisor.daemon.clock import Alarm
from claude_vm.supervisor.daemon.drivers import DriverSet
from claude_vm.supervisor.daemon.journal import Journal
from claude_vm.supervisor.daemon.session import Session
from claude_vm.supervisor.ssh.errors import LinkLostError, SshError
from claude_vm.supervisor.ssh.link import Link, connect
from claude_vm.supervisor.ssh.shells import Kind, Shells, prime

log = structlog.get_logger()

CONNECT_TIMEOUT_S = 60.0
"""For the SSH handshake with a guest under software emulation on a busy host."""

CLOSE_TIMEOUT_S = 2.0

TERM = "xterm-256color"
"""The terminal for which shells are primed before anybody came with one; then it is the latest client's."""

VM_DEATH_S = 2.0
"""How much later than the loss of its connection the death of a VM may be noticed, in seconds."""


def fresh_instance_id() -> str:
    """Return an id that no instance ever had."""
    return f"i-{secrets.token_hex(5)}"


def fresh_session_id() -> str:
    """Return an id that no session ever had; it is hexadecimal, for the guest's sake."""
    return secrets.token_hex(4)


class _Instance:
    """What the dispatcher knows about an instance that the core need not know."""

    def __init__(self, driver: str) -> None:
        self.driver = driver
        self.scope: anyio.CancelScope | None = None
        self.watch: anyio.CancelScope | None = None
        self.access: Access | None = None
        self.link: Link | None = None
        self.shells: Shells | None = None


class Dispatcher:
    """Owns the tasks of all effects. All methods but `post` and the properties are internal."""

    def __init__(self, core: Core, journal: Journal, drivers: DriverSet, tasks: TaskGroup) -> None:
        self.core = core
        self.sessions: dict[str, Session] = {}
        self.idle_since = time.monotonic()
        self.stopped = anyio.Event()
        self._journal = journal
        self._drivers = drivers
        self._tasks = tasks
        self._alarm = Alarm(lambda now: self.post(ev.Tick(at=now)))
        self._instances: dict[str, _Instance] = {}
        self._queue: deque[ev.Event] = deque()
        self._draining = False
        self._term = TERM
        tasks.start_soon(self._alarm.run)

    def post(self, event: ev.Event) -> None:
        """Give the core an event and start what it decides. Never waits."""
        self._queue.append(event)
        if self._draining:
            return
        self._draining = True
        try:
            while self._queue:
                taken = self._queue.popleft()
                for effect in self.core.handle(taken):
                    self._start(effect)
        finally:
            self._draining = False

    def request(self, session: Session) -> None:
        """A session wants an instance."""
        self.sessions[session.session_id] = session
        if session.plan.pty is not None:
            self._term = session.plan.pty.term
        self.post(
            ev.SessionRequested(
                at=anyio.current_time(),
                session_id=session.session_id,
                instance_id=fresh_instance_id(),
                key=session.plan.key,
            )
        )

    @property
    def instance_count(self) -> int:
        """How many instances exist in some form."""
        return len(self._instances)

    def stop(self, session_id: str, reason: str, status: int) -> None:
        """A session shall end."""
        self.post(
            ev.StopRequested(at=anyio.current_time(), session_id=session_id, reason=reason, status=status)
        )

    def forget(self, session: Session) -> None:
        """The client of an ended session has been told."""
        self.sessions.pop(session.session_id, None)
        self.idle_since = time.monotonic()

    def adopt(self, instance_id: str, driver: str, reason: str) -> None:
        """An instance that a dead supervisor left, of a driver that is open."""
        self._instances[instance_id] = _Instance(driver)
        self.post(ev.InstanceFound(at=anyio.current_time(), instance_id=instance_id, reason=reason))

    def set_clocks(self) -> None:
        """Set the clocks of all running guests: the host's has jumped."""
        for instance_id, instance in self._instances.items():
            if instance.access is not None:
                self._tasks.start_soon(self._set_clock, instance_id, instance.driver)

    def _start(self, effect: fx.Effect) -> None:
        match effect:
            case fx.InstanceEffect():
                self._start_instance_effect(effect)
            case fx.Cancel(instance_id=instance_id):
                scope = self._instances[instance_id].scope
                if scope is not None:
                    scope.cancel()
            case fx.WakeAt(deadline=deadline):
                self._alarm.wake_at(deadline)
            case fx.TellSession() | fx.EndSession():
                self._notify(effect)
            case fx.ReportLeak(instance_id=instance_id, message=message):
                log.error("instance-not-deleted", instance=instance_id, message=message)
            case fx.StopServing():
                self.stopped.set()

    def _notify(self, effect: fx.TellSession | fx.EndSession) -> None:
        session = self.sessions.get(effect.session_id)
        if isinstance(effect, fx.EndSession):
            log.info("session-ended", session=effect.session_id, status=effect.status, code=effect.code)
            if session is not None:
                session.finish(effect)
        elif session is not None:
            session.tell(effect.phase)

    def _start_instance_effect(self, effect: fx.InstanceEffect) -> None:
        if isinstance(effect, fx.Clone):
            self._instances[effect.instance_id] = _Instance(effect.key.driver)
        instance = self._instances[effect.instance_id]
        kind = type(effect).__name__.lower()
        session_id = effect.session_id if isinstance(effect, fx.Run) else ""
        try:
            row = self._journal.begin(
                instance_id=effect.instance_id, driver=instance.driver, kind=kind, session_id=session_id
            )
        except sqlite3.Error as error:
            log.error(  # noqa: TRY400 - no bug of ours
                "journal-not-written", effect=kind, instance=effect.instance_id, error=str(error)
            )
            if not isinstance(effect, fx.Delete):  # that one frees what is short
                self._queue.append(
                    self._failed(effect, "journal-failed", f"the journal can't be written: {error}")
                )
                return
            row = 0
        instance.scope = anyio.CancelScope()
        self._tasks.start_soon(self._answer, effect, instance, instance.scope, row)

    async def _answer(
        self, effect: fx.InstanceEffect, instance: _Instance, scope: anyio.CancelScope, row: int
    ) -> None:
        """Carry out one effect and post its one answer."""
        kind = type(effect).__name__.lower()
        begun = anyio.current_time()
        answer: ev.EffectEnded | None = None
        with scope:
            try:
                answer = await self._carry_out(effect, instance)
            except (DriverError, SshError) as error:
                answer = self._failed(effect, error.code, str(error))
            except Exception as error:  # a bug of ours ends one session, not all of them
                log.exception("effect-crashed", effect=kind, instance=effect.instance_id)
                answer = self._failed(effect, "internal-error", f"{type(error).__name__}: {error}")
        if answer is None:
            if not scope.cancel_called:
                return  # the whole supervisor is being cancelled
            answer = ev.EffectCancelled(at=anyio.current_time(), instance_id=effect.instance_id)
        instance.scope = None
        outcome = answer.code if isinstance(answer, ev.EffectFailed) else type(answer).__name__
        self._note_end(effect.instance_id, row, answer, outcome)
        log.info(
            "effect-ended",
            effect=kind,
            instance=effect.instance_id,
            outcome=outcome,
            seconds=round(anyio.current_time() - begun, 4),
        )
        if isinstance(answer, ev.DeleteDone):
            del self._instances[effect.instance_id]
            self.idle_since = time.monotonic()
        self.post(answer)

    def _note_end(self, instance_id: str, row: int, answer: ev.EffectEnded, outcome: str) -> None:
        """Write an effect's end. A row that stays open makes the next supervisor look twice; no harm."""
        try:
            self._journal.end(row, outcome)
            if isinstance(answer, ev.DeleteDone):
                self._journal.forget(instance_id)
        except sqlite3.Error as error:
            log.error("journal-not-written", instance=instance_id, error=str(error))  # noqa: TRY400

    @staticmethod
    def _failed(effect: fx.InstanceEffect, code: str, message: str) -> ev.EffectFailed:
        return ev.EffectFailed(
            at=anyio.current_time(), instance_id=effect.instance_id, code=code, message=message
        )

    async def _carry_out(self, effect: fx.InstanceEffect, instance: _Instance) -> ev.EffectEnded:
        driver = await self._drivers.get(instance.driver)
        name = effect.instance_id
        match effect:
            case fx.Clone(key=key):
                await driver.clone(_spec(name, key))
                return ev.CloneDone(at=anyio.current_time(), instance_id=name)
            case fx.Start():
                instance.access = await driver.start(name, lambda *_: None)
                self._tasks.start_soon(self._watch, name, instance)
                return ev.StartDone(
                    at=anyio.current_time(), instance_id=name, restored=instance.access.restored
                )
            case fx.Connect():
                if instance.access is None:
                    raise DriverError("the instance was not started")
                instance.link = await connect(instance.access, timeout_s=CONNECT_TIMEOUT_S)
                instance.shells = await prime(instance.link, tuple(Kind), term=self._term)
                return ev.ConnectDone(at=anyio.current_time(), instance_id=name)
            case fx.Run(session_id=session_id):
                if instance.link is None or instance.shells is None:
                    raise DriverError("the instance is not connected")
                session = self.sessions[session_id]
                try:
                    status = await session.run(
                        driver,
                        name,
                        instance.link,
                        instance.shells,
                        lambda: self.post(
                            ev.RunStarted(at=anyio.current_time(), instance_id=name, session_id=session_id)
                        ),
                    )
                except LinkLostError:
                    # Mostly because the VM died. Its watcher knows more, and the core then cancels this.
                    await anyio.sleep(VM_DEATH_S)
                    raise
                return ev.RunDone(
                    at=anyio.current_time(), instance_id=name, session_id=session_id, status=status
                )
            case fx.Delete():
                await self._delete(name, instance)
                return ev.DeleteDone(at=anyio.current_time(), instance_id=name)
        raise AssertionError(effect)  # pragma: no cover - the core has no other effects

    async def _delete(self, instance_id: str, instance: _Instance) -> None:
        """The VM first: it is thrown away, so nothing in it needs a farewell."""
        if instance.watch is not None:
            instance.watch.cancel()
        driver = await self._drivers.get(instance.driver)
        instance.access = None
        await driver.delete(instance_id)
        if instance.link is not None:
            with anyio.move_on_after(CLOSE_TIMEOUT_S):
                await instance.link.aclose()
            instance.link = None

    async def _watch(self, instance_id: str, instance: _Instance) -> None:
        """Tell the core when the VM dies."""
        with anyio.CancelScope() as scope:
            instance.watch = scope
            driver = await self._drivers.get(instance.driver)
            try:
                reason = await driver.wait_stopped(instance_id)
            except DriverError as error:
                reason = str(error)
            self.post(ev.VmDied(at=anyio.current_time(), instance_id=instance_id, reason=reason))

    async def _set_clock(self, instance_id: str, driver_name: str) -> None:
        try:
            await (await self._drivers.get(driver_name)).set_clock(instance_id)
        except DriverError as error:
            log.warning("clock-not-set", instance=instance_id, error=str(error))


def _spec(instance_id: str, key: PoolKey) -> InstanceSpec:
    return InstanceSpec(
        instance_id=instance_id,
        template=key.template,
        generation=key.generation,
        cpus=key.cpus,
        memory_mib=key.memory_mib,
        disk_gib=key.disk_gib,
        mounts=tuple(Mount(host=m.host, guest=m.guest, writable=m.writable) for m in key.mounts),
    )
