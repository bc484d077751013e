"""Alarms and the host's clock, in virtual time."""

import pytest
import trio
from trio.testing import MockClock

from claude_vm.supervisor.daemon.dispatch.clock import (
    DRIFT_INTERVAL_S,
    WATCH_INTERVAL_S,
    Alarm,
    follow_drift,
    watch_host_clock,
)


def run(main):
    return trio.run(main, clock=MockClock(autojump_threshold=0))


def test_an_alarm_rings_at_each_instant_in_order():
    rung = []

    async def main():
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            alarm = Alarm(lambda now: rung.append(now - start))
            nursery.start_soon(alarm.run)
            alarm.wake_at(start + 5)
            alarm.wake_at(start + 2)
            await trio.sleep(3)
            alarm.wake_at(start + 4)
            await trio.sleep(10)
            nursery.cancel_scope.cancel()

    run(main)
    assert rung == pytest.approx([2, 4, 5])


def test_instants_that_are_due_together_ring_once():
    rung = []

    async def main():
        start = trio.current_time()
        async with trio.open_nursery() as nursery:
            alarm = Alarm(rung.append)
            alarm.wake_at(start - 1)
            alarm.wake_at(start - 2)
            nursery.start_soon(alarm.run)
            await trio.sleep(1)
            nursery.cancel_scope.cancel()

    run(main)
    assert len(rung) == 1


@pytest.mark.parametrize(("jump", "told"), [(0.0, []), (0.1, []), (3600.0, [3600.0]), (-30.0, [-30.0])])
def test_a_jump_of_the_hosts_clock_is_told_once(jump, told):
    jumps = []

    async def main():
        wall_offset = 1000.0

        def wall():
            return trio.current_time() + wall_offset

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lambda: watch_host_clock(jumps.append, wall=wall, steady=trio.current_time))
            await trio.sleep(WATCH_INTERVAL_S * 1.5)
            wall_offset += jump
            await trio.sleep(WATCH_INTERVAL_S * 3)
            nursery.cancel_scope.cancel()

    run(main)
    assert jumps == pytest.approx(told)


def test_guests_that_wait_for_long_are_told_the_time_again_and_again():
    told = []

    async def main():
        with trio.move_on_after(DRIFT_INTERVAL_S * 3.5):
            await follow_drift(lambda: told.append(trio.current_time()))

    run(main)
    assert len(told) == 3
