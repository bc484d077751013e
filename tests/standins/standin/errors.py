"""What goes wrong, in limactl's own words."""


class LimaError(Exception):
    """A command fails with this message, logged as fatal, and status 1."""


class NotFoundError(LimaError):
    """A file that makes an instance is not there."""


class ToolError(Exception):
    """A program that was run in the foreground failed: its status is ours, and it has said why."""

    def __init__(self, status: int) -> None:
        super().__init__(f"exit status {status}")
        self.status = status


def os_error_text(error: OSError, action: str) -> str:
    """Return an operating system's error as Go words it."""
    return f"{action} {error.filename}: {(error.strerror or str(error)).lower()}"
