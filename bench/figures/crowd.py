"""F7: a thousand sessions at once in one daemon, and what an event costs its core."""

import contextlib
import resource
import time
from collections.abc import Sequence

from claude_vm.bench.errors import BenchError
from claude_vm.bench.figures.targets import CROWD, FEW, MANY, line
from claude_vm.bench.lab import Lab
from claude_vm.bench.records import Figures, Line
from claude_vm.bench.sims.conversation import Conversation, wait_any
from claude_vm.bench.site import Site
from claude_vm.bench.stats import percentile
from claude_vm.drivers.sim.driver import SimDriver
from claude_vm.supervisor.core import events
from claude_vm.supervisor.core.core import Core
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.policy import PoolPolicy

AT_A_TIME = 32
"""How many sessions are being made at a time: as many as a machine can make, not as many as it can hold."""

PATIENCE_S = 300.0
LIVES = 2000
TRIES = 5

WORDS = ("shell", "echo up; cat")
_KEY = PoolKey(driver=SimDriver.name, template="t", generation="g", cpus=1, memory_mib=64, disk_gib=1)
_LIMITS = f'max_instances = {CROWD}\nmemory_budget = "100000GB"\n'


def crowd(lab: Lab, rounds: int) -> Figures:  # noqa: ARG001 - one crowd is enough
    """F7: the crowd, then the core alone."""
    site = lab.simulated("sim-crowd", limits=_LIMITS)
    lab.tell(f"F7: {CROWD} simulated sessions at once")
    served, most, note = gather(site, CROWD)
    measured = f"{served} served, {most} at once"
    return [], [line("F7.served", 100.0 * min(served, most) / CROWD, measured, note), *core_lines()]


def gather(site: Site, count: int) -> tuple[int, int, str]:
    """Hold `count` sessions at once, then let all end.

    Returns how many ended well, how many ran at once, and what went wrong first.
    """
    _allow_files(count + 256)
    talks: list[Conversation] = []
    trouble = ""
    try:
        waiting: set[Conversation] = set()
        deadline = time.monotonic() + PATIENCE_S
        for _ in range(count):
            talk = Conversation(site, WORDS)
            talks.append(talk)
            waiting.add(talk)
            while len(waiting) >= AT_A_TIME:
                _move(waiting, deadline)
        while waiting:
            _move(waiting, deadline)
    except BenchError as error:
        trouble = str(error)
    up = [talk for talk in talks if talk.output_at is not None and not talk.ended]
    with contextlib.suppress(BenchError):
        for talk in up:
            talk.end_input()
        open_ = set(up)
        deadline = time.monotonic() + PATIENCE_S
        while open_:
            for talk in wait_any(list(open_), deadline):
                talk.take()
                if talk.ended:
                    open_.discard(talk)
    for talk in talks:
        talk.close()
    failed = [talk.said for talk in talks if talk.status not in {0, None} and talk.said]
    return sum(talk.status == 0 for talk in talks), len(up), trouble or (failed[0] if failed else "")


def _move(waiting: set[Conversation], deadline: float) -> None:
    """Take what came; forget those that are up, or over."""
    for talk in wait_any(list(waiting), deadline):
        talk.take()
        if talk.output_at is not None or talk.ended:
            waiting.discard(talk)


def _allow_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count:
        resource.setrlimit(resource.RLIMIT_NOFILE, (count if hard < 0 else min(count, hard), hard))


def core_lines() -> list[Line]:
    """Return the lines of the core alone, each try among few and among many instances, in turns."""
    few: list[float] = []
    many: list[float] = []
    for _ in range(TRIES):
        few.append(event_us(FEW))
        many.append(event_us(MANY))
    cost_few, cost_many = percentile(few, 50), percentile(many, 50)
    rate = 1e6 / cost_many
    return [
        line("F7.events", rate, f"{rate:,.0f}/s"),
        line("F7.flat", cost_many / cost_few, f"{cost_many:.1f} us : {cost_few:.1f} us"),
    ]


def event_us(instances: int) -> float:
    """Return the microseconds that the core takes for an event, while so many other sessions run."""
    core = Core(PoolPolicy(max_instances=instances + 1))
    for number in range(instances):
        for event in life(f"held{number}")[:-2]:
            core.handle(event)
    lives = [event for number in range(LIVES) for event in life(f"n{number}")]
    begun = time.perf_counter()
    for event in lives:
        core.handle(event)
    return (time.perf_counter() - begun) / len(lives) * 1e6


def life(name: str) -> Sequence[events.Event]:
    """Return the events of one session that goes well."""
    instance, session = f"i-{name}", f"s-{name}"
    return (
        events.SessionRequested(at=1.0, session_id=session, instance_id=instance, key=_KEY),
        events.CloneDone(at=1.0, instance_id=instance),
        events.StartDone(at=1.0, instance_id=instance, restored=True),
        events.ConnectDone(at=1.0, instance_id=instance),
        events.RunStarted(at=1.0, instance_id=instance, session_id=session),
        events.RunDone(at=1.0, instance_id=instance, session_id=session, status=0),
        events.DeleteDone(at=1.0, instance_id=instance),
    )
