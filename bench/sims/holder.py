"""The guest's holder beside the bench's own sshd, so that sessions there go the way that they go in a VM."""

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from claude_vm.drivers.guest import holder


@contextlib.contextmanager
def open_holder(folder: Path) -> Iterator[Path]:
    """Run a holder for this user; gives its socket. Sessions' files are looked for in `folder`/sessions."""
    path = folder / "holder"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(64)
        server = subprocess.Popen(
            [sys.executable, "-I", Path(holder.__file__).parents[1], "holder", str(listener.fileno())],
            stdin=subprocess.PIPE,
            pass_fds=(listener.fileno(),),
            env=os.environ | {"CLAUDE_VM_RUN": str(folder)},
            start_new_session=True,
        )
    try:
        yield path
    finally:
        server.terminate()
        server.communicate()
