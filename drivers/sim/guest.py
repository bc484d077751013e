"""A simulated guest: an SSH server on the loopback, and behind it a holder of sessions in a scratch home."""

import asyncio
import contextlib
import getpass
import os
import signal
import socket
from pathlib import Path
from typing import Any

import asyncssh
import msgspec
import psutil

from claude_vm.drivers import files
from claude_vm.drivers.api import Access, GuestFile
from claude_vm.drivers.guest.holder import Connections, Holder
from claude_vm.drivers.guest.holder.listening import TABLES
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.sim.holding import HolderThread

MARK = "CLAUDE_VM_SIM"
"""The environment variable by which a guest's processes are found after their supervisor's death."""

_LAUNCHER = Path(__file__).parents[1] / "guest" / "session"
_GUEST_RUN = "/run/claude-vm"
_HOLDER = f"{_GUEST_RUN}/holder/socket"
_KILL_WAIT_S = 5.0
_CHUNK = 64 * 1024


class Guest:
    """One running guest. All that it keeps on disk is in `folder`."""

    def __init__(self, folder: Path, tools: Path | None, holders: HolderThread) -> None:
        """`holders` is where the sessions are held."""
        self.folder = folder
        self.home = folder / "home"
        self.run = folder / "run"
        self.stopped = asyncio.Event()
        self.reason = ""
        self._tools = tools
        self._listener: asyncssh.SSHAcceptor | None = None
        self._connections: set[asyncssh.SSHServerConnection] = set()
        self._death: asyncio.TimerHandle | None = None
        self.authorized = ""
        self._holders = holders
        self._holder = self._make_holder()
        # This host's own sockets are nobody's business: what the guest listens at stands in files of its own.
        self._held = Connections(self._holder, [str(self.path(table)) for table in TABLES])

    async def start(self) -> Access:
        """Make keys, listen, and return how to get in."""
        for path in (self.home, self.run):
            path.mkdir(mode=0o700, exist_ok=True)
        host_key = asyncssh.generate_private_key("ssh-ed25519")
        client_key = asyncssh.generate_private_key("ssh-ed25519")
        client_key_path = self.folder / "client_key"
        files.replace(client_key_path, client_key.export_private_key())
        self.authorized = client_key.export_public_key().decode()
        self._listener = await asyncssh.listen(
            "127.0.0.1",
            0,
            config=[],
            server_factory=lambda: _Server(self),
            server_host_keys=[host_key],
            encoding=None,
            kex_algs=["curve25519-sha256"],
            compression_algs=["none"],
            authorized_client_keys=None,
            gss_host=None,
        )
        return Access(
            address="127.0.0.1",
            port=self._listener.get_port(),
            user=getpass.getuser(),
            home=str(self.home),
            host_key=host_key.export_public_key().decode().strip(),
            client_key=client_key_path,
        )

    def die_in(self, delay_s: float) -> None:
        """Let the VM die by itself after a while."""
        self._death = asyncio.get_running_loop().call_later(
            delay_s, self.stop_nowait, "the simulated VM died"
        )

    def stop_nowait(self, reason: str) -> None:
        """End the VM as a power cut does. May be called twice."""
        if self.stopped.is_set():
            return
        self.reason = reason
        self.stopped.set()
        if self._death is not None:
            self._death.cancel()
        if self._listener is not None:
            self._listener.close()
        for connection in list(self._connections):
            connection.abort()
        self._holders.call(self._let_go)

    async def stop(self, reason: str) -> None:
        """End the VM and return when its processes have ended."""
        self.stop_nowait(reason)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_KILL_WAIT_S):
                for connection in list(self._connections):
                    await connection.wait_closed()
                if self._listener is not None:
                    await self._listener.wait_closed()
        await self._holders.call_and_wait(self._let_go)
        kill_marked(self.folder)

    def path(self, guest_path: str) -> Path:
        """Return the local file that stands for a guest's: its own tmpfs, its home, and a root of its own."""
        path = os.path.normpath(os.path.join(self.home, guest_path))  # noqa: PTH118 - normpath has no twin there
        if path.startswith(_GUEST_RUN + "/"):
            return self.run / path.removeprefix(_GUEST_RUN + "/")
        if Path(path).is_relative_to(self.folder):
            return Path(path)
        return self.folder / "root" / path.lstrip("/")

    def localized(self, file: GuestFile) -> GuestFile:
        """Return a file with the guest's paths as they are here: a session's variables name sockets."""
        if not (file.path.startswith(_GUEST_RUN + "/sessions/") and file.path.endswith("/launch")):
            return file
        words = file.data.split(b"\0")
        local, real = f"={self.run}/".encode(), f"={_GUEST_RUN}/".encode()
        variables = slice(3, 3 + int(words[2]))  # see ``drivers/guest/session``
        words[variables] = [word.replace(real, local) for word in words[variables]]
        return msgspec.structs.replace(file, data=b"\0".join(words))

    def environment(self) -> dict[str, str]:
        """Return what sshd would give to a process; nothing of the supervisor's own environment."""
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        return {
            "HOME": str(self.home),
            "USER": getpass.getuser(),
            "LOGNAME": getpass.getuser(),
            "SHELL": "/bin/bash",
            "PATH": path if self._tools is None else f"{self._tools}:{path}",
            "CLAUDE_VM_RUN": str(self.run),
            MARK: str(self.folder),
        }

    def _make_holder(self) -> Holder:
        """What holds the sessions of a real guest, with the paths of this one."""
        at_home = ("/usr/bin/env", "-C", str(self.home), "/bin/bash")
        return Holder(
            self._holders.loop,
            terminal_argv=(*at_home, "--rcfile", str(_LAUNCHER), "-i"),
            pipes_argv=(*at_home, str(_LAUNCHER)),
            environment=self.environment(),
        )

    def _let_go(self) -> None:
        self._holder.close()
        self._held.close()

    async def hold(self, reader: "asyncssh.SSHReader[bytes]", writer: "asyncssh.SSHWriter[bytes]") -> None:
        """Connect a stream of the supervisor to the holder, which runs in a thread of its own."""
        ours, theirs = socket.socketpair()
        self._holders.call(lambda: self._held.accept(theirs))
        held_reader, held_writer = await asyncio.open_connection(sock=ours)

        async def to_holder() -> None:
            while data := await reader.read(_CHUNK):
                held_writer.write(data)
                await held_writer.drain()
            held_writer.close()

        try:
            async with asyncio.TaskGroup() as tasks:
                upward = tasks.create_task(to_holder())
                while data := await held_reader.read(_CHUNK):
                    writer.write(data)
                    await writer.drain()
                upward.cancel()
        except* (OSError, asyncssh.Error):
            pass  # either side is gone
        finally:
            held_writer.close()
            writer.close()

    def connected(self, connection: asyncssh.SSHServerConnection) -> None:
        """Note a connection, so that the VM's end ends it."""
        self._connections.add(connection)
        if self.stopped.is_set():
            connection.abort()

    def disconnected(self, connection: asyncssh.SSHServerConnection) -> None:
        """Note a connection's end."""
        self._connections.discard(connection)


