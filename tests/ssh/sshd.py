"""A real OpenSSH server on the loopback, started for each connection as in a guest, without privileges."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import threading
from pathlib import Path

import psutil

from claude_vm.drivers.api import Access
from claude_vm.drivers.sim.guest import MARK, kill_marked


def find_sshd():
    return shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


class Sshd:
    """One listening socket, one sshd for each connection, one key that may log in."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.run = folder / "run"
        self.run.mkdir(parents=True)
        self.holder = folder.parent / "holder/s"
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self.children: list[subprocess.Popen] = []
        for name in ("host", "other", "client", "stranger"):
            command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
            subprocess.run(command, check=True, stdin=subprocess.DEVNULL)
        (folder / "authorized_keys").write_text((folder / "client.pub").read_text())
        (folder / "sshd_config").write_text(
            f"HostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized_keys\nPidFile none\nUsePAM no\n"
            f"StrictModes no\nSubsystem sftp internal-sftp\nUseDNS no\nPermitRootLogin yes\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxSessions 50\nLogLevel ERROR\n"
            f"PrintMotd no\nPrintLastLog no\nSetEnv CLAUDE_VM_RUN={self.run} {MARK}={folder}\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            with connection, (self.folder / "log").open("ab") as log:
                command = [find_sshd(), "-i", "-e", "-f", str(self.folder / "sshd_config")]
                self.children.append(
                    subprocess.Popen(command, stdin=connection, stdout=connection, stderr=log, cwd="/")
                )

    def access(self, *, host_key="host", client_key="client") -> Access:
        return Access(
            address="127.0.0.1",
            port=self.port,
            user=getpass.getuser(),
            home=str(Path.home()),
            host_key=(self.folder / f"{host_key}.pub").read_text().strip(),
            client_key=self.folder / client_key,
            holder=str(self.holder),
        )

    def hang_up(self) -> None:
        """Kill all servers, as if the machine died."""
        for child in self.children:
            # With privilege separation a second process serves the connection, and may be made just now.
            family = []
            with contextlib.suppress(psutil.Error):
                family.append(psutil.Process(child.pid))
                for process in family:  # it grows meanwhile
                    process.suspend()
                    family += process.children()
            for process in family:
                with contextlib.suppress(psutil.Error):
                    process.kill()
            child.wait()
        self.children.clear()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.thread.join()
        self.hang_up()
        kill_marked(self.folder)  # a closed connection ends no process that has only pipes
