"""The resident helper of a claude-vm guest: gives a clone its identity, its mounts and its files.

It runs as root from early boot on, is part of every snapshot, and so answers milliseconds after a restore,
long before SSH does. It speaks newline-delimited JSON with the host over a virtio-serial port and holds the
guest's SSH port: connections wait in the kernel's queue until `identify` has reseeded the random pool and
placed the keys; only then each gets an ``sshd -i``. So no handshake can use the random state that all clones
of one snapshot share.

One file, standard library only, never imported on the host (and without pathlib, whose import is felt in a
boot under software emulation). What can be done by a system call is done by one,
because a process costs some tenths of a second under software emulation.

Requests are objects ``{"id": text, "op": text, ...}``; answers are ``{"id": ..., "ok": true, ...}`` or
``{"id": ..., "ok": false, "error": text}``. A line that is too long is dropped: the next newline
starts afresh.
"""
# ruff: noqa: INP001

import binascii
import ctypes
import fcntl
import json
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from subprocess import DEVNULL, PIPE, STDOUT, Popen
from typing import Any, TypeVar

T = TypeVar("T")
Request = dict[str, Any]
Owner = tuple[int, int]

PORT_NAME = "org.claude-vm.helper"
RUN = "/run/claude-vm"
HOLDER = f"{RUN}/holder"
IDENTIFIED = f"{RUN}/identified"
SEALED = f"{RUN}/sealed"
BOOT_ID = "/proc/sys/kernel/random/boot_id"
LINE_LIMIT = 1 << 20
OUTPUT_LIMIT = 16 << 10
MAX_CONNECTIONS = 256
MAX_LIST = 256
HOST_BACK_S = 2.0

RNDADDENTROPY = 0x40085203
RNDRESEEDCRNG = 0x5207
EXT4_IOC_RESIZE_FS = 0x40086610
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_BIND = 1, 2, 4, 4096
MNT_DETACH = 2


class RefusedError(Exception):
    """A request that can't be done; the text goes to the host."""


class Lines:
    """Cuts a byte stream into bounded lines; resynchronises at the next newline."""

    def __init__(self, limit: int = LINE_LIMIT) -> None:
        self.limit = limit
        self.buffer = bytearray()
        self.skipping = False

    def feed(self, data: bytes) -> list[bytes]:
        """Return the complete lines that `data` ends."""
        lines = []
        *ended, rest = data.split(b"\n")
        for part in ended:
            self._add(part)
            if self.buffer and not self.skipping:
                lines.append(bytes(self.buffer))
            self.clear()
        self._add(rest)
        return lines

    def clear(self) -> None:
        """Forget what was begun."""
        self.buffer.clear()
        self.skipping = False

    def _add(self, part: bytes) -> None:
        if self.skipping or len(self.buffer) + len(part) > self.limit:
            self.buffer.clear()
            self.skipping = True
        else:
            self.buffer += part


def field(request: Request, name: str, kind: type[T], default: T | None = None) -> T:
    """Return a field of exactly this type, or refuse."""
    value = request.get(name, default)
    if type(value) is not kind and not (kind is float and type(value) is int):
        raise RefusedError(f"{name}: {kind.__name__} expected")
    return value  # type: ignore[return-value]


def blob(request: Request, name: str) -> bytes:
    """Return a base64 field's bytes, or refuse."""
    try:
        return binascii.a2b_base64(field(request, name, str), strict_mode=True)
    except ValueError:
        raise RefusedError(f"{name}: not base64") from None


def absolute(path: str) -> str:
    """Return an absolute path without surprises, or refuse."""
    if not path.startswith("/") or "\0" in path or ".." in path.split("/"):
        raise RefusedError("path: not absolute")
    return path


