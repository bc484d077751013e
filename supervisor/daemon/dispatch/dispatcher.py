"""Turns the core's effects into tasks, and their ends into events. What the tasks do is in `execution`.

There is no await between taking an event and starting its last effect: `post` is synchronous, events that
arise meanwhile wait in a queue. So what the core decided is under way, and in the journal, before anything
else can happen.
"""

import os
import secrets
import sqlite3
import time
from collections import deque
from collections.abc import Callable

import anyio
import structlog
from anyio.abc import TaskGroup

from claude_vm.drivers.api import Access, TemplateRecord
from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.conditions import Condition
from claude_vm.supervisor.core import effects as fx
from claude_vm.supervisor.core import events as ev
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.invariants import BrokenInvariant
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.dispatch.clock import Alarm
from claude_vm.supervisor.daemon.dispatch.effect_journal import EffectJournal
from claude_vm.supervisor.daemon.dispatch.execution import AdmitClone, Execution, admit_all
from claude_vm.supervisor.daemon.dispatch.faults import Action, Faults, inflict
from claude_vm.supervisor.daemon.dispatch.instance import Instance, Watchers
from claude_vm.supervisor.daemon.drivers import DriverSet
from claude_vm.supervisor.daemon.pool.memory import Available, MemoryWatch, unknown
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.daemon.sessions.sessions import Sessions
from claude_vm.supervisor.daemon.state.journal import Journal
from claude_vm.supervisor.ssh.errors import SshError

log = structlog.get_logger()

VALIDATE = "CLAUDE_VM_VALIDATE"
"""For tests only: with this variable in its environment a supervisor validates its core after each event."""


def fresh_instance_id() -> str:
    """Return an id that no instance ever had."""
    return f"i-{secrets.token_hex(5)}"


def fresh_session_id() -> str:
    """Return an id that no session ever had; it is hexadecimal, for the guest's sake."""
    return secrets.token_hex(4)


