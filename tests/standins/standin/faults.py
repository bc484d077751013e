"""Faults on request, for tests of what the real limactl does only now and then.

``LIMACTL_STANDIN_FAULTS`` holds words with commas between them:

* ``delete-race``: the first ``delete`` of an instance finds a file that the killed host agent still wrote.
* ``port-race``: the first start of an instance finds its SSH port taken by another program.
"""

import errno
import os
import socket
from pathlib import Path

from . import names

VARIABLE = "LIMACTL_STANDIN_FAULTS"


def strike_delete(folder: Path) -> None:
    """Do what a host agent does that writes while its folder is removed.

    Raises:
        OSError: the folder isn't empty. Of the instance no ``lima.yaml`` is left.
    """
    if not _due("delete-race", folder.name):
        return
    for path in folder.iterdir():
        if not path.is_dir():
            path.unlink()
    (folder / "ha.stderr.log").touch()
    raise OSError(errno.ENOTEMPTY, "directory not empty", str(folder))


def taken_port(instance: str, port: int) -> socket.socket | None:
    """Return the other program's listening socket, or None."""
    if not _due("port-race", instance):
        return None
    return socket.create_server(("127.0.0.1", port))


def _due(fault: str, instance: str) -> bool:
    """Tell whether a fault was asked for and has not struck this instance yet."""
    if fault not in os.environ.get(VARIABLE, "").split(","):
        return False
    mark = names.home() / "_standin" / f"{fault}.{instance}"
    mark.parent.mkdir(exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        return False
    return True
