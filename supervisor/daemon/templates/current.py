"""The project's template: which one is current, and building a new one. Used by several commands."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import anyio
import msgspec

from claude_vm.context.config.layers import Settings
from claude_vm.context.loopback import guest_proxies
from claude_vm.context.opening import opened, read_file, real_path
from claude_vm.context.project import Project, template_name
from claude_vm.drivers import registry
from claude_vm.drivers.api import Driver, Progress, TemplateRecord, TemplateSpec
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.images.certificates import MAX_BUNDLE_BYTES, host_certificates
from claude_vm.drivers.images.claude_code import ensure_claude_code
from claude_vm.drivers.programs import BuildEnvironment
from claude_vm.supervisor.daemon.clients.workspace import Workspace
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.pool.policy import MIB_PER_GB
from claude_vm.supervisor.daemon.templates.builds import announced
from claude_vm.supervisor.daemon.templates.waiting import wait_for_build


class Target(msgspec.Struct, frozen=True):
    """What a template is for, and made with: a caller's project, as its settings say, by a driver."""

    workspace: Workspace
    project: Project
    settings: Settings
    driver: Driver

    @property
    def template_name(self) -> str:
        """The name that its template has, or would have."""
        return template_name(self.project.template_root)


async def current_template(driver: Driver, project: Project) -> TemplateRecord | None:
    """Return the current generation of the project's template, or None when there is none."""
    name = template_name(project.template_root)
    return next((t for t in await driver.templates() if t.name == name), None)


async def templates_elsewhere(target: Target) -> Mapping[str, TemplateRecord]:
    """Return the project's templates of other drivers that isolate, by driver."""
    found: dict[str, TemplateRecord] = {}
    for name in registry.ISOLATING:
        if name != target.driver.name:
            driver = await target.workspace.supervisor.drivers.get(name)
            template = await current_template(driver, target.project)
            if template is not None:
                found[name] = template
    return found


async def build_template(target: Target, *, agent: bool) -> TemplateRecord:
    """Build a new generation of the project's template, telling how far it is.

    Raises:
        DriverError: It fails; the former generation is still the current one.
        CommandError: The caller interrupted it; likewise.
    """
    begun = time.monotonic()
    workspace, driver, name = target.workspace, target.driver.name, target.template_name
    async with workspace.console.progress() as told:
        with announced(workspace.supervisor.home, driver, name, workspace.caller.pid, told) as progress:
            record = await workspace.console.unless_interrupted(
                lambda: _build(target, agent=agent, progress=progress)
            )
    workspace.supervisor.dispatcher.template_changed(driver, record.name, record)
    claude_text = f", Claude Code {record.claude_version}" if record.claude_version else ""
    await workspace.console.say(
        f"template {record.name} is ready: {record.disk_gib} GB disk, {record.memory_mib // MIB_PER_GB} GB"
        f" memory, {record.cpus} CPUs{claude_text} ({time.monotonic() - begun:.0f} s)"
    )
    return record


async def usable_template(target: Target) -> TemplateRecord:
    """Return the current template; without one that can be used, build it if the caller agrees.

    If somebody builds it at this moment, wait for that; only if nothing comes of it, ask.

    Raises:
        CommandError: There is none, and it shall not be built or waited for; or the caller interrupted that.
        DriverError: The build fails.
    """
    template = await _waited_for(target)
    if template is not None and not template.stale:
        return template
    other = ""
    workspace, driver = target.workspace, target.driver
    if template is None:
        code, lacking, agent = "template-missing", "has no template yet", True
        if elsewhere := await templates_elsewhere(target):
            lacking = f"has no template for the driver {driver.name}; there is one for {_names(elsewhere)}"
            other = await _way_to(workspace, next(iter(elsewhere)))
    else:
        code, lacking = "template-stale", "has a template of another version of claude-vm"
        agent = template.claude_version is not None
    await _check(driver)
    if not workspace.caller.flags.auto_setup and not await workspace.console.confirm(
        f"This project {lacking}. Build it now (some minutes, once)?"
    ):
        raise CommandError(
            code,
            f"{target.project.template_root} {lacking}",
            hint=f"{other}build it with: claude-vm{_as_asked(workspace)} setup   (or pass --auto-setup)",
        )
    template = await _waited_for(target)  # somebody may have begun in the meantime
    if template is not None and not template.stale:
        return template
    return await build_template(target, agent=agent)


