"""What is learned of an SSH connection as it is made and as it ends, beside what goes over it."""

from collections.abc import Callable

import asyncssh

from claude_vm.supervisor.ssh.agent_messages import Binding


class _HostKey:
    """The host key of a connection, for the library to verify with; notes what was verified first."""

    def __init__(self, key: asyncssh.SSHKey, note: Callable[[Binding], None]) -> None:
        self._key = key
        self._note = note

    def verify(self, data: bytes, signature: bytes) -> bool:
        """Tell whether a signature is the guest's: the first one is that of the connection's session id."""
        genuine = self._key.verify(data, signature)
        if genuine:
            self._note(Binding(self._key.public_data, data, signature))
        return genuine


class ConnectionOwner(asyncssh.SSHClient):
    """Learns what the first key exchange proved, and why the connection ended."""

    def __init__(self) -> None:
        self.reason = "the connection was closed from this side"
        self.binding: Binding | None = None

    def connection_made(self, conn: asyncssh.SSHClientConnection) -> None:
        """Have a look at the key exchange, of which the library keeps no signature."""
        validate = conn.validate_server_host_key
        conn.validate_server_host_key = lambda data: _HostKey(validate(data), self._bind)  # type: ignore[method-assign,assignment,return-value]

    def _bind(self, binding: Binding) -> None:
        self.binding = self.binding or binding

    def connection_lost(self, exc: Exception | None) -> None:
        """Note the reason."""
        if exc is not None:
            self.reason = str(exc) or type(exc).__name__
