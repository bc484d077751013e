"""`claude-vm setup`, `list`, `clean` and `clean-all`: the templates of this home."""

import time
from contextlib import suppress

import anyio
import msgspec

from claude_vm.context.config.setting import Obeyed
from claude_vm.context.project import template_name
from claude_vm.drivers import registry
from claude_vm.drivers.api import Driver, TemplateRecord
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.images.claude_code import remove_downloads
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.clients.table import ago, size_text, table
from claude_vm.supervisor.daemon.commands.stop import stop_sessions
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.place.resolve import resolve_target
from claude_vm.supervisor.daemon.templates.current import build_template
from claude_vm.supervisor.grammar.commands.templates import Clean, CleanAll, ListTemplates, Setup

UNUSED_S = 30 * 86400.0
"""A template that was not used for so long counts as unused."""


GIVE_UP_S = 30.0
"""How long the ready VMs of a template that is deleted may take to go, in seconds."""


async def setup(command: Command, request: Setup) -> int:
    """Build the project's template beside the old one, and swap at the end; 0 when it is the current one."""
    target = await resolve_target(command.workspace, Obeyed.TEMPLATE)
    await build_template(target, agent=not request.no_agent)
    return 0


async def list_templates(command: Command, request: ListTemplates) -> int:
    """List templates: never instances of sessions."""
    now = time.time()
    found = [record for _, record in await _templates(command)]
    if request.unused:
        found = [t for t in found if now - _last_used(t) >= UNUSED_S]
    if request.json:
        await command.out_json([msgspec.structs.asdict(t) for t in found])
        return 0
    head = ["TEMPLATE", "DRIVER", "GENERATION", "LAST USED"]
    rows = [
        [t.name, t.driver, f"{t.generation} (stale)" if t.stale else t.generation, ago(now - _last_used(t))]
        for t in found
    ]
    if request.disk_usage:
        head.append("SIZE")
        for row, record in zip(rows, found, strict=True):
            row.append(size_text(record.size_bytes))
    head.append("PROJECT")
    for row, record in zip(rows, found, strict=True):
        row.append(record.project)
    await command.out(*table(head, rows))
    return 0


async def clean(command: Command, request: Clean) -> int:
    """Delete the current project's template."""
    name = template_name((await command.workspace.project()).template_root)
    found = [(d, t) for d, t in await _templates(command) if t.name == name]
    if not found:
        await command.say(f"there is no template {name}{_of_named(command)}")
        return 0
    drivers = " and ".join(d.name for d, _ in found)
    if not request.yes and not await command.confirm(f"Delete the template {name} ({drivers})?"):
        raise _unconfirmed()
    await _delete(command, found, force=request.force)
    return 0


async def clean_all(command: Command, request: CleanAll) -> int:
    """Delete all templates, and what was cached for them."""
    found = await _templates(command)
    if not request.yes and not await command.confirm(f"Delete all templates ({len(found)}) and caches?"):
        raise _unconfirmed()
    await _delete(command, found, force=request.force)
    for name in registry.DRIVERS:
        for removed in await (await command.supervisor.drivers.get(name)).collect_garbage(images=True):
            await command.say_verbose(f"removed {removed}")
    for removed in await remove_downloads(command.supervisor.home / "cache"):
        await command.say_verbose(f"removed {removed}")
    return 0


def _of_named(command: Command) -> str:
    return f" of the driver {command.flags.driver}" if command.flags.driver else ""


def _unconfirmed() -> CommandError:
    return CommandError("not-confirmed", "nothing was deleted", hint="pass --yes to answer yes")


def _last_used(record: TemplateRecord) -> float:
    return max(record.last_used_at, record.created_at)


async def _templates(command: Command) -> list[tuple[Driver, TemplateRecord]]:
    """Return all templates with their drivers; of one driver only, if the command names it."""
    named = command.flags.driver or registry.AUTO
    registry.check(named)
    found: list[tuple[Driver, TemplateRecord]] = []
    for name in registry.DRIVERS if named == registry.AUTO else (named,):
        try:
            driver = await command.supervisor.drivers.get(name)
        except DriverError as error:
            await command.say_verbose(f"driver {name}: {error}")
            continue
        found += [(driver, record) for record in await driver.templates()]
    return sorted(found, key=lambda pair: (pair[1].name, pair[1].driver))


async def _delete(command: Command, found: list[tuple[Driver, TemplateRecord]], *, force: bool) -> None:
    names = {(d.name, t.name) for d, t in found}
    using = [
        s
        for s in command.supervisor.sessions.running.values()
        if (s.plan.key.driver, s.plan.key.template) in names
    ]
    if using and not force:
        sessions = ", ".join(s.session_id for s in using)
        raise CommandError(
            "template-in-use",
            f"sessions run on it: {sessions}",
            hint="stop them (claude-vm stop), or pass --force",
        )
    with anyio.CancelScope(shield=True):
        await stop_sessions(command, using)
    dispatcher = command.supervisor.dispatcher
    for driver, record in found:
        dispatcher.template_changed(driver.name, record.name, None)
        try:
            with anyio.move_on_after(GIVE_UP_S):  # the deletion then says what still uses it
                await dispatcher.unused(driver.name, record.name)
            await driver.delete_template(record.name)
        except BaseException:  # also when the client goes away
            with anyio.CancelScope(shield=True):
                await _keep(command, driver, record.name)
            raise
        await command.out(record.name)


async def _keep(command: Command, driver: Driver, name: str) -> None:
    """Let VMs be kept ready again of a template that is still there; one that is not remains forgotten."""
    with suppress(DriverError):
        for record in await driver.templates():
            if record.name == name:
                command.supervisor.dispatcher.template_changed(driver.name, name, record)
