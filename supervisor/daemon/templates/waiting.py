"""Waiting for a template that somebody else builds."""

import time
from pathlib import Path

import anyio

from claude_vm.drivers.api import Progress
from claude_vm.supervisor.daemon.clients.table import ago
from claude_vm.supervisor.daemon.clients.workspace import Workspace
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.templates.builds import Build, under_way

LOOK_S = 0.25
"""Pause between two looks at a build, in seconds: it may be another process's, which tells nobody."""


async def wait_for_build(workspace: Workspace, driver: str, template: str) -> None:
    """Return when nobody builds a template; at once if nobody does. Its phases are told meanwhile.

    An interrupted wait does nothing to the build.

    Raises:
        CommandError: Somebody does, and the caller shall not wait, or does not want to any longer.
    """
    home = workspace.supervisor.home
    build = under_way(home, driver, template)
    if build is None:
        return
    what = f"a template is being built for this project ({_whose(build)})"
    if workspace.caller.flags.no_wait:
        raise CommandError("template-building", what, hint="repeat the command later, or without --no-wait")
    await workspace.console.say(f"claude-vm: {what}; waiting for it")
    async with workspace.console.progress() as progress:
        await workspace.console.unless_interrupted(lambda: _until_over(home, driver, template, progress))


async def _until_over(home: Path, driver: str, template: str, progress: Progress) -> None:
    while (build := under_way(home, driver, template)) is not None:
        if build.phase is not None:
            progress(build.phase, "")
        await anyio.sleep(LOOK_S)


def _whose(build: Build) -> str:
    since = f"for {ago(time.time() - build.since)}"
    return f"by process {build.pid}, {since}" if build.pid else since
