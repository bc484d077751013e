"""Where a caller's command runs, resolved once: project, settings, driver, template, key, in this order."""

from collections.abc import Callable

import msgspec

from claude_vm.context.config.layers import Settings
from claude_vm.context.config.setting import Obeyed
from claude_vm.context.project import Project
from claude_vm.drivers.api import TemplateRecord
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.daemon.clients.workspace import Workspace
from claude_vm.supervisor.daemon.place.driver import choose_driver
from claude_vm.supervisor.daemon.place.key import session_key
from claude_vm.supervisor.daemon.templates.current import Target, usable_template


class Place(msgspec.Struct, frozen=True):
    """Where a session would run: all that is the same for each session that is begun here."""

    target: Target
    template: TemplateRecord
    key: PoolKey

    async def note_use(self) -> None:
        """Note that there will be a VM here: what its guest can write to, and that its template is used.

        Raises:
            CommandError: It can't be written down, so there must be no such VM.
        """
        self.target.workspace.remember(self.target.project, self.key)
        await self.target.driver.touch_template(self.template.name)


async def resolve_target(
    workspace: Workspace,
    *obeyed: Obeyed,
    project: Project | None = None,
    check: Callable[[Settings], None] = lambda _: None,
) -> Target:
    """Return what the caller's template is for. `obeyed` are told settings that are set in vain.

    Without a `project` it is the caller's, if that may be mounted. `check` may refuse what is configured.

    Raises:
        ContextError: The project can't be used, or the settings are wrong.
        CommandError: See `Workspace.project`.
        DriverError: There is no such driver.
        Exception: What `check` raises.
    """
    project = project or await workspace.mountable_project()
    settings = await workspace.settings(*obeyed)
    check(settings)
    return Target(workspace, project, settings, await choose_driver(workspace, settings, project))


async def resolve(workspace: Workspace, check: Callable[[Settings], None] = lambda _: None) -> Place:
    """Return the caller's place, with a template that can be used. `check` may refuse what is configured.

    Raises:
        ContextError: The project or a mount can't be used, or the settings are wrong.
        CommandError: The template is missing, and shall not be built or waited for. Or see `resolve_target`.
        DriverError: There is no such driver, or it does not build the template.
        Exception: What `check` raises, before anything is built.
    """
    target = await resolve_target(workspace, Obeyed.TEMPLATE, Obeyed.SESSION, check=check)
    workspace.apply_pool_settings(target.settings)
    template = await usable_template(target)
    return Place(target, template, await session_key(target, template))
