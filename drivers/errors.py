"""What drivers raise. Each error has a stable `code`, a text for people and the tool's own last words."""

import os


class DriverError(Exception):
    """A driver call failed.

    `message` and `hint`, which is what the user can do, are one line each. `detail` is the bounded tail of
    what the tool or the guest said.
    """

    code = "driver-failed"

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    @property
    def lines(self) -> tuple[str, ...]:
        """The tool's words, line by line, for people."""
        return tuple(line.rstrip() for line in self.detail.split("\n") if line.strip())

    def __str__(self) -> str:
        """The message and the tool's words in one line."""
        return ": ".join(filter(None, (self.message, "; ".join(self.lines))))


class ToolMissingError(DriverError):
    """A program that the driver needs is not installed."""

    code = "tool-missing"


class TemplateMissingError(DriverError):
    """The template, or its generation, does not exist."""

    code = "template-missing"


class TemplateInUseError(DriverError):
    """A template can't be removed while instances use it."""

    code = "template-in-use"

    def __init__(self, message: str, *, instances: tuple[str, ...]) -> None:
        super().__init__(message, hint="stop these sessions, or repeat the command with --force")
        self.instances = instances


class GuestError(DriverError):
    """The guest does not answer, or refuses what it was asked."""

    code = "guest-failed"


class BootError(DriverError):
    """The VM does not come up."""

    code = "boot-failed"


class MountChangedError(DriverError):
    """A directory to be mounted is gone, or another one has its name."""

    code = "mount-changed"


class BadImageError(DriverError):
    """What was downloaded or built is not what it should be."""

    code = "bad-image"


class DownloadError(DriverError):
    """Something can't be fetched. `status` is the HTTP status where a server answered, else None."""

    code = "download-failed"

    def __init__(self, message: str, *, status: int | None = None, detail: str = "", hint: str = "") -> None:
        super().__init__(message, detail=detail, hint=hint)
        self.status = status


def words_of(error: BaseException) -> str:
    """Return what a foreign error says, for a message of ours: names of files as they are.

    The text of an `OSError` has them as `repr` spells them, and a number that says nothing to people.
    """
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error) or type(error).__name__
    names = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)]
    return ": ".join([error.strerror, *(f"'{name}'" for name in names)])
