"""Task groups whose failure is that of the task that failed first."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.abc import TaskGroup


@asynccontextmanager
async def open_tasks() -> AsyncIterator[TaskGroup]:
    """Open a task group. Who leaves it waits for its tasks, or cancels them before.

    Raises:
        Exception: What failed first, in the block or in a task, as it is and not in a group; the others are
            cancelled.
    """
    failure: BaseException | None = None
    try:
        async with anyio.create_task_group() as tasks:
            yield tasks
    except BaseExceptionGroup as group:
        failure = first_cause(group)
    if failure is not None:  # here it has no group as its context
        raise failure


def first_cause(error: BaseException) -> BaseException:
    """Return the first error of a group, which is what went wrong first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
