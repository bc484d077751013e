"""What is to be told about a session after its end, when its client has gone: one small file a session.

A session that could write in a mount gets a scan (`claude_vm.context.outside_names`). It is written down
before the client gets its exit status, and it stays written down until somebody has scanned: this supervisor
(`daemon.sessions.scanning`), or the next one of this home when this one ends before. What was
found stays for a week, for `info` and `ps --all`, and is told once, at the next command in the project.

The folder is all supervisors' of a home, so a file is only ever replaced as a whole.
"""

import contextlib
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from claude_vm.context.outside_names import Findings, Root
from claude_vm.supervisor.core.keys import MountKey
from claude_vm.supervisor.daemon.state.records import from_text, to_text

log = structlog.get_logger()

KEPT_S: Final = 7 * 86400.0
KEPT: Final = 50
"""Files at most; the oldest go."""

NAMED: Final = 5
"""Paths that a line names."""

_TICK_NS: Final = 1_000_000_000


class SessionReport(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a session's writing. `since` and `ended_at` are Unix times in seconds.

    `roots` are its writable mounts. Without `findings` nobody has looked yet.
    """

    session: str
    project: str
    since: float
    ended_at: float
    roots: tuple[Root, ...]
    findings: Findings | None = None
    told: bool = False

    @property
    def lines(self) -> tuple[str, ...]:
        """What is to be told, each a line; nothing when nothing was found."""
        found = self.findings
        if found is None:
            return ()
        lines: list[str] = []
        if count := found["files_count"]:
            what = "a file that has" if count == 1 else f"{count} files that have"
            names = _named([file["path"] for file in found["files"]], count)
            lines.append(
                f"the session {self.session} also changed files outside of its mounts,"
                f" through {what} other names there: {names}"
            )
        if count := found["unseen_count"]:
            what = "a folder" if count == 1 else f"{count} folders"
            names = _named([f"{path} ({reason})" for path, reason in found["unseen"]], count)
            lines.append(
                f"after the session {self.session}, {what} could not be searched for files that have"
                f" other names outside of its mounts: {names}"
            )
        return tuple(lines)


class Reports:
    """The reports of a home. Nothing here waits longer than for a small file."""

    def __init__(self, home: Path) -> None:
        self.folder = home / "reports"
        self._read_at = 0
        self._read: list[SessionReport] = []

    def request(self, session_id: str, project: str, since: float, mounts: Iterable[MountKey]) -> bool:
        """Write down that a scan is pending, unless the session could write nothing; return whether it is."""
        roots: list[Root] = [
            {"path": mount.host, "device": mount.device, "inode": mount.inode}
            for mount in mounts
            if mount.writable
        ]
        if not roots:
            return False
        report = SessionReport(
            session=session_id, project=project, since=since, ended_at=time.time(), roots=tuple(roots)
        )
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.write(report)
        except OSError as error:  # a session's end is not held up by it
            log.warning("scan-not-written-down", session=session_id, error=str(error))
            return False
        return True

    def write(self, report: SessionReport) -> None:
        """Keep a report in place of the session's former one.

        Raises:
            OSError: It can't be written.
        """
        path = self._path(report)
        new = path.with_suffix(f".new-{os.getpid()}")
        new.write_text(to_text(report) or "", encoding="ascii")
        new.replace(path)

    def drop(self, report: SessionReport) -> None:
        """Forget a report."""
        with contextlib.suppress(OSError):
            self._path(report).unlink()

    def all(self) -> list[SessionReport]:
        """Return all reports, oldest first; what is no report is left out.

        They are read again only when somebody has changed the folder: each command asks.
        """
        try:
            changed = self.folder.stat().st_mtime_ns
        except OSError:
            return []
        if changed != self._read_at:
            self._read = sorted(self._from_files(), key=lambda report: report.ended_at)
            # What changes within the same tick of the clock would not be seen.
            self._read_at = changed if changed < time.time_ns() - _TICK_NS else 0
        return self._read

    def of(self, project: str) -> list[SessionReport]:
        """Return a project's reports, oldest first."""
        return [report for report in self.all() if report.project == project]

    def prune(self) -> None:
        """Drop what is old, or too much."""
        found = self.all()
        oldest = time.time() - KEPT_S
        for number, report in enumerate(found):
            if report.ended_at < oldest or number < len(found) - KEPT:
                self.drop(report)

    def _from_files(self) -> Iterator[SessionReport]:
        try:
            paths = list(self.folder.glob("*.json"))
        except OSError:
            return
        for path in paths:
            with contextlib.suppress(OSError, ValueError):
                if (report := from_text(path.read_text(encoding="ascii"), SessionReport)) is not None:
                    yield report

    def _path(self, report: SessionReport) -> Path:
        return self.folder / f"{report.session}.json"


def _named(names: Sequence[str], count: int) -> str:
    shown = ", ".join(names[:NAMED])
    rest = count - min(len(names), NAMED)
    return f"{shown} and {rest} more" if rest else shown
