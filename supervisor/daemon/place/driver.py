"""Which driver a command means: the named one, or with ``auto`` the one that has the project's template.

A template belongs to a driver. Which drivers can be used depends on where the caller's programs are, so what
is best may differ from one terminal to the next; a project whose template was built shall not seem to have
lost it for that.
"""

from collections.abc import Mapping

from claude_vm.context.config.layers import Settings
from claude_vm.context.project import Project, template_name
from claude_vm.drivers import registry
from claude_vm.drivers.api import Driver, TemplateRecord
from claude_vm.supervisor.daemon.clients.command import Command


async def choose_driver(command: Command, settings: Settings, project: Project) -> Driver:
    """Return the driver that the settings name. It looks for its programs where this client would find them.

    ``auto``: of the drivers that can be used, the first that has a template of the project that is of use,
    else the first that has any, else the first.

    Raises:
        DriverError: There is no such driver, or nothing is installed that ``auto`` could mean.
    """
    programs = command.programs()
    name = settings.driver.name
    try:
        if name != "auto":
            return await command.supervisor.drivers.get(name, programs)
        usable = [
            await command.supervisor.drivers.get(each, programs) for each in await registry.usable(programs)
        ]
    finally:
        await command.say_remarks()
    found: dict[str, TemplateRecord] = {}
    for driver in usable:
        template = await current_template(driver, project)
        if template is not None and not template.stale:
            return driver
        if template is not None:
            found[driver.name] = template
    return next((driver for driver in usable if driver.name in found), usable[0])


async def current_template(driver: Driver, project: Project) -> TemplateRecord | None:
    """Return the current generation of the project's template, or None when there is none."""
    name = template_name(project.template_root)
    return next((t for t in await driver.templates() if t.name == name), None)


async def templates_elsewhere(
    command: Command, driver: Driver, project: Project
) -> Mapping[str, TemplateRecord]:
    """Return the project's templates of other drivers that isolate, by driver."""
    found: dict[str, TemplateRecord] = {}
    for name in registry.ISOLATING:
        if name != driver.name:
            template = await current_template(await command.supervisor.drivers.get(name), project)
            if template is not None:
                found[name] = template
    return found
