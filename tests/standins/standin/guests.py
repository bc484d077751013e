"""``shell`` and ``copy``: what goes to a guest by SSH, in the foreground."""

import os
import shutil
import subprocess
import sys

from . import sshkeys
from .errors import LimaError, NotFoundError, ToolError
from .instance import STOPPED, Instance, inspect
from .log import LOG, quoted


def shell(name: str, command: list[str], *, workdir: str, interpreter: str) -> None:
    """Run a command in a guest, or a login shell.

    Raises:
        LimaError: the instance does not run.
        ToolError: the command failed, or ssh did.
    """
    if command[:1] == ["--"]:
        command = command[1:]
    found = _running(name)
    script = sshkeys.shell_command(found.settings(), command, workdir, interpreter)
    words = sshkeys.arguments(sshkeys.options(found))
    if sys.stdout.isatty():
        words.append("-t")
    if "COLORTERM" in os.environ:
        words += ["-o", "SendEnv=COLORTERM"]
    words += ["-o", "LogLevel=ERROR", "-p", str(found.ssh_port), sshkeys.ADDRESS, "--", script]
    _become("ssh", words)


def copy(paths: list[str], *, recursive: bool) -> None:
    """Copy files; ``NAME:PATH`` is in a guest. One guest at most.

    Raises:
        LimaError: the instance does not run.
        ToolError: scp failed.
    """
    guests, words = [], []
    for path in paths:
        name, colon, rest = path.partition(":")
        if not colon:
            words.append(path)
            continue
        found = _running(name)
        guests.append(found)
        user = found.settings()["user"]["name"]
        words.append(f"scp://{user}@{sshkeys.ADDRESS}:{found.ssh_port}/{rest}")
    options = sshkeys.arguments(sshkeys.options(guests[0])) if guests else ["-F", "/dev/null"]
    _become("scp", [*options, "-q", *(["-r"] if recursive else []), "-3", "--", *words])


def _running(name: str) -> Instance:
    try:
        found = inspect(name)
    except NotFoundError:
        raise LimaError(
            f"instance {quoted(name)} does not exist, run `limactl create {name}` to create a new instance"
        ) from None
    if found.errors:
        LOG.error(f"Instance {quoted(name)} has configuration errors", error="\n".join(found.errors))
    found.settings()
    if found.status == STOPPED:
        raise LimaError(
            f"instance {quoted(name)} is stopped, run `limactl start {name}` to start the instance"
        )
    return found


def _become(program: str, words: list[str]) -> None:
    status = subprocess.run([shutil.which(program) or program, *words], check=False).returncode
    if status:
        raise ToolError(status if status > 0 else 255)
