"""OpenSSH's own client against a guest: the baseline of a warm claim, and of a restore by hand."""

import contextlib
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from claude_vm.bench.children import finished
from claude_vm.bench.errors import BenchError
from claude_vm.drivers.api import Access

OPEN_S = 60.0
RUN_S = 120.0


class Login:
    """How to reach one guest with ``ssh``. Nothing of the user's own configuration has a part in it.

    `folder` is short and private: it holds the known host's key and the master's socket.
    """

    def __init__(self, access: Access, folder: Path) -> None:
        self._access = access
        self._control = folder / "c"
        known = folder / "known_hosts"
        known.write_text(f"[{access.address}]:{access.port} {access.host_key}\n")
        options = {
            "UserKnownHostsFile": str(known),
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            "IdentityFile": str(access.client_key),
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
            "ControlPath": str(self._control),
        }
        self._argv = ["ssh", "-F", "/dev/null"]
        self._argv += [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        self._argv += ["-p", str(access.port)]
        self.env = {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "TERM": "xterm-256color"}

    def argv(self, *words: str, terminal: bool, master: bool = True) -> list[str]:
        """Return a command line; with `master` over the open connection, else over one of its own."""
        path = [] if master else ["-o", "ControlPath=none"]
        where = f"{self._access.user}@{self._access.address}"
        return [*self._argv, *path, "-tt" if terminal else "-T", where, *words]

    @contextlib.contextmanager
    def open_master(self) -> Iterator[None]:
        """Keep a master connection open.

        Raises:
            BenchError: It does not open.
        """
        master = subprocess.Popen(
            [*self._argv, "-M", "-N", f"{self._access.user}@{self._access.address}"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=self.env,
            start_new_session=True,
        )
        assert master.stderr is not None  # noqa: S101 - it was asked for
        try:
            deadline = time.monotonic() + OPEN_S
            while not self._control.exists():
                if master.poll() is not None or time.monotonic() > deadline:
                    raise BenchError("no ssh connection to the bench's guest")
                time.sleep(0.02)
            yield
        finally:
            master.terminate()
            master.wait()
            master.stderr.close()

    def run(self, *words: str, data: bytes = b"", timeout_s: float = RUN_S) -> bytes:
        """Run a command that is not measured; return its output.

        Raises:
            BenchError: It fails, or takes too long.
        """
        name = f"ssh {' '.join(words)}"
        argv = self.argv(*words, terminal=False)
        done = finished(argv, name=name, timeout_s=timeout_s, env=self.env, data=data)
        if done.returncode:
            raise BenchError(f"{name}: {done.stderr.decode(errors='replace').strip()[-200:]}")
        return done.stdout


@contextlib.contextmanager
def open_login(access: Access) -> Iterator[Login]:
    """Give a login with an open master connection.

    Raises:
        BenchError: No connection.
    """
    with tempfile.TemporaryDirectory(prefix="cvb-") as folder:
        login = Login(access, Path(folder))
        with login.open_master():
            yield login
