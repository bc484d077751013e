"""What the context raises when what a user gave can't be used. Each error has a stable `code`."""

from collections.abc import Sequence
from typing import Self

MOST_TOLD = 100
"""Problems of one kind that are told."""


class ContextError(Exception):
    """Something that a user said or has can't be used.

    `message` is one line, and so is each of `lines`, where there are several problems. `hint` is what to do
    about it, one line too; it may be empty.
    """

    code = "bad-context"

    def __init__(self, message: str, *, lines: Sequence[str] = (), hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.lines = tuple(lines)
        self.hint = hint

    @classmethod
    def of(cls, problems: Sequence[str], what: str, *, hint: str = "") -> Self:
        """Return an error that tells the problems with `what`, of which there is at least one."""
        if len(problems) == 1:
            return cls(problems[0], hint=hint)
        more = len(problems) - MOST_TOLD
        lines = [*problems[:MOST_TOLD], *([f"and {more} more"] if more > 0 else [])]
        return cls(f"{len(problems)} problems with {what}", lines=lines, hint=hint)

    def __str__(self) -> str:
        """The message and all problems in one line."""
        return ": ".join(filter(None, (self.message, "; ".join(self.lines))))


class ProjectError(ContextError):
    """The current directory can't be a session's project."""

    code = "bad-project"


class MountError(ContextError):
    """Mounts can't be made as asked."""

    code = "bad-mount"


class VariableError(ContextError):
    """Variables for the session's environment can't be had."""

    code = "bad-environment"


class LinkError(ContextError):
    """A path that somebody named leads out of where guests can write, by a link that one may have made."""

    code = "link-leaves"


class BrokenRepositoryError(ProjectError):
    """There is a ``.git``, and it is no repository. The folders above it are not looked at then."""

    code = "broken-repository"


class GrowthError(ProjectError):
    """The project would be more than it was when it was remembered."""

    code = "project-grew"
