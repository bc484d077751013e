"""What a session's client is told before it begins: of earlier sessions here, and of running ones."""

import msgspec
import structlog

from claude_vm.context.config.layers import Settings
from claude_vm.context.project import Project
from claude_vm.drivers.process import boot_id
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.sessions.plan import SessionPlan
from claude_vm.supervisor.daemon.sessions.sharing import shared, warning, writers, writers_elsewhere

log = structlog.get_logger()


async def tell_reports(command: Command, project: Project) -> None:
    """Tell the client what nobody has been told yet, also a quiet one: it is about what it may run next."""
    reports = command.supervisor.scanner.reports
    for report in reports.of(str(project.root)):
        if report.told or not report.lines:
            continue
        for line in report.lines:
            await command.warn(f"claude-vm: {line}")
        try:
            reports.write(msgspec.structs.replace(report, told=True))
        except OSError as error:  # then it is told once more
            log.warning("report-not-marked", session=report.session, error=str(error))


async def tell_sharing(command: Command, settings: Settings, plan: SessionPlan) -> None:
    """Say it when another running session can write where this one will."""
    if command.flags.quiet or not settings.session.note_second_writer:
        return
    supervisor = command.supervisor
    others = (
        *writers(supervisor.sessions.running.values()),
        *writers_elsewhere(supervisor.home, supervisor.supervisor_id, boot_id()),
    )
    if found := tuple(shared(plan.writes, others)):
        await command.say(f"claude-vm: {warning(found)}")
