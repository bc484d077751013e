"""The messages of the SSH agent protocol: which of them a guest may send to the user's agent. Pure.

A guest may ask which keys there are, and let them sign. All else changes the agent (keys come and go, it is
locked, it loads a library as a PKCS#11 provider) and is refused here, also what nobody has invented yet.

An agent is told which connection a request comes through, and that this forwards it, by a message of
OpenSSH's (``session-bind@openssh.com``). It judges keys by that which may be used for some destinations only
(``ssh-add -h``), and lets whoever is behind a forwarding do less. The guest's own ssh tells the next hop in
the same way, after us; that is why it may, too.

Source: RFC 9987 (the protocol); PROTOCOL.agent of OpenSSH (its extensions); ssh-agent.c (the limits).
"""

import struct

import msgspec

from claude_vm.supervisor.ssh.errors import AgentProtocolError

MAX_MESSAGE = 256 * 1024
"""Bytes of a message without its length. OpenSSH's agent and its clients take no more either."""

MAX_BINDINGS = 16
"""Hops that one conversation may tell. OpenSSH's agent keeps no more."""

FAILURE = b"\0\0\0\1\5"
"""The agent's answer to what it does not do."""

_LENGTH = struct.Struct(">I")
_REQUEST_IDENTITIES = 11
_SIGN = 13
_EXTENSION = 27
_QUERY = b"query"
_SESSION_BIND = b"session-bind@openssh.com"


def _string(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data


class Binding(msgspec.Struct, frozen=True):
    """What proves which SSH connection something comes through, as its key exchange had it.

    `host_key` and `signature` are in SSH's own encoding; the signature is of the `session_id`.
    """

    host_key: bytes
    session_id: bytes
    signature: bytes


QUERY = _string(bytes((_EXTENSION,)) + _string(_QUERY))
"""Asks an agent which extensions it has. Every agent has some answer, be it a failure."""


def forwarding(binding: Binding) -> bytes:
    """Return the message which tells an agent that this connection forwards it."""
    strings = (_SESSION_BIND, binding.host_key, binding.session_id, binding.signature)
    body = bytes((_EXTENSION,)) + b"".join(_string(each) for each in strings) + b"\1"
    return _string(body)


class Messages:
    """Takes messages off a stream, whole and with their length, however it was cut."""

    def __init__(self) -> None:
        self._received = bytearray()

    def take(self, data: bytes) -> list[bytes]:
        """Return the messages that are complete by now.

        Raises:
            AgentProtocolError: One is empty or too long; nothing after it can be understood.
        """
        self._received += data
        messages = []
        while len(self._received) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._received)
            if not 0 < length <= MAX_MESSAGE:
                raise AgentProtocolError(f"a message of {length} bytes to or from an SSH agent")
            end = _LENGTH.size + length
            if len(self._received) < end:
                break
            messages.append(bytes(self._received[:end]))
            del self._received[:end]
        return messages


class Rights:
    """What one conversation of a guest may still ask for."""

    def __init__(self) -> None:
        self._bindings = 0

    def allow(self, message: bytes) -> bool:
        """Tell whether a message, whole, may go to the agent."""
        kind, body = message[_LENGTH.size], message[_LENGTH.size + 1 :]
        if kind != _EXTENSION:
            return kind in {_REQUEST_IDENTITIES, _SIGN}
        if body == _string(_QUERY):
            return True
        if body.startswith(_string(_SESSION_BIND)):
            self._bindings += 1
            return self._bindings <= MAX_BINDINGS
        return False
