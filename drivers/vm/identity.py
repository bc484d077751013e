"""What tells one clone from another: names, random bytes and keys, made on the host for each start."""

import secrets
from base64 import b64encode
from collections.abc import Sequence
from time import time
from typing import Any

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


class KeyPair(msgspec.Struct, frozen=True):
    """An ed25519 key as OpenSSH writes it: the private file's text, and the public line."""

    private: str
    public: str


class Identity(msgspec.Struct, frozen=True):
    """The identity of one guest. `machine_id` is 32 hex digits; `entropy` goes into the random pool."""

    hostname: str
    machine_id: str
    entropy: bytes
    host_key: KeyPair
    client_key: KeyPair

    def request(self, user: str, keys: Sequence[str] = ()) -> dict[str, Any]:
        """Return what the guest's helper is told of it at this moment; `keys` may log in beside its own."""
        return {
            "entropy": b64encode(self.entropy).decode("ascii"),
            "unix_s": time(),
            "hostname": self.hostname,
            "machine_id": self.machine_id,
            "user": user,
            "host_key": self.host_key.private,
            "authorized_key": "".join(f"{key}\n" for key in (self.client_key.public, *keys)),
        }


def new_key() -> KeyPair:
    """Return a fresh ed25519 key without a comment."""
    key = Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return KeyPair(private.decode(), public.decode())


def new_identity(instance_id: str) -> Identity:
    """Return a fresh identity. The host name ends like the instance id, for people who look at both."""
    return Identity(
        hostname=f"claude-vm-{instance_id.rpartition('-')[2]}",
        machine_id=secrets.token_hex(16),
        entropy=secrets.token_bytes(64),
        host_key=new_key(),
        client_key=new_key(),
    )
