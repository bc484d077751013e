"""What goes wrong with the bench itself."""


class BenchError(Exception):
    """The bench can't do what it was asked for. `hint` says what to do next."""

    code = "bench-failed"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class BadRequestError(BenchError):
    """The command line asks for something that there is not."""

    code = "usage"


class UnavailableError(BenchError):
    """Something can't be measured here: a mode that this host or this version does not have."""

    code = "bench-unavailable"
