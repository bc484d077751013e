"""The few words of QMP that the host agent needs. QEMU talks to one client at a time; others wait."""

import json
import socket
from pathlib import Path
from typing import Any


def connect(path: Path) -> socket.socket:
    """Return a connection to QEMU's monitor.

    Raises:
        OSError: nobody listens there.
    """
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.connect(str(path))
    except OSError:
        connection.close()
        raise
    return connection


def negotiate(connection: socket.socket) -> None:
    """Read the greeting and enter command mode. Waits as long as another client is served.

    Raises:
        OSError: the connection broke.
        ValueError: it speaks something else.
    """
    _read(connection)
    execute(connection, "qmp_capabilities")


def execute(connection: socket.socket, command: str) -> None:
    """Run a command that has no arguments.

    Raises:
        OSError: the connection broke.
        ValueError: QEMU refused.
    """
    connection.sendall(json.dumps({"execute": command}).encode() + b"\n")
    while True:
        message = _read(connection)
        if "error" in message:
            raise ValueError(str(message["error"].get("desc")))
        if "return" in message:
            return


def _read(connection: socket.socket) -> dict[str, Any]:
    line = b""
    while not line.endswith(b"\n"):
        data = connection.recv(1)
        if not data:
            raise OSError("EOF")
        line += data
    found = json.loads(line)
    if not isinstance(found, dict):
        raise TypeError("no object")
    return found
