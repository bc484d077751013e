"""The whole answer to a command line that runs nothing: help, a version, a usage error."""

import msgspec


class Output(msgspec.Struct, frozen=True, kw_only=True):
    """A finished answer. `text` ends with a line feed, has no other control characters, and may be empty.

    `status` is the exit status; `to_stderr` tells where the text belongs.
    """

    text: str
    status: int = 0
    to_stderr: bool = False


def visible(text: str) -> str:
    """Return the text with everything but line feeds that does not print spelled as an escape.

    Words of a command line come back in messages; what they contain must not reach a terminal as it is.
    """
    return "".join(
        character
        if character == "\n" or character.isprintable()
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )
