"""The host agent: one process for each running instance, that starts QEMU, waits for the guest and ends both.

Its standard output is the instance's event stream; its standard error is its log, in JSON.
"""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

from . import cidata, disks, faults, machine, monitor, requirements, sshkeys, validation
from .errors import LimaError
from .instance import Instance, inspect, read_pid
from .log import LOG, configure, quoted, timestamp

_POWERDOWN_TIMEOUT_S = 180.0


def run(name: str, pid_file: Path, socket_path: Path) -> None:
    """Be an instance's host agent until its VM ends or a signal comes.

    Raises:
        LimaError: there is one already, or the VM can't be started.
    """
    existing = read_pid(pid_file)
    if existing:
        raise LimaError(
            f"another hostagent may already be running with pid {existing} (pidfile {quoted(pid_file)})"
        )
    pid_file.write_text(f"{os.getpid()}\n", encoding="utf-8")
    configure(sys.stderr, as_json=True, level="debug")
    LOG.debug('Using internal driver "qemu"')
    try:
        agent = _Agent(inspect(name))
        server = _listen(socket_path, agent.ssh_port)
        try:
            agent.run()
        finally:
            server.close()
            socket_path.unlink(missing_ok=True)
    finally:
        pid_file.unlink(missing_ok=True)


class _Agent:
    """One run of an instance."""

    def __init__(self, found: Instance) -> None:
        settings = found.settings()
        self._found = found
        self._happenings: queue.SimpleQueue[str] = queue.SimpleQueue()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._take_signal)
        self.ssh_port = settings["ssh"]["localPort"] or _free_port()
        validation.check(settings, warn=True)
        cidata.write_cloud_config(found)
        self._instance_id = cidata.write(found)
        self._options = sshkeys.options(found)
        sshkeys.write_config(found, self._options, self.ssh_port)
        self._waiter = requirements.Waiter(self._options, self.ssh_port)
        self._qemu: subprocess.Popen[str] | None = None
        self._reached = False

    def run(self) -> None:
        """Start the VM, say how it goes, and end it.

        Raises:
            LimaError: QEMU can't be started, or ended badly.
        """
        try:
            self._start_qemu()
            self._emit({"sshLocalPort": self.ssh_port})
            threading.Thread(target=self._wait_for_guest, daemon=True).start()
            LOG.info(self._happenings.get())
            self._close()
            self._stop_qemu()
        finally:
            self._emit({"exiting": True})

    def _take_signal(self, number: int, _frame: object) -> None:
        self._happenings.put(f"Received {signal.Signals(number).name}, shutting down the host agent")

    def _start_qemu(self) -> None:
        words = machine.command(self._found, self.ssh_port)
        LOG.info(
            "Starting QEMU (hint: to watch the boot progress, see "
            f"{quoted(self._found.folder / 'serial*.log')})"
        )
        LOG.debug(f"qCmd.Args: [{' '.join(words)}]")
        self._other = faults.taken_port(self._found.folder, self.ssh_port)
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        self._qemu = subprocess.Popen(
            words, stdin=subprocess.DEVNULL, **pipes, process_group=0, text=True, errors="replace"
        )
        for name in ("stdout", "stderr"):
            threading.Thread(target=self._log_output, args=(name,), daemon=True).start()
        threading.Thread(target=self._watch_qemu, daemon=True).start()

    def _log_output(self, name: str) -> None:
        assert self._qemu is not None
        for line in getattr(self._qemu, name):
            LOG.debug(f"qemu[{name}]: {line.rstrip()}")

    def _watch_qemu(self) -> None:
        assert self._qemu is not None
        status = self._qemu.wait()
        self._happenings.put(f"Driver stopped due to error: {_exit_text(status)}")

    def _wait_for_guest(self) -> None:
        settings = self._found.settings()
        if settings["plain"]:
            LOG.info(
                "Running in plain mode. Mounts, dynamic port forwarding, containerd, etc. will be ignored. "
                "Guest agent will not be running."
            )
        problems = self._waiter.wait("essential", requirements.essential())
        self._reached = not self._waiter.stopped
        problems += self._waiter.wait("optional", requirements.optional(self._found))
        problems += self._waiter.wait("final", requirements.final(self._instance_id))
        if self._waiter.stopped:
            return
        status: dict[str, Any] = {"running": True}
        if problems:
            status |= {"degraded": True, "errors": ["\n".join(problems)]}
        self._emit(status | {"sshLocalPort": self.ssh_port})

    def _close(self) -> None:
        LOG.info("Shutting down the host agent")
        if self._reached:
            disks.release(self._found)
        self._waiter.stop()
        if (self._found.folder / "ssh.sock").exists():
            LOG.debug("shutting down the SSH master")
            requirements.exit_master(self._options, self.ssh_port)

    def _stop_qemu(self) -> None:
        """Press the power button, and pull the plug after three minutes."""
        assert self._qemu is not None
        LOG.info("Shutting down QEMU with the power button")
        path = self._found.folder / "qmp.sock"
        try:
            connection = monitor.connect(path)
        except OSError as error:
            reason = f"dial unix {path}: connect: {(error.strerror or str(error)).lower()}"
            LOG.warning(f"failed to open the QMP socket {quoted(path)}, forcibly killing QEMU", error=reason)
            self._kill_qemu()
            return
        with connection:
            try:
                monitor.negotiate(connection)
                LOG.info("Sending QMP system_powerdown command")
                monitor.execute(connection, "system_powerdown")
            except (OSError, ValueError) as error:
                LOG.warning(
                    f"failed to connect to the QMP socket {quoted(path)}, forcibly killing QEMU",
                    error=str(error),
                )
                self._kill_qemu()
                return
            try:
                status = self._qemu.wait(_POWERDOWN_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                LOG.warning("QEMU did not exit in 3m0s, forcibly killing QEMU")
                self._kill_qemu()
                return
        LOG.info("QEMU has exited")
        if status:
            raise LimaError(_exit_text(status).strip("`"))

    def _kill_qemu(self) -> None:
        assert self._qemu is not None
        if self._qemu.poll() is None:
            self._qemu.kill()
            self._qemu.wait()
            LOG.info("QEMU has exited, after killing forcibly")
        else:
            LOG.info("QEMU has already exited")
        (self._found.folder / "qemu.pid").unlink(missing_ok=True)

    def _emit(self, status: dict[str, Any]) -> None:
        order = ("running", "degraded", "exiting", "errors", "sshLocalPort")
        status = {key: status[key] for key in order if key in status}
        sys.stdout.write(
            json.dumps({"time": _precise_time(), "status": status}, separators=(",", ":")) + "\n"
        )
        sys.stdout.flush()


def _exit_text(status: int) -> str:
    if status == 0:
        return "%!q(<nil>)"
    if status < 0:
        return f"`signal: {signal.strsignal(-status) or -status}`".lower()
    return f"`exit status {status}`"


def _precise_time() -> str:
    """Return the time with its fraction, as events have it."""
    now = timestamp()
    return f"{now[:19]}.{time.time_ns() % 1_000_000_000:09d}{now[19:]}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((sshkeys.ADDRESS, 0))
        port = probe.getsockname()[1]
    return int(port)


def _listen(path: Path, port: int) -> socket.socket:
    """Answer who asks for the SSH port, in the background."""
    path.unlink(missing_ok=True)
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(path))
    server.listen()
    LOG.info(f"hostagent socket created at {path}")
    body = json.dumps({"sshLocalPort": port}, separators=(",", ":")).encode()

    def serve() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=_answer, args=(connection, body), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    return server


def _answer(connection: socket.socket, body: bytes) -> None:
    with connection:
        request = b""
        try:
            connection.settimeout(5)
            while b"\r\n\r\n" not in request:
                data = connection.recv(65536)
                if not data:
                    return
                request += data
            known = request.startswith(b"GET /v1/info ")
            head = b"HTTP/1.1 200 OK" if known else b"HTTP/1.1 404 Not Found"
            found = body if known else b""
            head += b"\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            connection.sendall(head % len(found) + found)
        except OSError:
            return
