"""What the protocol's two sides raise."""


class WireError(Exception):
    """Base of the protocol's errors. `code` is stable."""

    code = "wire-failed"


class ProtocolError(WireError):
    """The other side sent what the protocol does not allow. The connection is of no more use."""

    code = "protocol-error"


class OutputClosedError(WireError):
    """Nobody reads this output of the client any more, as when a pipe's reader ended."""

    code = "output-closed"


class ClientGoneError(OutputClosedError):
    """The client itself went away, and its outputs with it."""

    code = "client-gone"


class AgentRefusedError(WireError):
    """No further channel to the client's SSH agent can be opened."""

    code = "agent-refused"


class UnsafePathError(WireError):
    """A directory for our socket is not ours alone, and nothing may be served or trusted there."""

    code = "unsafe-path"
