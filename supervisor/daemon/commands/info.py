"""`claude-vm info`: the current project, its template and what a session would get."""

import time
from collections.abc import Sequence

import msgspec

from claude_vm.context.config.setting import Obeyed
from claude_vm.context.errors import BrokenRepositoryError, LinkError
from claude_vm.context.ports import plan_ports
from claude_vm.context.project import Project
from claude_vm.drivers.api import TemplateRecord
from claude_vm.supervisor.core.keys import MountKey
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.clients.table import ago, size_text
from claude_vm.supervisor.daemon.clients.workspace import Workspace
from claude_vm.supervisor.daemon.commands.notices import tell_reports
from claude_vm.supervisor.daemon.place.key import planned_mounts, session_key
from claude_vm.supervisor.daemon.place.resolve import resolve_target
from claude_vm.supervisor.daemon.pool.policy import MIB_PER_GB
from claude_vm.supervisor.daemon.pool.room import pool_of
from claude_vm.supervisor.daemon.templates.current import current_template, templates_elsewhere
from claude_vm.supervisor.grammar.commands.templates import Info
from claude_vm.supervisor.wire.escape import escape_cell


class ProjectInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What ``info --json`` prints. `status`: ``running``, ``stopped``, ``not created`` or ``stale``.

    The sizes are those that a session would have, with these settings and flags; `ready` is the number of VMs
    that are ready for it; `publish` are the ports that it would publish, as ``[HOST:]GUEST``, or ``auto``;
    `reports` what was found out about its earlier sessions, in words.
    `problem` says why there would be no session: what is wrong with the project as it is now, or "". What is
    told then is the project that is remembered, without mounts.
    """

    project: str
    template: str
    status: str
    driver: str
    accelerator: str
    accelerator_reason: str
    ram_clones: bool
    disk_gb: int
    memory_gb: int
    cpus: int
    mounts: list[str]
    scripts: list[str] = []
    capabilities: list[str] = []
    claude_version: str | None
    generation: str | None
    size_bytes: int
    last_used_at: float | None
    sessions: list[str]
    ready: int
    publish: list[str]
    reports: list[str]
    problem: str


async def info(command: Command, request: Info) -> int:
    """Describe the project; a missing template is a fact, not a failure."""
    workspace = command.workspace
    project, problem = _project(workspace)
    target = await resolve_target(workspace, *Obeyed, project=project)
    settings, driver, name = target.settings, target.driver, target.template_name
    template = await current_template(driver, project)
    facts = await driver.capabilities()
    sessions = [
        s.session_id for s in command.supervisor.sessions.running.values() if s.plan.key.template == name
    ]
    mounts: Sequence[MountKey] = ()
    key = ready = None
    if template is not None and not problem:
        key = await session_key(target, template)
        mounts = key.mounts
        ready = pool_of(key, command.supervisor.dispatcher.core.pools())
    elif not problem:
        mounts = await planned_mounts(target, "/home/claude")
    reports = command.supervisor.scanner.reports.of(str(project.root))
    shown = ProjectInfo(
        project=str(project.root),
        template=name,
        status=_status(template, sessions),
        driver=driver.name,
        accelerator=facts.accelerator,
        accelerator_reason=facts.accelerator_reason,
        ram_clones=facts.ram_clones,
        disk_gb=key.disk_gib if key else settings.vm.disk,
        memory_gb=key.memory_mib // MIB_PER_GB if key else settings.vm.memory,
        cpus=key.cpus if key else settings.vm.cpus,
        mounts=[mount.shown for mount in mounts],
        claude_version=template.claude_version if template else None,
        generation=template.generation if template else None,
        size_bytes=template.size_bytes if template else 0,
        last_used_at=template.last_used_at or None if template else None,
        sessions=sessions,
        ready=ready.warm if ready else 0,
        publish=plan_ports(settings.published).words,
        reports=[line for report in reports for line in report.lines],
        problem=problem,
    )
    await tell_reports(command, project)
    if request.json:
        await command.out_json(shown)
    else:
        others = {} if template else await templates_elsewhere(target)
        await command.out(*_text(shown, tuple(others)))
    return 0


def _project(workspace: Workspace) -> tuple[Project, str]:
    """Return the project, and why it can't be mounted as it is."""
    try:
        project, grown = workspace.found_project()
    except (BrokenRepositoryError, LinkError) as error:
        cwd = workspace.caller.cwd
        was = workspace.supervisor.known_folders.known().nearest(cwd)
        if was is None:
            return Project(root=cwd, cwd=cwd, template_root=cwd), error.message
        return Project(root=was.path, cwd=cwd, template_root=was.template_root), error.message
    if grown is None:
        return project, ""
    was = grown.folders[0]
    return Project(root=was.path, cwd=project.cwd, template_root=was.template_root), grown.text


def _status(template: TemplateRecord | None, sessions: Sequence[str]) -> str:
    if template is None:
        return "not created"
    if template.stale:
        return "stale"
    return "running" if sessions else "stopped"


def _text(shown: ProjectInfo, others: Sequence[str]) -> list[str]:
    used = "never" if shown.last_used_at is None else f"{ago(time.time() - shown.last_used_at)} ago"
    lacking = "none"
    if others:
        lacking += f" for {shown.driver}; there is one for {' and '.join(others)}: --driver {others[0]}"
    lines = [
        ("Project", shown.project),
        ("Template", f"{shown.template} ({shown.status})"),
        ("Generation", shown.generation or f"{lacking}; build it with: claude-vm setup"),
        ("Driver", f"{shown.driver}, {shown.accelerator} ({shown.accelerator_reason})"),
        ("RAM clones", "yes" if shown.ram_clones else "no"),
        ("Size", f"{shown.disk_gb} GB disk, {shown.memory_gb} GB memory, {shown.cpus} CPUs"),
        ("On disk", size_text(shown.size_bytes)),
        ("Last used", used),
        ("Claude Code", shown.claude_version or "not installed"),
        ("Capabilities", ", ".join(shown.capabilities) or "none"),
        ("Scripts", ", ".join(shown.scripts) or "none"),
        ("Sessions", ", ".join(shown.sessions) or "none"),
        ("Ready VMs", str(shown.ready)),
        ("Ports", ", ".join(shown.publish) or "none"),
        *(("Mount", mount) for mount in shown.mounts),
        *(("Report", report) for report in shown.reports),
        *((("Problem", shown.problem),) if shown.problem else ()),
    ]
    return [f"{name + ':':<14}{escape_cell(value)}" for name, value in lines]
