"""`claude-vm pool status`: what is kept ready for whom, and what hinders it."""

import time
from collections.abc import Mapping, Sequence

import anyio
import msgspec

from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.core.views import PoolView
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.clients.table import ago, table
from claude_vm.supervisor.daemon.pool.names import full_names, short_names
from claude_vm.supervisor.daemon.pool.policy import MIB_PER_GB
from claude_vm.supervisor.daemon.pool.room import Room, room, unclaimed
from claude_vm.supervisor.grammar.commands.pool import ShowPool


class PoolRow(msgspec.Struct, frozen=True, kw_only=True):
    """One kind of VM, in use or wanted, as ``pool status --json`` prints it.

    Sessions share a VM kind only if all of driver, template, generation, sizes and mounts are the same;
    `mounts` are as in ``info --json``. `wanted` VMs shall be ready. There are `warm` ready ones, `making` on
    their way, `paused` only started ahead, and `in_sessions`. `failures` in a row, the last for `last_error`
    (``code: message``, or ""); before `next_try_at` no other is made. `hindered_by` says why there are fewer
    than wanted and none is made, "" if nothing does. `gave_way`: why the last ready one that gave way did so,
    "" if there is another one since. Each counts with `takes_mib`, which is what was measured, with a margin,
    or (not `is_measured`) what is configured. Instants are Unix times in seconds, null: never, not
    known. `project` is null for a template that is gone.
    """

    project: str | None
    template: str
    driver: str
    generation: str
    cpus: int
    memory_mib: int
    disk_gb: int
    mounts: list[str]
    wanted: int
    warm: int
    making: int
    paused: int
    in_sessions: int
    last_used_at: float | None
    failures: int
    last_error: str
    next_try_at: float | None
    hindered_by: str
    gave_way: str
    takes_mib: int
    is_measured: bool


class PoolStatus(msgspec.Struct, frozen=True, kw_only=True):
    """What ``pool status --json`` prints.

    `size`: ready VMs for each kind in use. `instances` of `max_instances` exist, in sessions or not.
    `memory_mib` of `memory_budget_mib` is what those count with that no session has; null: no bound. The host
    has `available_mib` left, null: nobody has looked; below `memory_reserve_mib` ready ones are given up.
    """

    size: int
    instances: int
    max_instances: int
    memory_mib: int
    memory_budget_mib: int | None
    available_mib: int | None
    memory_reserve_mib: int
    pools: list[PoolRow]


async def pool_status(command: Command, request: ShowPool) -> int:
    """Print what the pool has."""
    core = command.supervisor.dispatcher.core
    projects = await _projects(command, {pool.key.driver for pool in core.pools()})
    pools = core.pools()
    taken = room(core.policy, core.memory, core.instances())
    # The core's instants are of the loop's clock.
    offset = time.time() - anyio.current_time()
    rows = [_row(pool, projects, taken, offset) for pool in pools]
    facts = msgspec.structs.asdict(taken) | {"size": core.policy.size, "pools": rows}
    status = msgspec.convert(facts, PoolStatus)
    if request.json:
        await command.out_json(status)
    else:
        keys = [pool.key for pool in pools]
        called = list(zip(short_names(keys, projects), full_names(keys, projects), strict=True))
        await command.out(*_text(status, called, time.time()))
    return 0


async def _projects(command: Command, drivers: set[str]) -> dict[tuple[str, str], str]:
    """Return the project of each template, by driver and name."""
    found: dict[tuple[str, str], str] = {}
    for name in drivers:
        try:
            driver = await command.supervisor.drivers.get(name)
            found |= {(name, record.name): record.project for record in await driver.templates()}
        except DriverError as error:
            await command.say_verbose(f"driver {name}: {error}")
    return found


def _row(pool: PoolView, projects: Mapping[tuple[str, str], str], taken: Room, offset: float) -> PoolRow:
    key = pool.key
    lacks = unclaimed(pool) < pool.wanted
    facts = msgspec.structs.asdict(key) | msgspec.structs.asdict(pool)
    facts |= {
        "project": projects.get((key.driver, key.template)),
        "disk_gb": key.disk_gib,
        "mounts": [mount.shown for mount in key.mounts],
        "in_sessions": pool.claimed,
        "last_used_at": None if pool.last_used_at is None else pool.last_used_at + offset,
        "next_try_at": None if pool.next_try_at is None else pool.next_try_at + offset,
        "hindered_by": taken.hindrance(pool.takes_mib) if lacks else "",
    }
    return msgspec.convert(facts, PoolRow)


HEAD = (
    *("READY", "MAKING", "PAUSED", "SESSIONS", "CPUS", "MEMORY", "COUNTS", "DISK"),
    *("GENERATION", "LAST USED", "PROJECT"),
)


def _text(status: PoolStatus, called: Sequence[tuple[str, str]], now: float) -> list[str]:
    """Return the lines. `called`: how each row is called in the table, and in a line of its own."""
    lines = table(HEAD, [_cells(row, name, now) for row, (name, _) in zip(status.pools, called, strict=True)])
    for row, (_, name) in zip(status.pools, called, strict=True):
        if row.failures:
            wait = "" if row.next_try_at is None else f", next try in {ago(row.next_try_at - now)}"
            lines.append(f"{name}: {row.failures} failure(s) in a row{wait}: {row.last_error}")
        elif row.hindered_by:
            lines.append(f"{name}: no room: {row.hindered_by}")
        if row.gave_way and row.warm < row.wanted:
            lines.append(f"{name}: a ready one gave way: {row.gave_way}")
    budget = "" if status.memory_budget_mib is None else f" of {_gb(status.memory_budget_mib)}"
    left = "" if status.available_mib is None else f", {_gb(status.available_mib)} left on this host"
    lines.append(
        f"{status.instances} of {status.max_instances} VM(s); {_gb(status.memory_mib)}{budget} of memory for"
        f" ready ones{left}; {status.size} to be ready for each project in use"
    )
    return lines


def _cells(row: PoolRow, name: str, now: float) -> tuple[str, ...]:
    return (
        f"{row.warm}/{row.wanted}",
        str(row.making),
        str(row.paused),
        str(row.in_sessions),
        str(row.cpus),
        _gb(row.memory_mib),
        _gb(row.takes_mib) if row.is_measured else "all",
        f"{row.disk_gb} GB",
        f"{row.driver} {row.generation}",
        "never" if row.last_used_at is None else f"{ago(now - row.last_used_at)} ago",
        name,
    )


def _gb(mib: int) -> str:
    return f"{mib / MIB_PER_GB:.1f} GB"
