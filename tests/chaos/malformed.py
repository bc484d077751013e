"""Damaged messages for a running daemon: each must be answered or cut off, none may crash or block it."""

import contextlib
import os
import random
import socket
import tempfile
import threading
from pathlib import Path

from claude_vm.supervisor.wire.framing import encode_json
from claude_vm.supervisor.wire.messages import FrameType
from claude_vm.supervisor.wire.paths import socket_path

ANSWER_S = 20.0


def first_message(user_run):
    """Return the bytes with which the client begins, as a program hears them at the daemon's socket."""
    with tempfile.TemporaryDirectory(prefix="chaos-", dir="/tmp") as home:
        heard = bytearray()
        path = socket_path(home)
        Path(path).parent.mkdir(mode=0o700)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            listener.listen()

            def hear():
                connection, _ = listener.accept()
                with connection:
                    heard.extend(connection.recv(1 << 20))
                    refusal = {"code": "heard", "message": "that was all", "hint": ""}
                    connection.sendall(encode_json(FrameType.REFUSED, refusal))

            thread = threading.Thread(target=hear)
            thread.start()
            user_run("ps", "--json", env={"CLAUDE_VM_HOME": home})
            thread.join()
        return bytes(heard)


def damage(message, rng):
    """Return a message that nobody would send."""
    data = bytearray(message)
    match rng.randrange(5):
        case 0:
            del data[rng.randrange(len(data)) :]
        case 1:
            for _ in range(rng.randrange(1, 9)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case 2:
            at = rng.randrange(len(data))
            data[at:at] = rng.randbytes(rng.randrange(1, 5000))
        case 3:
            data = bytearray(rng.randbytes(rng.randrange(1, 5000)))
        case 4:
            data += bytes([rng.randrange(256)]) + rng.randbytes(rng.randrange(0, 64))
    return bytes(data)


def bombard(data_folder, message, count, seed):
    """Send damaged messages; return how many were left without an answer or an end."""
    rng = random.Random(seed)
    silent = 0
    for _ in range(count):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(socket_path(os.fspath(data_folder)))
            try:
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    connection.sendall(damage(message, rng))
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(1 << 16):
                        pass
            except TimeoutError:
                silent += 1
    return silent