class System:
    """The system calls that the helper makes."""

    def __init__(self) -> None:
        self.libc = ctypes.CDLL(None, use_errno=True)

    def reseed(self, entropy: bytes) -> None:
        """Add bytes to the kernel's random pool, and let it use them at once."""
        random = os.open("/dev/random", os.O_RDWR)
        try:
            fcntl.ioctl(random, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
            fcntl.ioctl(random, RNDRESEEDCRNG)
        finally:
            os.close(random)

    def set_clock(self, unix_s: float) -> None:
        """Set the wall clock."""
        time.clock_settime(time.CLOCK_REALTIME, unix_s)

    def set_names(self, hostname: str, machine_id: str) -> None:
        """Set host name, machine id and boot id, in the kernel and in the files that programs read."""
        socket.sethostname(hostname)
        hosts = f"127.0.0.1\tlocalhost\n127.0.1.1\t{hostname}\n::1\tlocalhost ip6-localhost ip6-loopback\n"
        replace("/etc/hosts", hosts.encode(), 0o644)
        replace("/etc/hostname", f"{hostname}\n".encode(), 0o644)
        # Until its first boot is over, systemd has a temporary one mounted over the file.
        with suppress(OSError):
            self.unmount("/etc/machine-id", MNT_DETACH)
        replace("/etc/machine-id", f"{machine_id}\n".encode(), 0o444)
        # The kernel's own is part of the snapshot; programs take it for unique.
        boot = (
            f"{machine_id[:8]}-{machine_id[8:12]}-4{machine_id[13:16]}-a{machine_id[17:20]}-{machine_id[20:]}"
        )
        replace(f"{RUN}/boot_id", f"{boot}\n".encode(), 0o444)
        with suppress(OSError):
            self.unmount(BOOT_ID, MNT_DETACH)
        self.mount(f"{RUN}/boot_id", BOOT_ID, "", MS_BIND, "")

    def mount(self, source: str, target: str, kind: str, flags: int, options: str) -> None:
        """Mount a file system, or bind a file."""
        first, second, third, last = (os.fsencode(text) for text in (source, target, kind, options))
        if self.libc.mount(first, second, third, ctypes.c_ulong(flags), last):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), target)

    def unmount(self, target: str, flags: int = 0) -> None:
        """Unmount a file system."""
        if self.libc.umount2(os.fsencode(target), flags):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code), target)

    def resize(self, size: int) -> None:
        """Grow the root file system to a disk of this many bytes, as soon as the disk has them."""
        deadline = time.monotonic() + 10
        while int(read("/sys/block/vda/size")) * 512 < size:
            if time.monotonic() > deadline:
                raise RefusedError("the disk did not grow")
            time.sleep(0.01)
        root = os.statvfs("/")
        if root.f_blocks * root.f_frsize > size * 0.98:
            return
        directory = os.open("/", os.O_RDONLY)
        try:
            fcntl.ioctl(directory, EXT4_IOC_RESIZE_FS, struct.pack("Q", size // root.f_bsize))
        finally:
            os.close(directory)


def read(path: str) -> str:
    """Return a small text file."""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read(1 << 16)


def replace(path: str, data: bytes, mode: int, owner: Owner = (0, 0)) -> None:
    """Write a file beside the old one, then take its place: no reader sees a half, no link is followed."""
    temporary = os.path.join(os.path.dirname(path), f".claude-vm-{os.getpid()}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
            os.fchown(file.fileno(), *owner)
            os.fchmod(file.fileno(), mode)
        os.rename(temporary, path)
    except OSError:
        os.unlink(temporary)
        raise


def append(path: str, data: bytes, mode: int, owner: Owner) -> None:
    """Add to a regular file that may exist."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
    with open(os.open(path, flags, 0o600), "ab") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise RefusedError(f"{path}: not a regular file")
        file.write(data)
        os.fchown(file.fileno(), *owner)
        os.fchmod(file.fileno(), mode)


def make_directories(path: str, owner: Owner) -> None:
    """Make a directory and its missing parents, owned by `owner`."""
    if not os.path.isdir(path):
        make_directories(os.path.dirname(path), owner)
        os.mkdir(path, 0o755)
        os.chown(path, *owner, follow_symlinks=False)


def account(name: str) -> tuple[int, int, str]:
    """Return (uid, gid, home) of a user."""
    for line in read("/etc/passwd").splitlines():
        parts = line.split(":")
        if parts[0] == name and len(parts) == 7:
            return int(parts[2]), int(parts[3]), parts[5]
    raise RefusedError(f"no user {name}")


def let_die(pid: int) -> None:
    """Let a process be chosen when memory is short, unlike the helper itself."""
    with open(f"/proc/{pid}/oom_score_adj", "w", encoding="ascii") as score:
        score.write("0")


def groups(name: str) -> list[int]:
    """Return the further groups of a user."""
    rows = [line.split(":") for line in read("/etc/group").splitlines()]
    return [int(row[2]) for row in rows if len(row) == 4 and name in row[3].split(",")]


class Job:
    """A program that runs while a template is built; late, it is killed with all that it started."""

    def __init__(self, request: Request) -> None:
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


class Sessions:
    """The holder of the sessions' terminals and pipes (``holder``), which runs as the user."""

    def __init__(self) -> None:
        self.process: Popen[bytes] | None = None

    def start(self, name: str) -> None:
        """Start it, unless it runs; it goes on when the helper is started again."""
        path = f"{HOLDER}/socket"
        user = account(name)[:2]
        if self.process is not None and self.process.poll() is None:
            return
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(path)
            except OSError:
                pass
            else:
                return
        make_directories(HOLDER, user)
        os.chmod(HOLDER, 0o700)
        if os.path.lexists(path):
            os.unlink(path)
        # It listens already, so that a supervisor that is quicker than the holder waits and is not refused.
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(path)
            os.chown(path, *user)
            os.chmod(path, 0o600)
            listener.listen(64)
            number = listener.fileno()
            self.process = Popen(
                [sys.executable, "-I", "-S", os.path.dirname(__file__), "holder", str(number)],
                stdin=PIPE,
                stdout=DEVNULL,
                cwd="/",
                user=user[0],
                group=user[1],
                extra_groups=groups(name),
                start_new_session=True,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8"},
                pass_fds=(number,),
            )
        let_die(self.process.pid)

    def say(self, word: str) -> None:
        """Tell it something; one that does not listen is no reason to stop."""
        if self.process is not None and self.process.stdin is not None:
            with suppress(OSError):
                os.write(self.process.stdin.fileno(), word.encode() + b"\n")


class Helper:
    """The state of one guest, and what the host may ask of it.

    `identified` is false from boot, and from the `seal` before a snapshot, until `identify`: SSH is closed
    in between. After `seal` there is no `run` any more. A helper that was killed and started again finds its
    state in files.
    """

    def __init__(self, system: System) -> None:
        self.system = system
        self.identified = os.path.exists(IDENTIFIED)
        self.sealed = os.path.exists(SEALED)
        self.user = account(read(IDENTIFIED).strip()) if self.identified else (0, 0, "/root")
        self.children: set[int] = set()
        self.job: Job | None = None
        self.sessions = Sessions()

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
        except RefusedError as error:
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

    def _operation(self, request: Request) -> Callable[[Request], Request | None]:
        """Return the method for a request, or refuse."""
        name = "do_" + field(request, "op", str)
        if not hasattr(self, name):
            raise RefusedError("unknown request")
        operation: Callable[[Request], Request | None] = getattr(self, name)
        return operation

    def do_ping(self, _request: Request) -> Request:
        """Say how things are."""
        uptime = float(read("/proc/uptime").split()[0])
        return {"identified": self.identified, "sealed": self.sealed, "uptime_s": uptime, "pid": os.getpid()}

    def do_identify(self, request: Request) -> None:
        """Become a guest of one's own: random state first, then clock, names and keys; then SSH opens."""
        entropy = blob(request, "entropy")
        if not 32 <= len(entropy) <= 512:
            raise RefusedError("entropy: 32 to 512 bytes expected")
        hostname, machine_id = field(request, "hostname", str), field(request, "machine_id", str)
        if len(machine_id) != 32 or not all(char in "0123456789abcdef" for char in machine_id):
            raise RefusedError("machine_id: 32 hex digits expected")
        if not 0 < len(hostname) < 64 or not all(
            char.isascii() and (char.isalnum() or char == "-") for char in hostname
        ):
            raise RefusedError("hostname: letters, digits and hyphens expected")
        keys = [(name, field(request, name, str).encode()) for name in ("host_key", "authorized_key")]
        self.user = account(field(request, "user", str))
        self.system.reseed(entropy)
        self.system.set_clock(field(request, "unix_s", float))
        for path in (f"{RUN}/sessions", f"{RUN}/ssh", "/run/sshd"):
            make_directories(path, (0, 0))
        make_directories(f"{RUN}/agent", self.user[:2])
        os.chmod(f"{RUN}/agent", 0o700)
        for name, text in keys:
            # sshd reads the authorized key as the user who logs in.
            replace(f"{RUN}/ssh/{name}", text, 0o600 if name == "host_key" else 0o644)
        self.system.set_names(hostname, machine_id)
        replace(IDENTIFIED, field(request, "user", str).encode(), 0o600)
        self.identified = True
        # Beside the SSH handshake, which takes longer.
        self.sessions.start(field(request, "user", str))
        self.sessions.say("prime")

    def do_seal(self, _request: Request) -> None:
        """Be ready for the snapshot: no identity, no SSH, and no `run` for as long as this guest lives."""
        self.identified = False
        self.sealed = True
        self.sessions.say("forget")
        replace(SEALED, b"", 0o600)
        for pid in list(self.children):
            os.kill(pid, signal.SIGKILL)
        for path in (IDENTIFIED, f"{RUN}/ssh/host_key", f"{RUN}/ssh/authorized_key"):
            if os.path.exists(path):
                os.unlink(path)
        os.sync()

    def do_clock(self, request: Request) -> None:
        """Set the clock."""
        self.system.set_clock(field(request, "unix_s", float))

    def do_resize(self, request: Request) -> None:
        """Grow the root file system."""
        self.system.resize(field(request, "bytes", int))

    def do_mount(self, request: Request) -> None:
        """Mount slots; outer directories before inner ones."""
        mounts = field(request, "mounts", list)
        if len(mounts) > MAX_LIST:
            raise RefusedError("mounts: too many")
        for mount in sorted(mounts, key=lambda mount: absolute(field(mount, "path", str)).count("/")):
            target = mount["path"]
            make_directories(target, self.user[:2])
            flags = MS_NOSUID | MS_NODEV | (MS_RDONLY if field(mount, "readonly", bool) else 0)
            self.system.mount(field(mount, "tag", str), target, "9p", flags, field(mount, "options", str))

    def do_unmount(self, request: Request) -> None:
        """Unmount; only of use while a template is built."""
        self.system.unmount(absolute(field(request, "path", str)))

    def do_files(self, request: Request) -> None:
        """Write files, in order."""
        files = field(request, "files", list)
        if len(files) > MAX_LIST:
            raise RefusedError("files: too many")
        for file in files:
            path = absolute(os.path.join(self.user[2], field(file, "path", str)))
            mode = field(file, "mode", int)
            owner = self.user[:2] if field(file, "owner", str) == "user" else (0, 0)
            data = blob(file, "data")
            make_directories(os.path.dirname(path), owner)
            (append if field(file, "append", bool) else replace)(path, data, mode & 0o7777, owner)

    def do_run(self, request: Request) -> Request:
        """Start a program while a template is built; the answer comes at its end, with its output's tail."""
        if self.sealed or self.job:
            raise RefusedError("sealed" if self.sealed else "busy")
        self.job = Job(request)
        return {"job": self.job}

    def go_on(self) -> bytes:
        """Read what the running program says; return the answer's line once it has ended."""
        line = self.job.read() if self.job else b""
        if line:
            self.job = None
        return line

    def serve_ssh(self, connection: socket.socket) -> None:
        """Give a connection its own sshd, in its own session."""
        argv = ["/usr/sbin/sshd", "-i", "-f", "/etc/ssh/sshd_config", "-h", f"{RUN}/ssh/host_key"]
        actions: list[Any] = [
            (os.POSIX_SPAWN_DUP2, connection.fileno(), 0),
            (os.POSIX_SPAWN_DUP2, connection.fileno(), 1),
            (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0),
        ]
        environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
        default = [signal.SIGPIPE, signal.SIGCHLD, signal.SIGIO]
        pid = os.posix_spawn(
            argv[0], argv, environment, file_actions=actions, setsid=True, setsigmask=[], setsigdef=default
        )
        self.children.add(pid)
        let_die(pid)

    def reap(self) -> None:
        """Collect the processes that have ended."""
        if self.sessions.process is not None:
            self.sessions.process.poll()
        for pid in list(self.children):
            if os.waitpid(pid, os.WNOHANG)[0]:
                self.children.discard(pid)


def port_name(folder: str) -> str:
    """Return the name that the host gave to a serial port; a console has none."""
    try:
        return read(f"{folder}/name").strip()
    except OSError:
        return ""


def find_port() -> str:
    """Return the device of the host's serial port, waiting for it."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        base = "/sys/class/virtio-ports"
        for name in os.listdir(base) if os.path.isdir(base) else []:
            if port_name(f"{base}/{name}") == PORT_NAME and os.path.exists(f"/dev/{name}"):
                return f"/dev/{name}"
        time.sleep(0.05)
    sys.exit(f"no serial port {PORT_NAME}")


def send(port: int, data: bytes) -> None:
    """Write an answer; a host that has been gone for a while, or doesn't read for 10 s, gets none.

    A host that has just come back may not be known as such: its request and the news of its coming take
    different ways through the kernel, and on a busy machine the request is quicker.
    """
    poll = select.poll()
    poll.register(port, select.POLLOUT)
    deadline = time.monotonic() + HOST_BACK_S
    while data:
        events = poll.poll(10_000)
        gone = bool(events) and bool(events[0][1] & select.POLLHUP)
        if not events or (gone and time.monotonic() > deadline):
            return
        try:
            data = data[0 if gone else os.write(port, data) :]
        except BlockingIOError:
            gone = True
        if gone:
            time.sleep(0.01)


class Server:
    """Serves the host and SSH for ever.

    While no host is connected the port is "hung up", which poll would report at once and always: then only a
    signal (the port sends SIGIO when the host comes back) or a second's pause leads to the next look.
    """

    def __init__(self, helper: Helper, port: int, listener: socket.socket, wakeup: socket.socket) -> None:
        self.helper = helper
        self.port = port
        self.listener = listener
        self.wakeup = wakeup
        self.lines = Lines()
        self.connected = True

    def turn(self) -> None:
        """Wait for something to do, and do it."""
        helper, job = self.helper, self.helper.job
        ready = self.wait()
        self.connected = not ready.get(self.port, 0) & select.POLLHUP
        if self.wakeup.fileno() in ready:
            self.wakeup.recv(4096)
        helper.reap()
        if job and (job.output in ready or time.monotonic() > job.deadline):
            send(self.port, helper.go_on())
        if ready.get(self.port, 0) & select.POLLIN:
            self.read()
        if not self.connected:
            self.lines.clear()
        if self.listener.fileno() in ready and helper.identified:
            self.accept()

    def wait(self) -> dict[int, int]:
        """Wait for input, and return the descriptors that are ready."""
        helper, poll = self.helper, select.poll()
        poll.register(self.wakeup, select.POLLIN)
        if self.connected:
            poll.register(self.port, select.POLLIN)
        if helper.identified and len(helper.children) < MAX_CONNECTIONS:
            poll.register(self.listener, select.POLLIN)
        if helper.job:
            poll.register(helper.job.output, select.POLLIN)
        return dict(poll.poll(1000 if helper.job or not self.connected else None))

    def read(self) -> None:
        """Read requests from the host, and answer them."""
        try:
            data = os.read(self.port, 1 << 16)
        except BlockingIOError:
            return
        self.connected = bool(data)
        for line in self.lines.feed(data):
            send(self.port, self.helper.answer(line))

    def accept(self) -> None:
        """Take an SSH connection."""
        try:
            connection, _ = self.listener.accept()
            with connection:
                self.helper.serve_ssh(connection)
        except OSError as error:
            sys.stderr.write(f"ssh: {error}\n")


def main() -> None:
    """Open SSH's port and the host's port, and serve. The network is up since the initial RAM disk."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    for number in (signal.SIGCHLD, signal.SIGIO):
        signal.signal(number, lambda *_: None)
    make_directories(RUN, (0, 0))
    system = System()
    port = os.open(find_port(), os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.fcntl(port, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(port, fcntl.F_SETFL, fcntl.fcntl(port, fcntl.F_GETFL) | os.O_ASYNC)
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("0.0.0.0", 22))  # noqa: S104 - the guest's only network is its host
    listener.listen(64)
    listener.setblocking(False)
    server = Server(Helper(system), port, listener, reader)
    while True:
        server.turn()


if __name__ == "__main__":
    main()
