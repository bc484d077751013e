"""What a command says when it can't do what was asked."""


class CommandError(Exception):
    """A command failed for a reason that its user can act on.

    `code` is stable, `hint` says what to do next, `status` is the exit status (1, or 125 for sessions).
    """

    def __init__(self, code: str, message: str, *, hint: str = "", status: int | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.status = status
