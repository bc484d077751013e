"""The first words of an SSH server, as far as they are in the clear: what it chose at random for them."""

import os
import socket
import struct

KEY_EXCHANGE_INIT, ECDH_INIT, ECDH_REPLY = 20, 30, 31
_CHOICES = (b"curve25519-sha256", b"ssh-ed25519", *[b"aes128-gcm@openssh.com"] * 2, *[b"none"] * 4, b"", b"")
_POINT = b"\x09" + bytes(31)
"""A public key that anybody may use."""


def chosen_at_random(address, port):
    """Return the cookie and the ephemeral public key that the server has for a new connection.

    Source: RFC 4253, sections 6 and 7; RFC 8731.
    """
    with socket.create_connection((address, port), timeout=60) as connection:
        stream = connection.makefile("rwb")
        while not (line := stream.readline()).startswith(b"SSH-"):
            assert line, "the server says nothing"
        stream.write(b"SSH-2.0-contract\r\n")
        lists = b"".join(_string(choice) for choice in _CHOICES)
        stream.write(_packet(bytes([KEY_EXCHANGE_INIT]) + os.urandom(16) + lists + bytes(5)))
        stream.write(_packet(bytes([ECDH_INIT]) + _string(_POINT)))
        stream.flush()
        cookie = _payload(stream, KEY_EXCHANGE_INIT)[:16]
        reply = _payload(stream, ECDH_REPLY)
        (length,) = struct.unpack_from(">I", reply)  # the host key comes first
        ephemeral = reply[4 + length + 4 : 4 + length + 4 + 32]
        assert len(ephemeral) == 32
        return cookie.hex(), ephemeral.hex()


def _string(data):
    return struct.pack(">I", len(data)) + data


def _packet(payload):
    padding = 8 - (5 + len(payload)) % 8 + 8
    return struct.pack(">IB", 1 + len(payload) + padding, padding) + payload + bytes(padding)


def _payload(stream, number):
    length, padding = struct.unpack(">IB", stream.read(5))
    payload = stream.read(length - 1)[: length - 1 - padding]
    assert payload[0] == number, payload
    return payload[1:]
