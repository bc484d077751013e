"""Which driver a caller means: the named one, or with ``auto`` the one that has the project's template.

A template belongs to a driver. Which drivers can be used depends on where the caller's programs are, so what
is best may differ from one terminal to the next; a project whose template was built shall not seem to have
lost it for that.
"""

from claude_vm.context.config.layers import Settings
from claude_vm.context.project import Project
from claude_vm.drivers import registry
from claude_vm.drivers.api import Driver
from claude_vm.supervisor.daemon.clients.workspace import Workspace
from claude_vm.supervisor.daemon.templates.current import current_template


async def choose_driver(workspace: Workspace, settings: Settings, project: Project) -> Driver:
    """Return the driver that the settings name. It looks for its programs where this caller would find them.

    ``auto``: of the drivers that can be used, the first that has a template of the project that is of use,
    else the first that has any, else the first.

    Raises:
        DriverError: There is no such driver, or nothing is installed that ``auto`` could mean.
    """
    programs = workspace.programs()
    name = settings.driver.name
    try:
        if name != registry.AUTO:
            return await workspace.supervisor.drivers.get(name, programs)
        usable = [
            await workspace.supervisor.drivers.get(each, programs) for each in await registry.usable(programs)
        ]
    finally:
        await workspace.say_remarks()
    with_stale: Driver | None = None
    for driver in usable:
        template = await current_template(driver, project)
        if template is not None and not template.stale:
            return driver
        if template is not None:
            with_stale = with_stale or driver
    return with_stale or usable[0]
