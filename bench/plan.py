"""What is measured in which order. Pure: the same seed gives the same plan.

A machine is noisy in stretches of seconds. So modes and their baselines take turns, in an order that changes
from round to round, and each stretch of noise hits both sides of every ratio.
"""

import random
from collections.abc import Iterator, Sequence

import msgspec

PATTERNS = ("sequential", "staggered", "burst")
BURST = 8
STAGGER, GAP_S = 4, 0.25


class Unit(msgspec.Struct, frozen=True):
    """What is started together: `starts` are seconds after the unit's beginning, one for each command.

    A `slow` one is measured in fewer rounds.
    """

    mode: str
    pattern: str = "sequential"
    kind: str = "prompt"
    starts: tuple[float, ...] = (0.0,)
    slow: bool = False


class Turn(msgspec.Struct, frozen=True):
    """A unit in a round; a negative round is warm-up."""

    round: int
    number: int
    unit: Unit


def unit(mode: str, pattern: str, *, kind: str = "prompt", slow: bool = False) -> Unit:
    """Return a unit by the name of its pattern.

    Raises:
        ValueError: There is no such pattern.
    """
    starts = {
        "sequential": (0.0,),
        "staggered": tuple(index * GAP_S for index in range(STAGGER)),
        "burst": (0.0,) * BURST,
    }
    if pattern not in starts:
        raise ValueError(f"there is no pattern '{pattern}'; the patterns are {', '.join(PATTERNS)}")
    return Unit(mode, pattern, kind, starts[pattern], slow)


def plan(
    units: Sequence[Unit], *, rounds: int, slow_rounds: int = 5, warm_up: int = 1, seed: int = 1
) -> Iterator[Turn]:
    """Yield the turns of a run: `warm_up` rounds that don't count, then `rounds`, each in its own order.

    Slow units come in `slow_rounds` of them, evenly spread, and in no warm-up round but the last.
    """
    chance = random.Random(seed)  # noqa: S311 - an order, no secret
    slow_at = {round(index * rounds / slow_rounds) for index in range(slow_rounds)} if slow_rounds else set()
    number = 0
    for index in range(-warm_up, rounds):
        order = [u for u in units if not u.slow or index == -1 or index in slow_at]
        chance.shuffle(order)
        for chosen in order:
            yield Turn(index, number, chosen)
            number += 1
