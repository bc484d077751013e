"""What the context raises when what a user gave can't be used. Each error has a stable `code`."""


class ContextError(Exception):
    """Something that a user said or has can't be used. `hint` is what to do about it; may be empty."""

    code = "bad-context"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ProjectError(ContextError):
    """The current directory can't be a session's project."""

    code = "bad-project"


class MountError(ContextError):
    """Mounts can't be made as asked. The message has every problem, one a line."""

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
