"""How a session got its VM, in a few words. Pure: from the core's views."""

from collections.abc import Sequence

import msgspec

from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.core.views import PoolView


def how_it_came(source: str, key: PoolKey, before: Sequence[PoolView]) -> str:
    """Return how a session with this key got its VM, in a few words.

    `source` is the core's word for it (see `SessionView`), `before` is what there was when it was requested.
    """
    if source == "warm":
        return "took a ready VM"
    if source == "paused":
        return "took a VM that was started ahead"
    if source == "making":
        return "took a VM that was being made ready"
    if source == "resumed":
        return "goes on in the VM that it had"
    ready = [pool.key for pool in before if pool.warm and _same_project(pool.key, key)]
    if any(_without_mounts(other) == _without_mounts(key) for other in ready if other != key):
        lacking = "no ready VM with these mounts"
    elif any(other.generation == key.generation for other in ready if other != key):
        lacking = "no ready VM of this size"
    else:
        lacking = "no ready VM"
    return f"{lacking}: cloning"


def _same_project(one: PoolKey, other: PoolKey) -> bool:
    return (one.driver, one.template) == (other.driver, other.template)


def _without_mounts(key: PoolKey) -> PoolKey:
    return msgspec.structs.replace(key, mounts=())