async def _waited_for(target: Target) -> TemplateRecord | None:
    """Return the current template; without a usable one, after the build that is under way, if one is."""
    template = await current_template(target.driver, target.project)
    if template is not None and not template.stale:
        return template
    await wait_for_build(target.workspace, target.driver.name, target.template_name)
    return await current_template(target.driver, target.project)


def _names(templates: Mapping[str, TemplateRecord]) -> str:
    return " and ".join(f"{name}{' (stale)' if found.stale else ''}" for name, found in templates.items())


async def _way_to(workspace: Workspace, name: str) -> str:
    """Return the beginning of a hint: how another driver is used, or what keeps this caller from it."""
    lacking = [each for each in registry.find(name).needs() if workspace.programs().find(each) is None]
    if lacking:
        return f"for {name}, {workspace.programs().absence(*lacking)}; or "
    return f"use it with: --driver {name}; or "


async def _check(driver: Driver) -> None:
    """Raise DriverError where the driver can't be used on this host: building would come to that too late."""
    for problem in await driver.diagnose():
        if problem.fatal:
            raise DriverError(problem.what, hint=problem.fix)


def _as_asked(workspace: Workspace) -> str:
    """Return the flag by which another command means the same driver."""
    return f" --driver {workspace.caller.flags.driver}" if workspace.caller.flags.driver else ""


async def _build(target: Target, *, agent: bool, progress: Progress) -> TemplateRecord:
    workspace, project, settings, driver = target.workspace, target.project, target.settings, target.driver
    await _check(driver)
    claude = None
    if agent:
        claude = await ensure_claude_code(
            workspace.supervisor.home / "cache",
            progress,
            environ=workspace.caller.environ,
            programs=workspace.programs(),
        )
    uid, gid = _owner(project)
    host_address = (await driver.capabilities()).host_address
    return await driver.build_template(
        TemplateSpec(
            name=target.template_name,
            project=str(project.template_root),
            cpus=settings.vm.cpus,
            memory_mib=settings.vm.memory * MIB_PER_GB,
            disk_gib=settings.vm.disk,
            image=_image(workspace, settings),
            uid=uid,
            gid=gid,
            claude_binary=claude.binary if claude else None,
            claude_version=claude.version if claude else None,
            ca_certificates=await _certificates(workspace, settings),
            proxies=tuple(guest_proxies(workspace.caller.environ, host_address).items()),
            environ=tuple(BuildEnvironment(workspace.programs(), workspace.caller.environ).environ.items()),
        ),
        progress,
    )


def _image(workspace: Workspace, settings: Settings) -> str:
    """Return the image to start from, a file's path without links.

    Raises:
        LinkError: It leads out of where guests can write.
        CommandError: It is gone.
    """
    image = settings.vm.image
    if not isinstance(image, Path):
        return image or ""
    try:
        return str(real_path(image, workspace.guard()))
    except OSError as error:
        raise CommandError("bad-image", f"the image {image} can't be used: {error.strerror}") from error


async def _certificates(workspace: Workspace, settings: Settings) -> tuple[str, ...]:
    if settings.network.ca != "host":
        return ()
    guard = workspace.guard()

    def read(path: Path) -> bytes:
        found = read_file(workspace.caller.cwd / path, MAX_BUNDLE_BYTES, guard)
        return b"" if found is None else found[1]

    return await anyio.to_thread.run_sync(
        partial(host_certificates, workspace.caller.environ, read_named=read)
    )


def _owner(project: Project) -> tuple[int, int]:
    """Return uid and gid of a project's owner.

    Raises:
        CommandError: The project is gone, or was replaced by a link.
    """
    try:
        with opened(project.root) as found:
            owner = found.status
    except OSError as error:
        raise CommandError("bad-project", f"{project.root} is gone: {error.strerror}") from error
    if found.path != project.root:
        raise CommandError("bad-project", f"{project.root} was replaced by a link to {found.path}")
    return owner.st_uid, owner.st_gid