class _Server(asyncssh.SSHServer):
    """Lets in who has the instance's key."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._connection: asyncssh.SSHServerConnection | None = None

    def connection_made(self, conn: asyncssh.SSHServerConnection) -> None:
        self._connection = conn
        self._guest.connected(conn)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        if self._connection is not None:
            self._guest.disconnected(self._connection)

    def begin_auth(self, username: str) -> bool:  # noqa: ARG002
        return True

    def public_key_auth_supported(self) -> bool:
        return True

    def validate_public_key(self, username: str, key: asyncssh.SSHKey) -> bool:
        authorized = asyncssh.import_public_key(self._guest.authorized)
        return username == getpass.getuser() and key.public_data == authorized.public_data

    def unix_connection_requested(self, dest_path: str) -> Any:
        return self._guest.hold if dest_path == _HOLDER else False

    def connection_requested(self, dest_host: str, dest_port: int, orig_host: str, orig_port: int) -> bool:  # noqa: ARG002
        return dest_host in {"127.0.0.1", "::1"}  # its ports are this host's

    async def unix_server_requested(self, listen_path: str) -> Any:
        path = self._guest.path(listen_path)
        path.parent.mkdir(mode=0o700, exist_ok=True)
        return (
            await self._connection.forward_local_path(str(path), listen_path) if self._connection else False
        )


def kill_marked(folder: Path) -> None:
    """Kill every process that was started for the guest in `folder`, whoever its parent is now."""
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.environ().get(MARK) == str(folder):
                identity = ProcessIdentity.of(process.pid)
                if identity is not None:
                    identity.kill(signal.SIGKILL)
