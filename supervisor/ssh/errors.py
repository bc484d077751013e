"""What the SSH side raises. Each error has a stable `code`, a text for people and a hint."""


class SshError(Exception):
    """Something about an SSH connection failed.

    `detail` is the other side's or the library's own text; `hint` is what the user can do.
    """

    code = "ssh-failed"

    def __init__(self, message: str, *, detail: str = "", hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.detail = detail
        self.hint = hint

    def __str__(self) -> str:
        """The message, and the other side's words after it."""
        return f"{self.message}: {self.detail}" if self.detail else self.message


class ConnectError(SshError):
    """No SSH connection came about."""

    code = "ssh-connect-failed"


class ConnectTimeoutError(ConnectError):
    """The guest did not complete the SSH handshake in time."""

    code = "ssh-connect-timeout"


class HostKeyError(ConnectError):
    """Something else than the pinned guest answers on the guest's port."""

    code = "ssh-host-key"


class AuthenticationError(ConnectError):
    """The guest does not accept the instance's key."""

    code = "ssh-auth-failed"


class ChannelRefusedError(SshError):
    """The guest refuses to start a process or a subsystem on an open connection."""

    code = "ssh-channel-refused"


class LinkLostError(SshError):
    """The SSH connection ended before the answer came."""

    code = "ssh-link-lost"


class StatusLostError(LinkLostError):
    """A process ended without an exit status while its connection went on."""

    code = "ssh-no-status"


class InputClosedError(SshError):
    """A process does not take input any more: it ended, or its input was closed from this side."""

    code = "ssh-input-closed"


class AgentProtocolError(SshError):
    """What a guest, or an agent, sends is not the SSH agent protocol."""

    code = "agent-protocol"


class LaunchError(SshError):
    """What shall be run can't be given to a process: a zero byte, or a variable that a shell can't set."""

    code = "bad-launch"


class ShellError(SshError):
    """The guest's holder does not give us a shell or a session."""

    code = "shell-failed"


class SessionUnknownError(ShellError):
    """The guest's holder does not hold the session."""

    code = "session-unknown"
