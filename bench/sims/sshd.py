"""A loopback sshd of the bench's own, as the same guest for both sides of F8."""

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from claude_vm.bench.errors import BenchError, UnavailableError
from claude_vm.drivers.api import Access
from claude_vm.drivers.lima.instance import free_port

START_S = 10.0


@contextlib.contextmanager
def open_sshd(folder: Path) -> Iterator[Access]:
    """Run an sshd for this user on a free loopback port.

    Raises:
        UnavailableError: There is no sshd here, or it gives no terminals to this user.
    """
    path = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin"
    program = shutil.which("sshd", path=path)
    if program is None or shutil.which("ssh-keygen") is None:
        raise UnavailableError("no sshd on this host (Debian: openssh-server)")
    for name in ("host", "client"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(folder / name)]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    port = free_port()
    config = folder / "sshd_config"
    config.write_text(
        f"ListenAddress 127.0.0.1:{port}\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/client.pub\n"
        "PidFile none\nUsePAM no\nStrictModes no\nUseDNS no\nPermitRootLogin yes\nPasswordAuthentication no\n"
        "KbdInteractiveAuthentication no\nMaxSessions 50\nLogLevel ERROR\nPrintMotd no\nPrintLastLog no\n"
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)
    server = subprocess.Popen(
        [program, "-D", "-e", "-f", str(config)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait(server, port)
        yield Access(
            address="127.0.0.1",
            port=port,
            user=getpass.getuser(),
            home=str(Path.home()),
            host_key=(folder / "host.pub").read_text().strip(),
            client_key=folder / "client",
        )
    finally:
        server.terminate()
        server.wait()


def _wait(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise BenchError("the bench's sshd ended at once")
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    raise BenchError("the bench's sshd does not listen")
