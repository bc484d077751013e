"""The program before QEMU: gives up what 9p would lend to the guest's root, then becomes QEMU.

Run by its path, by a bare interpreter: ``confine.py OPTIONS PROGRAM ARGUMENT…``; standard library only. QEMU
must not hold the directory that we were started in, nor make files that others may read, so it gets `cwd`
``/`` and umask 077. On Linux a system call filter refuses every mode with the set-user-id bit, and the
set-group-id bit for everything but directories: no file in a mount can ever get one (a guest's ``chmod u+s``
fails there), so none has to be looked for afterwards. With ``drop`` as OPTIONS, for root, the capabilities
that 9p could use against the host are given up for good.

A filter sees numbers only, and the same call gives a mode to a file and to a directory, which may need
set-group-id: git sets it in shared repositories, and ``mkdir`` in such a directory passes it on. So the
kernel asks about these calls, and QEMU waits. A child that is forked here before we become QEMU answers: it
looks at what the call is for. QEMU opens what it changes first and names it by ``/proc/self/fd/N``, so what
was looked at is what is changed, whatever guests do to the names. Without the child, or where it can't look,
the answer is no.

Who is started by somebody else than us gets from us what it needs: with ``handover=PATH`` as OPTIONS it
connects to a unix socket, where it is sent descriptors, the numbers that they shall have, and further
arguments, to come first. So nobody on the way sees the arguments, inherits the descriptors, or can leave
anything in its environment.

Not to be confused with QEMU's own ``-sandbox``, which is set as well.

Source: seccomp(2), seccomp_unotify(2), capabilities(7); system call numbers from the kernel's tables; QEMU's
hw/9pfs/9p-local.c, where all that sets modes ends in the same function.
"""

import ctypes
import errno
import fcntl
import os
import platform
import re
import signal
import stat
import struct
import sys

_SET_USER_ID = stat.S_ISUID
_SET_GROUP_ID = stat.S_ISGID

# System call -> which of its arguments is a mode, for those that make something. None of them needs to make a
# directory with either bit: mkdir has neither.
# The other ones change what is there already -> which argument is a mode, and which says what it is about: a
# path, or (fchmod) a descriptor.
_MAKES = {
    "x86_64": {2: 2, 85: 1, 133: 1, 257: 3, 259: 2},  # open, creat, mknod, openat, mknodat
    "aarch64": {33: 2, 56: 3},  # mknodat, openat
}
_CHANGES = {
    "x86_64": {90: (1, 0), 91: (1, 0), 268: (2, 1), 452: (2, 1)},  # chmod, fchmod, fchmodat, fchmodat2
    "aarch64": {52: (1, 0), 53: (2, 1), 452: (2, 1)},  # fchmod, fchmodat, fchmodat2
}
_FCHMOD = {"x86_64": 91, "aarch64": 52}
_SECCOMP = {"x86_64": 317, "aarch64": 277}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
_OPENAT2 = 437
"""Its mode is behind a pointer, where a filter can't look; QEMU does without it."""

# CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, SETPCAP, MKNOD, SETFCAP
_DROPPED = (0, 1, 2, 3, 4, 6, 7, 8, 27, 31)

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 24, 38, 22
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_PR_SET_PDEATHSIG, _PR_SET_PTRACER = 1, 0x59616D61
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO, _ASK = 0x7FFF0000, 0x00050000, 0x7FC00000
_REFUSE = _ERRNO | errno.EPERM
_SET_MODE_FILTER, _NEW_LISTENER = 1, 1 << 3

# struct seccomp_notif (id, pid, flags, number, architecture, instruction, six arguments) and its answer.
_QUESTION, _ANSWER = struct.Struct("QIIiIQ6Q"), struct.Struct("QqiI")
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_GO_ON = 1

_OWN_DESCRIPTOR = re.compile(rb"/proc/self/fd/([0-9]{1,9})\0")


class _Filter(ctypes.Structure):
    """What the kernel takes (``struct sock_fprog``); keeps its code alive."""

    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_char_p))


def program(machine: str, *, asks: bool = True) -> bytes:
    """Return the filter for this architecture; empty when we have none for it.

    With `asks` set-group-id is asked about where something is changed, else refused.
    """
    if machine not in _ARCHITECTURE:
        return b""
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURE[machine])]
    code += [(_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, 0)]
    code += [(_EQUAL, 0, 1, _OPENAT2), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    rules = [(number, mode, _REFUSE) for number, mode in _MAKES[machine].items()]
    rules += [(number, mode, _ASK if asks else _REFUSE) for number, (mode, _) in _CHANGES[machine].items()]
    for number, mode, verdict in rules:
        code += [
            (_EQUAL, 0, 6, number),
            (_LOAD, 0, 0, 16 + 8 * mode),
            (_ANY_BIT, 0, 1, _SET_USER_ID),
            (_RETURN, 0, 0, _REFUSE),
            (_ANY_BIT, 0, 1, _SET_GROUP_ID),
            (_RETURN, 0, 0, verdict),
            (_RETURN, 0, 0, _ALLOW),
        ]
    code.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("HBBI", *line) for line in code)


