"""The helper's loop: it serves the host at its port."""

import fcntl
import os
import select
import signal
import socket
import time

from . import paths
from .files import make_directories
from .operations import Helper
from .port import find_port, send
from .requests import Lines
from .sshd import Sshd
from .system import System


class Server:
    """Serves the host for ever.

    While no host is connected the port is "hung up", which poll would report at once and always: then only a
    signal (the port sends SIGIO when the host comes back) or a second's pause leads to the next look.
    """

    def __init__(self, helper: Helper, port: int, wakeup: socket.socket) -> None:
        self.helper = helper
        self.port = port
        self.wakeup = wakeup
        self.lines = Lines()
        self.connected = True

    def run_once(self) -> None:
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

    def wait(self) -> dict[int, int]:
        """Wait for input, and return the descriptors that are ready."""
        helper, poll = self.helper, select.poll()
        poll.register(self.wakeup, select.POLLIN)
        if self.connected:
            poll.register(self.port, select.POLLIN)
        if helper.job:
            poll.register(helper.job.output, select.POLLIN)
        return dict(poll.poll(1000 if helper.job or helper.ssh.down or not self.connected else None))

    def read(self) -> None:
        """Read requests from the host, and answer them."""
        try:
            data = os.read(self.port, 1 << 16)
        except BlockingIOError:
            return
        self.connected = bool(data)
        for line in self.lines.feed(data):
            send(self.port, self.helper.answer(line))


def main() -> None:
    """Open the host's port and SSH's, and serve. The network is up since the initial RAM disk."""
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
    server = Server(Helper(system, Sshd()), port, reader)
    while True:
        server.run_once()
