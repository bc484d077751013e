"""What the host may ask of the helper."""

import json
import os
from collections.abc import Callable
from contextlib import suppress

from . import paths
from .accounts import account
from .files import append, make_directories, read, replace
from .holder_process import HolderProcess
from .job import Job
from .requests import Fields, RequestError, absolute, blob, field
from .sshd import Sshd
from .system import MS_NODEV, MS_NOSUID, MS_RDONLY, System

MAX_LIST = 256


class Helper:
    """The state of one guest, and what the host may ask of it.

    `identified` is false from boot, and from the `seal` before a snapshot, until `identify`. SSH is closed
    in between: it opens in the course of `identify`. After `seal` there is no `run` any more. A helper that
    was killed and started again finds its state in files.
    """

    def __init__(self, system: System, ssh: Sshd) -> None:
        self.system = system
        self.ssh = ssh
        self.identified = os.path.exists(paths.IDENTIFIED)
        self.sealed = os.path.exists(paths.SEALED)
        self.user = account(read(paths.IDENTIFIED).strip()) if self.identified else (0, 0, "/root")
        self.job: Job | None = None
        self.sessions = HolderProcess()
        if self.identified:
            with suppress(OSError):  # it is tried again
                self.ssh.open()

    def answer(self, line: bytes) -> bytes:
        """Do what one line asks, and return the answer's line; nothing when the answer comes later."""
        name = None
        try:
            request = json.loads(line)
            name = field(request, "id", str)[:64]
            result = self._operation(request)(request) or {}
            if "job" in result:
                return b""
            result = {"id": name, "ok": True, **result}
        except RequestError as error:
            result = {"id": name, "ok": False, "error": str(error)}
        except OSError as error:
            result = {
                "id": name,
                "ok": False,
                "error": f"{error.strerror}: {error.filename or ''}".rstrip(": "),
            }
        except Exception as error:  # noqa: BLE001 - whatever it was asked, the helper must live
            result = {"id": name, "ok": False, "error": f"bad request: {type(error).__name__}"}
        return json.dumps(result).encode() + b"\n"

    def _operation(self, request: Fields) -> Callable[[Fields], Fields | None]:
        """Return the method for a request, or refuse."""
        name = "do_" + field(request, "op", str)
        if not hasattr(self, name):
            raise RequestError("unknown request")
        operation: Callable[[Fields], Fields | None] = getattr(self, name)
        return operation

    def do_ping(self, _request: Fields) -> Fields:
        """Say how things are."""
        uptime = float(read("/proc/uptime").split()[0])
        return {"identified": self.identified, "sealed": self.sealed, "uptime_s": uptime, "pid": os.getpid()}

    def do_identify(self, request: Fields) -> None:
        """Become a guest of one's own: random state, clock and keys, in this order; SSH opens; names."""
        entropy = blob(request, "entropy")
        if not 32 <= len(entropy) <= 512:
            raise RequestError("entropy: 32 to 512 bytes expected")
        hostname, machine_id = field(request, "hostname", str), field(request, "machine_id", str)
        if len(machine_id) != 32 or not all(char in "0123456789abcdef" for char in machine_id):
            raise RequestError("machine_id: 32 hex digits expected")
        if not 0 < len(hostname) < 64 or not all(
            char.isascii() and (char.isalnum() or char == "-") for char in hostname
        ):
            raise RequestError("hostname: letters, digits and hyphens expected")
        keys = [(name, field(request, name, str).encode()) for name in ("host_key", "authorized_key")]
        self.user = account(field(request, "user", str))
        self.system.reseed(entropy)
        self.system.set_clock(field(request, "unix_s", float))
        for path in (f"{paths.RUN}/sessions", f"{paths.RUN}/ssh", paths.SSHD_EMPTY):
            make_directories(path, (0, 0))
        make_directories(f"{paths.RUN}/agent", self.user[:2])
        os.chmod(f"{paths.RUN}/agent", 0o700)
        for name, text in keys:
            # sshd reads the authorized key as the user who logs in.
            replace(f"{paths.RUN}/ssh/{name}", text, 0o600 if name == "host_key" else 0o644)
        # The handshake takes longer than all that follows, which is done beside it.
        self.ssh.open()
        self.system.set_names(hostname, machine_id)
        replace(paths.IDENTIFIED, field(request, "user", str).encode(), 0o600)
        self.identified = True
        self.sessions.start(field(request, "user", str))
        self.sessions.say("prime")

    def do_seal(self, _request: Fields) -> None:
        """Be ready for the snapshot: no identity, no SSH, and no `run` for as long as this guest lives."""
        self.identified = False
        self.sealed = True
        self.sessions.say("forget")
        replace(paths.SEALED, b"", 0o600)
        for path in (paths.IDENTIFIED, f"{paths.RUN}/ssh/host_key", f"{paths.RUN}/ssh/authorized_key"):
            if os.path.exists(path):
                os.unlink(path)
        self.ssh.prepare()
        os.sync()

    def do_clock(self, request: Fields) -> None:
        """Set the clock."""
        self.system.set_clock(field(request, "unix_s", float))

    def do_resize(self, request: Fields) -> None:
        """Grow the root file system."""
        self.system.resize(field(request, "bytes", int))

    def do_mount(self, request: Fields) -> None:
        """Mount slots; outer directories before inner ones."""
        mounts = field(request, "mounts", list)
        if len(mounts) > MAX_LIST:
            raise RequestError("mounts: too many")
        for mount in sorted(mounts, key=lambda mount: absolute(field(mount, "path", str)).count("/")):
            target = mount["path"]
            make_directories(target, self.user[:2])
            flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if field(mount, "readonly", bool) else 0)
            self.system.mount(field(mount, "tag", str), target, "9p", flags, field(mount, "options", str))

    def do_unmount(self, request: Fields) -> None:
        """Unmount; only of use while a template is built."""
        self.system.unmount(absolute(field(request, "path", str)))

    def do_files(self, request: Fields) -> None:
        """Write files, in order."""
        files = field(request, "files", list)
        if len(files) > MAX_LIST:
            raise RequestError("files: too many")
        for file in files:
            path = absolute(os.path.join(self.user[2], field(file, "path", str)))
            mode = field(file, "mode", int)
            owner = self.user[:2] if field(file, "owner", str) == "user" else (0, 0)
            data = blob(file, "data")
            make_directories(os.path.dirname(path), owner)
            (append if field(file, "append", bool) else replace)(path, data, mode & 0o7777, owner)

    def do_run(self, request: Fields) -> Fields:
        """Start a program while a template is built; the answer comes at its end, with its output's tail."""
        if self.sealed or self.job:
            raise RequestError("sealed" if self.sealed else "busy")
        self.job = Job(request)
        return {"job": self.job}

    def go_on(self) -> bytes:
        """Read what the running program says; return the answer's line once it has ended."""
        line = self.job.read() if self.job else b""
        if line:
            self.job = None
        return line

    def reap(self) -> None:
        """Collect the processes that have ended."""
        if self.sessions.process is not None:
            self.sessions.process.poll()
        self.ssh.reap()
