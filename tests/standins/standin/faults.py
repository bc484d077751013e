"""Faults on request, for tests of what the real limactl does only now and then.

``LIMACTL_STANDIN_FAULTS`` holds words with commas between them:

* ``delete-race``: the host agent that a ``delete`` has killed wrote once more, while its folder was removed.
* ``port-race``: the first start of an instance finds its SSH port taken by another program.
"""

import errno
import os
import socket
from pathlib import Path

VARIABLE = "LIMACTL_STANDIN_FAULTS"


def strike_delete(folder: Path) -> None:
    """Do what a host agent does that writes while its folder is removed.

    Raises:
        OSError: the folder isn't empty. Of the instance no ``lima.yaml`` is left.
    """
    if not _wanted("delete-race"):
        return
    for path in folder.iterdir():
        if not path.is_dir():
            path.unlink()
    (folder / "ha.stderr.log").touch()
    raise OSError(errno.ENOTEMPTY, "directory not empty", str(folder))


def taken_port(folder: Path, port: int) -> socket.socket | None:
    """Return the other program's listening socket, or None."""
    mark = folder / "standin.port-race"
    if not _wanted("port-race") or mark.exists():
        return None
    mark.touch()
    return socket.create_server(("127.0.0.1", port))


def _wanted(fault: str) -> bool:
    return fault in os.environ.get(VARIABLE, "").split(",")
