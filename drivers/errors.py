"""What drivers raise. Each error has a stable `code`, a text for people and the tool's own last words."""


class DriverError(Exception):
    """A driver call failed.

    `detail` is the bounded tail of what the tool or the guest said; `hint` is what the user can do.
    """

    code = "driver-failed"

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        """The message, and the tool's words beneath it."""
        return f"{self.message}\n{self.detail}".rstrip() if self.detail else self.message


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
