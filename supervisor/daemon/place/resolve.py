"""Where a caller's command runs, resolved once: project, settings, driver, template, key, in this order."""

from collections.abc import Callable

import msgspec

from claude_vm.context.config.layers import Settings
from claude_vm.context.config.setting import Obeyed
from claude_vm.context.project import Project
from claude_vm.drivers.api import Driver, TemplateRecord
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.clients.workspace import Workspace
from claude_vm.supervisor.daemon.place.driver import choose_driver
from claude_vm.supervisor.daemon.place.key import session_key, session_mounts
from claude_vm.supervisor.daemon.templates.current import usable_template


class Place(msgspec.Struct, frozen=True):
    """Where a session would run: all that is the same for each session that is begun here."""

    project: Project
    settings: Settings
    driver: Driver
    template: TemplateRecord
    key: PoolKey


async def resolve(workspace: Workspace, check: Callable[[Settings], None] | None = None) -> Place:
    """Return the caller's place, with a template that can be used. `check` may refuse what is configured.

    Raises:
        ContextError: The project or a mount can't be used, or the settings are wrong.
        CommandError: The template is missing, and shall not be built or waited for. See `Workspace.project`.
        DriverError: There is no such driver, or it does not build the template.
        Exception: What `check` raises, before anything is built.
    """
    project = await workspace.mountable_project()
    settings = await workspace.settings(Obeyed.TEMPLATE, Obeyed.SESSION)
    if check is not None:
        check(settings)
    workspace.apply_pool_settings(settings)
    driver = await choose_driver(workspace, settings, project)
    template = await usable_template(workspace, driver, settings, project)
    mounts = await session_mounts(workspace, driver, settings, project, template.home)
    return Place(project, settings, driver, template, session_key(driver, settings, template, mounts))


async def note_use(workspace: Workspace, place: Place) -> None:
    """Note that there will be a VM here: what its guest can write to, and that its template is used.

    Raises:
        CommandError: It can't be written down, so there must be no such VM.
    """
    workspace.remember(place.project, place.key)
    await place.driver.touch_template(place.template.name)