class Dispatcher:
    """Owns the tasks of all effects, also those that are for `sessions`.

    `idle_since` is an instant of `time.monotonic`.
    """

    def __init__(
        self,
        core: Core,
        journal: Journal,
        drivers: DriverSet,
        tasks: TaskGroup,
        sessions: Sessions,
        *,
        admit: AdmitClone = admit_all,
        available: Available = unknown,
        faults: Faults | None = None,
    ) -> None:
        self.core = core
        self.idle_since = time.monotonic()
        self.stopped = anyio.Event()
        self._effect_journal = EffectJournal(journal)
        self._drivers = drivers
        self._tasks = tasks
        self._sessions = sessions
        self._faults = faults
        self._alarm = Alarm(lambda now: self.post(ev.Tick(at=now)))
        self._watchers = Watchers(drivers, tasks, self.post)
        self._memory = MemoryWatch(core, drivers, journal, self.post, available)
        self._execution = Execution(
            drivers,
            sessions.running,
            self._watchers,
            started=self._command_started,
            admit=admit,
            faults=faults,
        )
        self._instances: dict[str, Instance] = {}
        self._changed = Condition()
        self._queue: deque[ev.Event] = deque()
        self._draining = False
        self._validates = VALIDATE in os.environ
        tasks.start_soon(self._alarm.run)
        tasks.start_soon(self._memory.run)
        self._memory.recall()

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
                if self._validates:
                    self._validate(taken)
        finally:
            self._draining = False
            self._changed.notify_all()

    def _validate(self, event: ev.Event) -> None:
        try:
            self.core.validate()
        except BrokenInvariant as error:  # not everybody who posts an event lets a daemon die of it
            log.critical("core-broken", after=type(event).__name__, broken=str(error))
            raise

    async def change(self) -> None:
        """Wait until the core has taken another event. Look at it before; there is no await in between."""
        await self._changed.wait()

    async def begin(self, session: Session) -> None:
        """Let a session live, with an instance of its own.

        Raises:
            CommandError: See `Sessions.begin`.
        """
        self._execution.expect(session)
        await self._begin(
            session,
            lambda: self.post(
                ev.SessionRequested(
                    at=anyio.current_time(),
                    session_id=session.session_id,
                    instance_id=fresh_instance_id(),
                    key=session.plan.key,
                )
            ),
        )

    @property
    def instance_count(self) -> int:
        """How many instances exist in some form."""
        return len(self._instances)

    @property
    def warm_count(self) -> int:
        """How many instances are connected and wait for a session."""
        return sum(instance.is_warm for instance in self._instances.values())

    def stop(self, session_id: str, reason: str, status: int) -> None:
        """A session that runs shall end: now, or as soon as the core knows it."""
        if not self.core.knows(session_id):
            self._sessions.running[session_id].stop = reason, status
            return
        self.post(
            ev.StopRequested(at=anyio.current_time(), session_id=session_id, reason=reason, status=status)
        )

    def template_changed(self, driver: str, template: str, record: TemplateRecord | None) -> None:
        """A template has a new generation, or none any more: what is ready of another one has to go."""
        generation, sizes = "", None
        if record is not None:
            generation, sizes = record.generation, (record.cpus, record.memory_mib, record.disk_gib)
        self.post(
            ev.TemplateChanged(
                at=anyio.current_time(), driver=driver, template=template, generation=generation, sizes=sizes
            )
        )

    async def unused(self, driver: str, template: str) -> None:
        """Wait until no instance of a template is left."""
        while any(
            i.key is not None and (i.key.driver, i.key.template) == (driver, template)
            for i in self._instances.values()
        ):
            await self.change()

    # What a dead supervisor left, of drivers that are open.

    def adopt_garbage(self, instance_id: str, driver: str, reason: str) -> None:
        """An instance shall be deleted."""
        self._instances[instance_id] = Instance(instance_id, driver)
        self.post(ev.InstanceFound(at=anyio.current_time(), instance_id=instance_id, reason=reason))

    def adopt_warm(self, instance_id: str, key: PoolKey, access: Access, age_s: float) -> None:
        """An instance that was made `age_s` seconds ago can serve a session."""
        self._adopt_running(instance_id, key, access)
        now = anyio.current_time()
        self.post(ev.WarmFound(at=now, instance_id=instance_id, key=key, made_at=now - age_s))

    async def adopt_session(self, session: Session, instance_id: str, access: Access) -> None:
        """A session goes on in an instance."""

        def found() -> None:
            self._adopt_running(instance_id, session.plan.key, access)
            self.post(
                ev.SessionFound(
                    at=anyio.current_time(),
                    session_id=session.session_id,
                    instance_id=instance_id,
                    key=session.plan.key,
                )
            )

        await self._begin(session, found)

    def lose_session(self, session: Session, code: str, message: str) -> None:
        """A session does not go on, for a reason."""
        event = ev.SessionLost(
            at=anyio.current_time(), session_id=session.session_id, code=code, message=message
        )
        self._sessions.lose(session, lambda: self.post(event))

    def set_clocks(self) -> None:
        """Set the clocks of all running guests to the host's."""
        for instance_id, instance in self._instances.items():
            if instance.access is not None:
                self._tasks.start_soon(self._set_clock, instance_id, instance.driver)

    async def _begin(self, session: Session, request: Callable[[], None]) -> None:
        def ask() -> None:
            request()
            if session.stop is not None:
                self.stop(session.session_id, *session.stop)

        session.ports.keep_out(lambda: self._vms_beside(session.session_id))
        await self._sessions.begin(session, ask)

    def _vms_beside(self, session_id: str) -> tuple[int, ...]:
        """Return the processes of all VMs in which others than this session may have run something."""
        return tuple(
            instance.access.pid
            for name, instance in self._instances.items()
            if instance.access is not None
            and instance.access.pid
            and not instance.is_warm
            and self.core.session_of(name) != session_id
        )

    def _adopt_running(self, instance_id: str, key: PoolKey, access: Access) -> None:
        instance = self._instances[instance_id] = Instance(instance_id, key.driver, key)
        instance.access = access
        self._watchers.watch_vm(instance)  # it tells nothing before the core knows the instance: a task

    def _start(self, effect: fx.Effect) -> None:
        match effect:
            case fx.InstanceEffect():
                self._start_instance_effect(effect)
            case fx.RequestWarm(key=key, paused=paused):
                self._queue.append(
                    ev.WarmRequested(
                        at=anyio.current_time(),
                        instance_id=fresh_instance_id(),
                        key=key,
                        paused=paused,
                        available_mib=self._memory.available(),
                    )
                )
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
        session = self._sessions.running.get(effect.session_id)
        if isinstance(effect, fx.EndSession):
            log.info("session-ended", session=effect.session_id, status=effect.status, code=effect.code)
            if session is not None:
                session.finish(effect)
        elif session is not None:
            session.tell(effect.phase, self.core.source_of(effect.session_id))

    def _start_instance_effect(self, effect: fx.InstanceEffect) -> None:
        name = effect.instance_id
        if isinstance(effect, fx.Clone):
            self._instances[name] = Instance(name, effect.key.driver, effect.key)
        instance = self._instances[name]
        session = self._sessions.running.get(self.core.session_of(name))
        try:
            row = self._effect_journal.begin(effect, instance, session)
        except sqlite3.Error as error:
            if not isinstance(effect, fx.Delete):  # that one frees what is short
                self._queue.append(
                    self._failed(effect, "journal-failed", f"the journal can't be written: {error}")
                )
                return
            row = 0
        if self._faults is not None:
            self._faults.due(f"begun:{type(effect).__name__.lower()}", name)
        instance.scope = anyio.CancelScope()
        self._tasks.start_soon(self._answer, effect, instance, session, instance.scope, row)

    async def _answer(
        self,
        effect: fx.InstanceEffect,
        instance: Instance,
        session: Session | None,
        scope: anyio.CancelScope,
        row: int,
    ) -> None:
        """Carry out one effect and post its one answer."""
        kind = type(effect).__name__.lower()
        begun = anyio.current_time()
        answer: ev.EffectEnded | None = None
        with scope:
            try:
                answer = await self._execution.carry_out(effect, instance, session)
            except DriverError as error:
                answer = self._failed(effect, error.code, error.message, error.lines)
            except SshError as error:
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
        self._effect_journal.end(instance, row, answer, outcome)
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
        if isinstance(answer, ev.ConnectDone) and instance.key is not None:
            await self._memory.look_at_new(instance.key, instance.instance_id)

    def _command_started(self, instance: Instance, session_id: str) -> None:
        name = instance.instance_id
        self._effect_journal.note_started(session_id)
        self.post(ev.RunStarted(at=anyio.current_time(), instance_id=name, session_id=session_id))
        if self._faults is not None:
            action = self._faults.due("after:run-started", name)
            self._tasks.start_soon(self._inflict, action, instance)

    async def _inflict(self, action: Action | None, instance: Instance) -> None:
        driver = await self._drivers.get(instance.driver)
        await inflict(action, instance.instance_id, driver, instance.link)

    @staticmethod
    def _failed(
        effect: fx.InstanceEffect, code: str, message: str, detail: tuple[str, ...] = ()
    ) -> ev.EffectFailed:
        return ev.EffectFailed(
            at=anyio.current_time(),
            instance_id=effect.instance_id,
            code=code,
            message=message,
            detail=detail,
        )

    async def _set_clock(self, instance_id: str, driver_name: str) -> None:
        try:
            await (await self._drivers.get(driver_name)).set_clock(instance_id)
        except DriverError as error:
            log.warning("clock-not-set", instance=instance_id, error=str(error))
        except Exception:  # a bug around one guest must not end the others
            log.exception("clock-not-set", instance=instance_id)
