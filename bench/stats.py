"""What is said about a list of durations: order statistics only, because a busy machine has long tails."""

import math
from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    """Return a percentile, between two values where none is exactly there.

    Raises:
        ValueError: There are no values, or the percentage is outside 0 to 100.
    """
    if not values:
        raise ValueError("a percentile of nothing")
    if not 0 <= percent <= 100:
        raise ValueError(f"{percent} is not a percentage")
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def paired(values: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """Return what each value has more than the baseline that was measured beside it.

    Raises:
        ValueError: They are not as many.
    """
    return [value - base for value, base in zip(values, baseline, strict=True)]
