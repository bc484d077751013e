"""The helper's loop: it serves the host at its port, and SSH at its own."""

import fcntl
import os
import select
import signal
import socket
import sys
import time

from . import paths
from .files import make_directories
from .operations import Helper
from .port import find_port, send
from .requests import Lines
from .system import System

MAX_CONNECTIONS = 256


class Server:
    """Serves the host and SSH for ever.

    While no host is connected the port is "hung up", which poll would report at once and always: then only a
    signal (the port sends SIGIO when the host comes back) or a second's pause leads to the next look.
    """

    def __init__(self, helper: Helper, port: int, listener: socket.socket, wakeup: socket.socket) -> None:
        self.helper = helper
        self.port = port
        self.listener = listener
        self.wakeup = wakeup
        self.lines = Lines()
        self.connected = True

    def turn(self) -> None:
        """Wait for something to do, and do it."""
        helper, job = self.helper, self.helper.job
        ready = self.wait()
        self.connected = not ready.get(self.port, 0) & select.POLLHUP
        if self.wakeup.fileno() in ready:
            self.wakeup.recv(4096)
        helper.reap()
        if job and (job.output in ready or time.monotonic() > job.deadline):
            send(self.port, helper.go_on())
        if ready.get(self.port, 0) & select.POLLIN:
            self.read()
        if not self.connected:
            self.lines.clear()
        if self.listener.fileno() in ready and helper.identified:
            self.accept()

    def wait(self) -> dict[int, int]:
        """Wait for input, and return the descriptors that are ready."""
        helper, poll = self.helper, select.poll()
        poll.register(self.wakeup, select.POLLIN)
        if self.connected:
            poll.register(self.port, select.POLLIN)
        if helper.identified and len(helper.children) < MAX_CONNECTIONS:
            poll.register(self.listener, select.POLLIN)
        if helper.job:
            poll.register(helper.job.output, select.POLLIN)
        return dict(poll.poll(1000 if helper.job or not self.connected else None))

    def read(self) -> None:
        """Read requests from the host, and answer them."""
        try:
            data = os.read(self.port, 1 << 16)
        except BlockingIOError:
            return
        self.connected = bool(data)
        for line in self.lines.feed(data):
            send(self.port, self.helper.answer(line))

    def accept(self) -> None:
        """Take an SSH connection."""
        try:
            connection, _ = self.listener.accept()
            with connection:
                self.helper.serve_ssh(connection)
        except OSError as error:
            sys.stderr.write(f"ssh: {error}\n")


def main() -> None:
    """Open SSH's port and the host's port, and serve. The network is up since the initial RAM disk."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGIO):
        signal.signal(number, lambda *_: None)
    make_directories(paths.RUN, (0, 0))
    system = System()
    port = os.open(find_port(), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(port, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(port, fcntl.F_SETFL, fcntl.fcntl(port, fcntl.F_GETFL) | os.O_ASYNC)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", 22))  # noqa: S104 - the guest's only network is its host
    listener.listen(64)
    listener.setblocking(False)
    server = Server(Helper(system), port, listener, reader)
    while True:
        server.turn()
