"""What the dispatcher writes into the journal around its effects, and what follows when it can't."""

import sqlite3

import structlog

from claude_vm.supervisor.core import effects as fx
from claude_vm.supervisor.core import events as ev
from claude_vm.supervisor.daemon.dispatch.instance import Instance
from claude_vm.supervisor.daemon.sessions.session import Session
from claude_vm.supervisor.daemon.state.journal import Journal

log = structlog.get_logger()


class EffectJournal:
    """Writes a row before each effect, and its end after it."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def begin(self, effect: fx.InstanceEffect, instance: Instance, session: Session | None) -> int:
        """Write that an effect is about to start; return its row.

        Raises:
            sqlite3.Error: It could not be written, so the effect must not start.
        """
        kind = type(effect).__name__.lower()
        try:
            return self._journal.begin(
                instance_id=effect.instance_id,
                driver=instance.driver,
                kind=kind,
                key=effect.key if isinstance(effect, fx.Clone) else None,
                # The row of one that was found is there.
                session=session.journaled
                if session is not None and isinstance(effect, fx.Run) and not session.found
                else None,
            )
        except sqlite3.Error as error:
            log.error(  # noqa: TRY400 - no bug of ours
                "journal-not-written", effect=kind, instance=effect.instance_id, error=str(error)
            )
            raise

    def end(self, instance: Instance, row: int, answer: ev.EffectEnded, outcome: str) -> None:
        """Write an effect's end. A row that stays open makes the next supervisor look twice; no harm.

        Nor does it harm if how to reach an instance stays unwritten: it is deleted then, not taken over.
        """
        name = instance.instance_id
        try:
            self._journal.end(row, outcome)
            match answer:
                case ev.StartDone() if instance.access is not None:
                    self._journal.note_access(name, instance.access)
                case ev.ConnectDone():
                    self._journal.note_warm(name)
                case ev.DeleteDone():
                    self._journal.forget(name)
        except sqlite3.Error as error:
            log.error("journal-not-written", instance=name, error=str(error))  # noqa: TRY400

    def note_started(self, session_id: str) -> None:
        """Write that a session's main command runs. Unwritten, the session ends with this supervisor."""
        try:
            self._journal.note_started(session_id)
        except sqlite3.Error as error:
            log.error("journal-not-written", session=session_id, error=str(error))  # noqa: TRY400
