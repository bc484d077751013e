import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pexpect
import pytest
from hypothesis import settings

# The checkout may belong to another user: nothing is kept in it.
settings.register_profile("no-database", database=None)
settings.load_profile("no-database")

CLIENT = [
    sys.executable,
    "-c",
    "import sys; from claude_vm.supervisor.cli.main import main; sys.exit(main())",
]
SERVER = Path(__file__).with_name("scripted_server.py")


class Scripted:
    """A scripted server and its clients, all of one home. `command` is a client without words."""

    command = CLIENT

    def __init__(self, home):
        self.home = home
        self.environ = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "CLAUDE_VM_HOME": str(home),
            "TERM": "xterm",
            "LANG": "C.UTF-8",
        }
        self.server = None

    def serve(self, refusal=None):
        self.server = subprocess.Popen(
            [sys.executable, SERVER, self.home],
            stdout=subprocess.PIPE,
            env={**self.environ, "REFUSAL": json.dumps(refusal)},
        )
        assert self.server.stdout.readline() == b"ready\n"

    def run(self, *words, environ=None, **options):
        """Run a client to its end."""
        options.setdefault("stdin", subprocess.DEVNULL if "input" not in options else None)
        if options["stdin"] is None:
            del options["stdin"]
        options.setdefault("timeout", 60)
        return subprocess.run(
            [*CLIENT, *words],
            check=False,
            env={**self.environ, **(environ or {})},
            capture_output=True,
            **options,
        )

    def popen(self, *words, environ=None, **options):
        return subprocess.Popen([*CLIENT, *words], env={**self.environ, **(environ or {})}, **options)

    def spawn(self, *words, environ=None, dimensions=(24, 80)):
        """Run a client on a terminal."""
        child = pexpect.spawn(
            CLIENT[0],
            [*CLIENT[1:], *words],
            env={**self.environ, **(environ or {})},
            dimensions=dimensions,
            timeout=20,
            echo=True,
        )
        child.delaybeforesend = None
        return child

    def close(self):
        if self.server is not None:
            self.server.kill()
            self.server.wait()
            self.server.stdout.close()


@pytest.fixture
def home():
    """A data folder whose path is short enough for a socket."""
    folder = Path(tempfile.mkdtemp(prefix="cli-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def idle(home):
    """No server yet."""
    scripted = Scripted(home)
    yield scripted
    scripted.close()


@pytest.fixture
def scripted(idle):
    """A running scripted server."""
    idle.serve()
    return idle
