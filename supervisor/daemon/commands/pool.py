"""`claude-vm pool fill|drain`: the VMs that are kept ready."""

import time

import anyio

from claude_vm.context.project import template_name
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.events import DrainRequested, FillRequested
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.views import PoolView
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.errors import CommandError
from claude_vm.supervisor.daemon.place.resolve import resolve
from claude_vm.supervisor.daemon.pool.room import Room, is_unclaimed, pool_of, room
from claude_vm.supervisor.grammar.commands.pool import DrainPool, FillPool

FAILURES_TO_GIVE_UP = 3
"""So many failures in a row end a waiting `fill`. The pool itself goes on trying."""

_ROOM_HINT = "change it in ~/.claude-vm.toml, or ask for fewer or smaller VMs"


async def fill(command: Command, request: FillPool) -> int:
    """Have VMs made ready for the key that a session here would ask for; wait until they are."""
    supervisor = command.supervisor
    if supervisor.in_process:
        raise CommandError("no-daemon", "only a daemon keeps VMs ready", hint="leave --no-daemon out")
    place = await resolve(command.workspace)
    key = place.key
    count = supervisor.dispatcher.core.policy.size if request.count is None else request.count
    if not count:
        raise CommandError(
            "pool-off", "[pool] size is 0", hint="say how many VMs should be ready: claude-vm pool fill N"
        )
    _check_bounds(supervisor.dispatcher.core, key, count)
    await place.note_use()
    supervisor.dispatcher.post(FillRequested(at=anyio.current_time(), key=key, size=request.count))
    if not command.flags.no_wait:
        begun = time.monotonic()
        await command.unless_interrupted(lambda: _until_ready(command, key, count))
        await command.say(
            f"{count} VM(s) ready for {place.target.project.root} ({time.monotonic() - begun:.1f} s)"
        )
    return 0


def _check_bounds(core: Core, key: PoolKey, count: int) -> None:
    """Refuse what the settings have no room for, however empty the pool is.

    Of VMs that were never measured, one must fit as it is configured: then it is known what the others take.
    """
    policy, takes_mib = core.policy, core.takes_mib(key)
    needed_mib, budget_mib = takes_mib * count if takes_mib else key.memory_mib, policy.memory_budget_mib
    if count > policy.max_instances:
        lacking = f"[pool] max_instances is {policy.max_instances}"
    elif budget_mib is not None and needed_mib > budget_mib:
        lacking = f"they take {needed_mib} MiB of memory, and [pool] memory_budget is {budget_mib} MiB"
        if takes_mib is None:
            lacking += "; what one really takes is not known before the first session"
    else:
        return
    raise CommandError(
        "pool-too-small", f"there is never room for {count} ready VM(s): {lacking}", hint=_ROOM_HINT
    )


async def _until_ready(command: Command, key: PoolKey, count: int) -> None:
    """Wait until so many VMs of a key are warm, and tell how it goes.

    Raises:
        CommandError: That does not come: given up meanwhile, several failures, or no room.
    """
    dispatcher = command.supervisor.dispatcher
    told = (-1, 0)
    while True:
        pools = dispatcher.core.pools()
        view = pool_of(key, pools)
        if view is None or view.wanted < count:
            raise CommandError(
                "pool-changed",
                "the VMs are no longer wanted: they were drained, or the settings or the template changed",
                hint="repeat the command if you still want them",
            )
        if view.warm >= count:
            return
        core = dispatcher.core
        _check_progress(view, count, room(core.policy, core.memory, core.instances()))
        if told != (view.warm, view.failures):
            told = (view.warm, view.failures)
            trouble = f"; trying again after {view.last_error}" if view.failures else ""
            await command.say_progress(f"{view.warm} of {count} VM(s) ready{trouble}")
            continue  # the note may have waited, so look again
        await dispatcher.change()


def _check_progress(view: PoolView, count: int, taken: Room) -> None:
    if view.failures >= FAILURES_TO_GIVE_UP:
        raise CommandError(
            "pool-fill-failed",
            f"{view.warm} of {count} VM(s) are ready; the others failed {view.failures} times:"
            f" {view.last_error}",
            hint="the daemon keeps trying; look at: claude-vm pool status",
        )
    lacking = taken.hindrance(view.takes_mib)
    if lacking and not view.making and not taken.moving:
        raise CommandError(
            "pool-full",
            f"{view.warm} of {count} VM(s) are ready, and there is no room for more: {lacking}",
            hint="end sessions, give up the ready VMs of other projects (claude-vm pool drain --all), or "
            + _ROOM_HINT,
        )


async def drain(command: Command, request: DrainPool) -> int:
    """Have ready VMs given up, also those that are being made; wait until nothing of them is left."""
    dispatcher = command.supervisor.dispatcher
    if request.all:
        keys = [pool.key for pool in dispatcher.core.pools()]
        drained: list[PoolKey | None] = [None]
    else:
        name = template_name((await command.workspace.project()).template_root)
        keys = [pool.key for pool in dispatcher.core.pools() if pool.key.template == name]
        drained = [*keys]
    given_up = {i.instance_id for i in dispatcher.core.instances() if is_unclaimed(i) and i.key in keys}
    for key in drained:
        dispatcher.post(DrainRequested(at=anyio.current_time(), key=key))
    await command.unless_interrupted(lambda: _until_gone(command, given_up))
    await command.say(f"gave up {len(given_up)} VM(s)")
    return 0


async def _until_gone(command: Command, given_up: set[str]) -> None:
    """Wait until of these instances nothing is left, or a session has got them in the meantime.

    Raises:
        CommandError: One can't be deleted.
    """
    dispatcher = command.supervisor.dispatcher
    while True:
        left = [i for i in dispatcher.core.instances() if i.instance_id in given_up and not i.session_id]
        if not left:
            return
        stuck = [i.instance_id for i in left if i.failed_deletions]
        if stuck:
            raise CommandError(
                "not-deleted",
                f"can't be deleted yet: {', '.join(stuck)}",
                hint=f"the daemon keeps trying; see {command.supervisor.home / 'logs' / 'daemon.log'}",
            )
        await dispatcher.change()
