"""Tells what was found out about earlier sessions of a project: once, at the next command in it."""

import msgspec
import structlog

from claude_vm.context.project import Project
from claude_vm.supervisor.daemon.commands.command import Command

log = structlog.get_logger()


async def tell_reports(command: Command, project: Project) -> None:
    """Tell the client what nobody has been told yet, also a quiet one: it is about what it may run next."""
    reports = command.host.looker.reports
    for report in reports.of(str(project.root)):
        if report.told or not report.lines:
            continue
        for line in report.lines:
            await command.client.note(f"claude-vm: {line}", "error")
        try:
            reports.write(msgspec.structs.replace(report, told=True))
        except OSError as error:  # then it is told once more
            log.warning("report-not-marked", session=report.session, error=str(error))
