"""A program that the host has run in the guest while a template is built."""

import json
import os
import signal
import time
from subprocess import DEVNULL, PIPE, STDOUT, Popen

from .accounts import account
from .requests import Fields, field

OUTPUT_LIMIT = 16 << 10


class Job:
    """A program that runs while a template is built; late, it is killed with all that it started."""

    def __init__(self, request: Fields) -> None:
        name = field(request, "user", str)
        uid, gid, home = account(name)
        path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        env = {"PATH": path, "HOME": home, "USER": name, "LOGNAME": name, "LANG": "C.UTF-8"}
        self.id = field(request, "id", str)
        self.deadline = time.monotonic() + field(request, "limit_s", float)
        self.tail = bytearray()
        self.process = Popen(
            field(request, "argv", list),
            stdin=DEVNULL,
            stdout=PIPE,
            stderr=STDOUT,
            cwd=home,
            user=uid,
            group=gid,
            extra_groups=[],
            start_new_session=True,
            env={**env, **field(request, "env", dict, {})},
        )
        self.output = self.process.stdout.fileno()  # type: ignore[union-attr]

    def read(self) -> bytes:
        """Read on; return the answer's line once the program has ended."""
        late = time.monotonic() > self.deadline
        if late:
            os.killpg(self.process.pid, signal.SIGKILL)
        chunk = b"" if late else os.read(self.output, 1 << 16)
        self.tail += chunk
        del self.tail[:-OUTPUT_LIMIT]
        if chunk:
            return b""
        with self.process as process:
            status = process.wait()
        answer = {"id": self.id, "ok": True, "status": status, "output": self.tail.decode(errors="replace")}
        return json.dumps(answer).encode() + b"\n"
