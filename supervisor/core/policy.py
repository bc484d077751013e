"""How many instances there may be, and for how long: the numbers that the pool obeys."""

import msgspec


class PoolPolicy(msgspec.Struct, frozen=True):
    """The pool's settings. The defaults keep nothing warm.

    `size` is the number of warm instances for each wanted key, `paused` that of the instances whose VM was
    started ahead and waits paused, for keys of `prestart_drivers` only. `max_instances` bounds all instances
    that take up resources, also those that are being deleted; a leak that people were told of no longer
    counts, or a few of them would lock everybody out.

    A key is wanted until `idle_timeout_s` seconds after its last use. An unclaimed instance is given up
    `max_age_s` seconds after it was made. A refill begins `refill_delay_s` seconds after the last claim, so
    that it does not compete with a claimed session's first moments; but no later than four times that after
    the first claim.

    `memory_budget_mib` bounds what all unclaimed instances take together, in MiB, whether they are being
    made, warm or paused (see `memory.Memory`); None is no bound. Sessions are not counted. Where less than
    `memory_reserve_mib` is available on the host, some are given up; none is made that would not leave twice
    as much, so that what was given up does not come back at once.

    Raises:
        ValueError: A number is below its minimum: 1 for `max_instances`; above 0 for `idle_timeout_s` and
            `max_age_s`; 0 for the others.
    """

    size: int = 0
    max_instances: int = 8
    paused: int = 0
    idle_timeout_s: float = 1800.0
    max_age_s: float = 43200.0
    memory_budget_mib: int | None = None
    memory_reserve_mib: int = 0
    refill_delay_s: float = 0.5
    prestart_drivers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        """Check the ranges."""
        for name in ("size", "paused", "refill_delay_s", "memory_budget_mib", "memory_reserve_mib"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} must be at least 0, not {value}")
        for name in ("idle_timeout_s", "max_age_s"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.max_instances < 1:
            raise ValueError(f"max_instances must be at least 1, not {self.max_instances}")
