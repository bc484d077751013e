"""A restore by hand: what somebody with QEMU, a saved state and ``ssh`` would type, and nothing more.

No driver, no journal, no confinement, no event loop: an overlay, a QEMU, three monitor commands, the identity
that lets SSH in, the project's mount, one OpenSSH login to its prompt. It is the floor for our own RAM clone.
"""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from claude_vm.bench import children
from claude_vm.bench.errors import BenchError, UnavailableError
from claude_vm.bench.guests import Guests
from claude_vm.bench.ssh import Login
from claude_vm.drivers import files
from claude_vm.drivers.api import Access, Mount
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.programs import own
from claude_vm.drivers.qemu.arguments import arguments
from claude_vm.drivers.vm import accelerator
from claude_vm.drivers.vm.arguments import QemuBuild, Ram, VmSize
from claude_vm.drivers.vm.identity import new_identity
from claude_vm.drivers.vm.machine import MOUNT_OPTIONS
from claude_vm.drivers.vm.qmp import forwarded_port
from claude_vm.drivers.vm.spawn import listen
from claude_vm.drivers.vm.store import Generation, Snapshot, VmTemplates

WAIT_S = 60.0


class _Lines:
    """A socket that talks in lines of JSON."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(WAIT_S)
        self.socket.connect(str(path))
        self._file = self.socket.makefile("rb")

    def read(self) -> dict[str, Any]:
        line = self._file.readline()
        if not line:
            raise BenchError("the QEMU that was started by hand ended")
        found: dict[str, Any] = json.loads(line)
        return found

    def send(self, message: dict[str, Any]) -> None:
        self.socket.sendall(json.dumps(message).encode() + b"\n")

    def ask(self, command: str, **arguments: object) -> Any:
        """Run a monitor command and return its value."""
        self.send({"execute": command, "arguments": arguments})
        return self.answer(command)

    def answer(self, command: str) -> Any:
        """Return the value of a command; events that come before it are dropped."""
        while True:
            said = self.read()
            if "error" in said:
                raise BenchError(f"QEMU can't do {command}: {said['error']}")
            if "return" in said:
                return said["return"]

    def helper(self, operation: str, **fields: object) -> None:
        """Ask the guest's helper for something."""
        self.send({"id": operation, "op": operation, **fields})
        while (said := self.read()).get("id") != operation:
            pass
        if not said.get("ok"):
            raise BenchError(f"the guest can't do {operation}: {said.get('error')}")

    def close(self) -> None:
        self._file.close()
        self.socket.close()


class ByHand:
    """Restores guests of one snapshot by hand.

    Raises:
        UnavailableError: There is no snapshot for this QEMU; a first clone makes it.
    """

    def __init__(self, guests: Guests) -> None:
        record = guests.record
        home = guests.site.home
        self._project = str(guests.site.project)
        templates = VmTemplates(home, record.driver)
        self._generation: Generation = templates.find(record.name, record.generation)
        choice = accelerator.choose(home)
        host: QemuBuild = guests.call(lambda: accelerator.find_host(choice.name, own()))
        self._size = VmSize(record.cpus, record.memory_mib)
        key = self._generation.stored.snapshot_key(arguments, host, self._size)
        snapshot = self._generation.snapshot(key)
        if snapshot is None:
            raise UnavailableError("no RAM snapshot of this size, so nothing to restore by hand")
        self._snapshot: Snapshot = snapshot
        self._host = msgspec.structs.replace(host, sandbox=False)
        self._record = record

    def run(self) -> children.Timing:
        """Restore, log in, wait for the prompt, log out; the VM is killed afterwards, outside of the time."""
        folder = Path(tempfile.mkdtemp(prefix="cvb-"))
        processes: list[subprocess.Popen[bytes]] = []
        begun = time.monotonic()
        try:
            login = self._restore(folder, processes)
            took = time.monotonic() - begun
            timing = children.run(
                login.argv(terminal=True, master=False),
                env=login.env,
                cwd=folder,
                steps=children.PROMPT,
                terminal=True,
            )
            instants = {name: at + (timing.begun_at - begun) for name, at in timing.instants.items()}
            return children.Timing(begun, {"login": took, **instants}, timing.status, timing.error)
        except (BenchError, DriverError, OSError, subprocess.SubprocessError, ValueError) as error:
            return children.Timing(begun, {}, 1, f"by hand: {error}")
        finally:
            for process in processes:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            shutil.rmtree(folder, ignore_errors=True)

    def _restore(self, folder: Path, processes: list[subprocess.Popen[bytes]]) -> Login:
        disk = folder / "disk.qcow2"
        backing = str(self._snapshot.disk)
        make = ["qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", backing, str(disk)]
        subprocess.run(make, check=True, stdin=subprocess.DEVNULL, capture_output=True)
        processes.append(self._start(folder, disk))
        monitor, helper = _Lines(folder / "m"), _Lines(folder / "h")
        try:
            self._load(monitor)
            port = forwarded_port(
                str(monitor.ask("human-monitor-command", **{"command-line": "info usernet"}))
            )
            return self._settle(helper, folder, port)
        finally:
            monitor.close()
            helper.close()

    def _start(self, folder: Path, disk: Path) -> subprocess.Popen[bytes]:
        empty = folder / "empty"
        empty.mkdir()
        guest = msgspec.structs.replace(
            self._generation.stored.guest("by-hand", self._size, disk),
            serial=str(folder / "serial.log"),
            empty=str(empty),
            slots=(Mount(self._project, self._project),),
            ram=Ram(str(self._snapshot.ram), shared=False),
            incoming=True,
        )
        with listen(folder / "m") as monitor, listen(folder / "h") as helper:
            guest = msgspec.structs.replace(guest, monitor=monitor.fileno(), helper=helper.fileno())
            return subprocess.Popen(
                arguments(self._host, guest),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(monitor.fileno(), helper.fileno()),
                start_new_session=True,
            )

    def _load(self, monitor: _Lines) -> None:
        monitor.read()
        monitor.ask("qmp_capabilities")
        capabilities = [{"capability": name, "state": True} for name in ("x-ignore-shared", "events")]
        monitor.ask("migrate-set-capabilities", capabilities=capabilities)
        with self._snapshot.state.open("rb") as state:
            message = json.dumps({"execute": "getfd", "arguments": {"fdname": "state"}}).encode()
            socket.send_fds(monitor.socket, [message], [state.fileno()])
            monitor.answer("getfd")
        monitor.send({"execute": "migrate-incoming", "arguments": {"uri": "fd:state"}})
        while (monitor.read().get("data") or {}).get("status") != "completed":
            pass
        monitor.ask("cont")

    def _settle(self, helper: _Lines, folder: Path, port: int) -> Login:
        identity = new_identity("i-0123456789")
        key = folder / "key"
        files.replace(key, identity.client_key.private.encode())
        helper.helper("identify", **identity.request(self._record.user))
        mount = {"tag": "slot0", "path": self._project, "readonly": False, "options": MOUNT_OPTIONS}
        helper.helper("mount", mounts=[mount])
        access = Access(
            address="127.0.0.1",
            port=port,
            user=self._record.user,
            home=self._record.home,
            host_key=identity.host_key.public,
            client_key=key,
        )
        return Login(access, folder)
