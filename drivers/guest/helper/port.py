"""The host's serial port."""

import os
import select
import sys
import time

from .files import read

PORT_NAME = "org.claude-vm.helper"
HOST_BACK_S = 2.0


def port_name(folder: str) -> str:
    """Return the name that the host gave to a serial port; a console has none."""
    try:
        return read(f"{folder}/name").strip()
    except OSError:
        return ""


def find_port() -> str:
    """Return the device of the host's serial port, waiting for it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        base = "/sys/class/virtio-ports"
        for name in os.listdir(base) if os.path.isdir(base) else []:
            if port_name(f"{base}/{name}") == PORT_NAME and os.path.exists(f"/dev/{name}"):
                return f"/dev/{name}"
        time.sleep(0.05)
    sys.exit(f"no serial port {PORT_NAME}")


def send(port: int, data: bytes) -> None:
    """Write an answer; a host that has been gone for a while, or doesn't read for 10 s, gets none.

    A host that has just come back may not be known as such: its request and the news of its coming take
    different ways through the kernel, and on a busy machine the request is quicker.
    """
    poll = select.poll()
    poll.register(port, select.POLLOUT)
    deadline = time.monotonic() + HOST_BACK_S
    while data:
        events = poll.poll(10_000)
        gone = bool(events) and bool(events[0][1] & select.POLLHUP)
        if not events or (gone and time.monotonic() > deadline):
            return
        try:
            data = data[0 if gone else os.write(port, data) :]
        except BlockingIOError:
            gone = True
        if gone:
            time.sleep(0.01)
