"""Stands in for the daemon's module: notes how it was started, says what it is told to, and ends."""

import contextlib
import json
import os
import resource
import signal
import socket
import sys
from pathlib import Path


def descriptors():
    found = {}
    for link in list(Path("/proc/self/fd").iterdir()):
        # The one that listed the folder is gone.
        with contextlib.suppress(FileNotFoundError):
            found[link.name] = str(link.readlink())
    return found


home = Path(os.environ["CLAUDE_VM_HOME"])
told = {
    "environ": dict(os.environ),
    "cwd": str(Path.cwd()),
    "descriptors": descriptors(),
    "session": os.getsid(0),
    "group": os.getpgrp(),
    "pid": os.getpid(),
    "parent": os.getppid(),
    "umask": os.umask(0o077),
    "path": sys.path,
    "hangup": signal.getsignal(signal.SIGHUP) == signal.SIG_DFL,
    "blocked": [int(s) for s in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
    "files": resource.getrlimit(resource.RLIMIT_NOFILE),
}
(home / "told.json").write_text(json.dumps(told))
with (home / "starts").open("a") as starts:
    starts.write("x")
report = int(os.environ["CLAUDE_VM_READY_FD"])
mode = (home / "mode").read_text()
if mode == "crash":
    raise SystemExit("no module named \x1b[31mnonsense")
word, _, clients = mode.partition(" ")
with socket.socket(socket.AF_UNIX) as listener:
    if word == "ok":
        listener.bind(str(home / "run" / "daemon.sock"))
        listener.listen()
        os.write(report, b"ok\n")
    elif word != "silent":
        os.write(report, mode.encode() + b"\n")
    os.close(report)
    for _ in range(int(clients or 0)):
        connection, _ = listener.accept()
        connection.close()