def confine(*, drop: bool) -> None:
    """Give up for this process, and all that it becomes, what is not needed."""
    libc = ctypes.CDLL(None, use_errno=True)

    def prctl(*arguments: object) -> None:
        if libc.prctl(*arguments):
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))

    if drop:
        for capability in _DROPPED:
            prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
        prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
        _clear_inheritable(libc)
    prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    machine = platform.machine()
    code = program(machine)
    if not code:
        return
    numbers = (ctypes.c_long(n) for n in (_SECCOMP[machine], _SET_MODE_FILTER, _NEW_LISTENER))
    listener = libc.syscall(*numbers, ctypes.byref(_Filter(len(code) // 8, code)))
    if listener < 0:  # an old kernel, or somebody around us answers questions already: the bit is for nobody
        code = program(machine, asks=False)
        prctl(_PR_SET_SECCOMP, 2, ctypes.byref(_Filter(len(code) // 8, code)), 0, 0)
        return
    watched = os.getpid()
    child = os.fork()
    if child:
        os.close(listener)
        # Where the kernel lets only ancestors look into a process; EINVAL where it does not.
        libc.prctl(_PR_SET_PTRACER, ctypes.c_ulong(child), 0, 0, 0)
        return
    try:
        prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0)
        if os.getppid() == watched:
            _answer(listener, machine)
    finally:
        os._exit(0)


def _answer(listener: int, machine: str) -> None:
    """Answer for as long as QEMU lives. This process holds nothing else, and bears no mark of a VM."""
    os.closerange(0, listener)
    os.closerange(listener + 1, os.sysconf("SC_OPEN_MAX"))
    _forget_arguments()
    while True:
        question = bytearray(_QUESTION.size)
        try:
            fcntl.ioctl(listener, _RECEIVE, question)
            name, thread, _, number, _, _, *arguments = _QUESTION.unpack(question)
            allowed = _is_directory(
                thread, number == _FCHMOD[machine], arguments[_CHANGES[machine][number][1]]
            )
            answer = (name, 0, 0, _GO_ON) if allowed else (name, 0, -errno.EPERM, 0)
            fcntl.ioctl(listener, _SEND, _ANSWER.pack(*answer))
        except (FileNotFoundError, InterruptedError):  # who asked is gone
            continue


def _is_directory(thread: int, by_descriptor: bool, argument: int) -> bool:
    """Tell whether a call of a waiting thread is about a directory: a descriptor, or the path of one."""
    try:
        if not by_descriptor:
            memory = os.open(f"/proc/{thread}/mem", os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = _OWN_DESCRIPTOR.match(os.pread(memory, 32, argument))
            finally:
                os.close(memory)
            if found is None:
                return False
            argument = int(found[1])
        target = f"/proc/{thread}/fd/{argument & 0xFFFFFFFF}"
        return stat.S_ISDIR(os.stat(target).st_mode)  # noqa: PTH116 - each import costs a VM's start
    except (OSError, ValueError, OverflowError):
        return False


def _forget_arguments() -> None:
    """Take the VM's words out of what others see as our command line: we are not the VM."""
    own = os.open("/proc/self/stat", os.O_RDONLY)
    fields = os.read(own, 4096).rpartition(b")")[2].split()
    os.close(own)
    start, end = int(fields[45]), int(fields[46])  # 48th and 49th of all
    title = b"claude-vm-modes"[: end - start - 1]
    ctypes.memset(start, 0, end - start)
    ctypes.memmove(start, title, len(title))


def _clear_inheritable(libc: ctypes.CDLL) -> None:
    """Let no capability come back by being inheritable."""
    header, data = struct.pack("Ii", 0x20080522, 0), ctypes.create_string_buffer(24)
    if libc.capget(header, data) == 0:
        effective, permitted, _, effective_high, permitted_high, _ = struct.unpack("6I", data.raw)
        libc.capset(header, struct.pack("6I", effective, permitted, 0, effective_high, permitted_high, 0))


def receive(path: str) -> list[str]:
    """Get descriptors and arguments from the socket; return the arguments."""
    import json  # noqa: PLC0415 - each costs time, and they are needed here only
    import socket  # noqa: PLC0415

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        data, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 64)
        while more := connection.recv(1 << 16):
            data += more
        order = json.loads(data)
        # Beyond all numbers first, so that none is overwritten before it has been moved.
        beyond = 1 + max((*order["numbers"], *descriptors, connection.fileno()))
        for index, descriptor in enumerate(descriptors):
            os.dup2(descriptor, beyond + index)
            os.close(descriptor)
    for index, number in enumerate(order["numbers"]):
        os.dup2(beyond + index, number)
        os.close(beyond + index)
    found: list[str] = order["arguments"]
    return found


def main(argv: list[str]) -> None:
    """Confine this process, and become the program."""
    option, program, *rest = argv
    environment = dict(os.environ)
    if option.startswith("handover="):
        rest = [*receive(option.removeprefix("handover=")), *rest]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C", "HOME": "/"}
    os.umask(0o077)
    os.chdir("/")
    if sys.platform == "linux":
        confine(drop=option == "drop")
    os.execvpe(program, [program, *rest], environment)  # noqa: S606 - an argument list, and this is the point


if __name__ == "__main__":
    main(sys.argv[1:])
