"""The whole answer to a command line that runs nothing: help, a version, a usage error."""

import msgspec


class Printout(msgspec.Struct, frozen=True, kw_only=True):
    """A finished answer. `status` is the exit status; `to_stderr` tells where the lines belong.

    Words of the command line come back in them as they are: whoever prints them makes them harmless.
    """

    lines: tuple[str, ...]
    status: int = 0
    to_stderr: bool = False
