"""The program before QEMU: gives up what 9p would lend to the guest's root, then becomes QEMU.

Run by its path, by a bare interpreter: ``confine.py OPTIONS PROGRAM ARGUMENT…``; standard library only. QEMU
must not hold the directory that we were started in, nor make files that others may read, so it gets `cwd`
``/`` and umask 077. On Linux a system call filter refuses every mode with the set-user-id bit: no file in a
mount can ever get one (a guest's ``chmod u+s`` fails there), so none has to be looked for afterwards. With
``drop`` as OPTIONS, for root, the capabilities that 9p could use against the host are given up for good.

Who is started by somebody else than us gets from us what it needs: with ``door=PATH`` as OPTIONS it connects
to a unix socket, where it is sent descriptors, the numbers that they shall have, and further arguments, to
come first. So nobody on the way sees the arguments, inherits the descriptors, or can leave anything in its
environment.

Not to be confused with QEMU's own ``-sandbox``, which is set as well.

Source: seccomp(2), capabilities(7); system call numbers from the kernel's tables.
"""

import ctypes
import errno
import os
import platform
import struct
import sys

_SET_USER_ID = 0o4000
_SET_ANY_ID = 0o6000

# System call -> which of its arguments is a mode, and what it must not contain. A directory may be given the
# set-group-id bit (git does, in shared repositories), and chmod can't tell what it is given.
_RULES = {
    "x86_64": (
        0xC000003E,
        {
            2: (2, _SET_ANY_ID),  # open
            85: (1, _SET_ANY_ID),  # creat
            90: (1, _SET_USER_ID),  # chmod
            91: (1, _SET_USER_ID),  # fchmod
            133: (1, _SET_ANY_ID),  # mknod
            257: (3, _SET_ANY_ID),  # openat
            259: (2, _SET_ANY_ID),  # mknodat
            268: (2, _SET_USER_ID),  # fchmodat
            452: (2, _SET_USER_ID),  # fchmodat2
        },
    ),
    "aarch64": (
        0xC00000B7,
        {
            33: (2, _SET_ANY_ID),  # mknodat
            52: (1, _SET_USER_ID),  # fchmod
            53: (2, _SET_USER_ID),  # fchmodat
            56: (3, _SET_ANY_ID),  # openat
            452: (2, _SET_USER_ID),  # fchmodat2
        },
    ),
}
_OPENAT2 = 437
"""Its mode is behind a pointer, where a filter can't look; QEMU does without it."""

# CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID, SETPCAP, MKNOD, SETFCAP
_DROPPED = (0, 1, 2, 3, 4, 6, 7, 8, 27, 31)

_PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP = 24, 38, 22
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000


def program(machine: str) -> bytes:
    """Return the filter for this architecture; empty when we have none for it."""
    if machine not in _RULES:
        return b""
    architecture, rules = _RULES[machine]
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, architecture), (_RETURN, 0, 0, _ALLOW), (_LOAD, 0, 0, 0)]
    code += [(_EQUAL, 0, 1, _OPENAT2), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    for number, (argument, bits) in rules.items():
        code += [
            (_EQUAL, 0, 4, number),
            (_LOAD, 0, 0, 16 + 8 * argument),
            (_ANY_BIT, 0, 1, bits),
            (_RETURN, 0, 0, _ERRNO | errno.EPERM),
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
    code = program(platform.machine())
    if code:
        buffer = ctypes.create_string_buffer(code, len(code))
        header = struct.pack("HxxxxxxP", len(code) // 8, ctypes.addressof(buffer))
        prctl(_PR_SET_SECCOMP, 2, ctypes.create_string_buffer(header, len(header)), 0, 0)


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

    with socket.socket(socket.AF_UNIX) as door:
        door.connect(path)
        data, descriptors, _, _ = socket.recv_fds(door, 1 << 16, 64)
        while more := door.recv(1 << 16):
            data += more
        order = json.loads(data)
        # Beyond all numbers first, so that none is overwritten before it has been moved.
        beyond = 1 + max((*order["numbers"], *descriptors, door.fileno()))
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
    if option.startswith("door="):
        rest = [*receive(option.removeprefix("door=")), *rest]
        environment = {"PATH": os.environ.get("PATH", os.defpath), "LANG": "C", "HOME": "/"}
    os.umask(0o077)
    os.chdir("/")
    if sys.platform == "linux":
        confine(drop=option == "drop")
    os.execvpe(program, [program, *rest], environment)  # noqa: S606 - an argument list, and this is the point


if __name__ == "__main__":
    main(sys.argv[1:])
