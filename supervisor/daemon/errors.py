"""What a command says when it can't do what was asked."""

from collections.abc import Sequence


class CommandError(Exception):
    """A command failed for a reason that its user can act on.

    `code` is stable, `hint` says what to do next, `status` is the exit status (1, or 125 for sessions).
    `message`, `hint` and each of `lines`, which stand beneath the message, are one line.
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        lines: Sequence[str] = (),
        hint: str = "",
        status: int | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.lines = tuple(lines)
        self.hint = hint
        self.status = status
