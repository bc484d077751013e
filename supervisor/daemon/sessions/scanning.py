"""Scans for what sessions changed under other names, once they have ended: in the background, one at a time.

The scan is a program of its own with the lowest priority. So it delays no session, not even in a project
with a million files, and a supervisor that ends ends it too; what was not scanned then stays pending.
"""

import contextlib
import json
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec
import structlog

from claude_vm.context import outside_names
from claude_vm.context.outside_names import Findings, Root
from claude_vm.drivers import locks
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.process import BARE, run_tool
from claude_vm.supervisor.conditions import AutoResetEvent
from claude_vm.supervisor.core.keys import MountKey
from claude_vm.supervisor.daemon.state.reports import Reports, SessionReport

log = structlog.get_logger()

SECONDS: Final = 600.0
"""How long one scan may take. It may have to wait for a processor."""

Scan = Callable[[Sequence[Root], float], Awaitable[Findings]]


async def scan(roots: Sequence[Root], since: float) -> Findings:
    """Scan with the program; what goes wrong with it is a finding, too."""
    order = {"roots": roots, "since": since, "seconds": outside_names.SECONDS}
    argv = [sys.executable, "-I", "-S", outside_names.__file__]
    try:
        done = await run_tool(argv, timeout_s=SECONDS, input=json.dumps(order).encode(), env=BARE)
        return msgspec.convert(json.loads(done.stdout), Findings)
    except (DriverError, ValueError) as error:
        log.warning("scan-failed", error=str(error))
        missed = [(root["path"], "the search failed, or took too long") for root in roots]
        return {"files": [], "files_count": 0, "unseen": missed, "unseen_count": len(missed)}


class Scanner:
    """Carries out the pending scans of a home, as long as `serve` runs."""

    def __init__(self, reports: Reports, by: Scan = scan) -> None:
        self.reports = reports
        self._scan = by
        self._wake = AutoResetEvent()

    def request(self, session_id: str, project: str, since: float, mounts: Iterable[MountKey]) -> None:
        """Write down that a scan is pending (see `Reports.request`), and scan when there is time."""
        if self.reports.request(session_id, project, since, mounts):
            self.soon()

    def soon(self) -> None:
        """Scan when there is time: one is pending."""
        self._wake.set()

    async def serve(self) -> None:
        """Carry out what is pending, now and whenever more is. Never returns."""
        while True:
            try:
                await self._scan_all()
            except OSError as error:
                log.warning("scans-not-kept", error=str(error))
            await self._wake.wait()

    async def _scan_all(self) -> None:
        if not self.reports.folder.is_dir():
            return
        with self._alone() as alone:
            if not alone:  # the other supervisor goes on until nothing is pending
                return
            self.reports.prune()
            while pending := [report for report in self.reports.all() if report.findings is None]:
                roots = pending[0].roots
                together = [report for report in pending if report.roots == roots]
                found = await self._scan(roots, min(report.since for report in together))
                told = [report for report in self.reports.all() if report.findings]
                for report in together:
                    before = [other.findings for other in told if other.project == report.project]
                    mine = _news(_of(report, found), [findings for findings in before if findings])
                    self._keep(msgspec.structs.replace(report, findings=mine))

    def _keep(self, report: SessionReport) -> None:
        if not report.lines:
            self.reports.drop(report)
            return
        self.reports.write(report)
        for line in report.lines:
            log.warning("told-after-session", session=report.session, project=report.project, what=line)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Hold the lock of those who scan in this home; yields False if somebody else has it."""
        descriptor = locks.take(self.reports.folder / "lock")
        try:
            yield descriptor is not None
        finally:
            if descriptor is not None:
                os.close(descriptor)


def _of(report: SessionReport, found: Findings) -> Findings:
    """Return what of a scan for several sessions is about this one: what changed since it began.

    Where not all files are named, the others may be any session's, so each is told of all.
    """
    if found["files_count"] > len(found["files"]):
        return found
    files = [file for file in found["files"] if file["at"] >= report.since - outside_names.CLOCK_S]
    return {**found, "files": files, "files_count": len(files)}


def _news(found: Findings, earlier: Sequence[Findings]) -> Findings:
    """Return what was not found before: a folder that can't be searched may stay so for ever.

    And the same change of a file may lie within the margin of the next session's beginning. Where not all of
    them are named, any may be new.
    """
    news = found
    if found["files_count"] == len(found["files"]):
        told = {(file["path"], file["at"]) for findings in earlier for file in findings["files"]}
        files = [file for file in found["files"] if (file["path"], file["at"]) not in told]
        news = {**news, "files": files, "files_count": len(files)}
    if found["unseen_count"] == len(found["unseen"]):
        known = {tuple(item) for findings in earlier for item in findings["unseen"]}
        unseen = [item for item in found["unseen"] if tuple(item) not in known]
        news = {**news, "unseen": unseen, "unseen_count": len(unseen)}
    return news
