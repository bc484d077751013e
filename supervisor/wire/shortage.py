"""Why the data folder can't be written, in the same words for the client and the supervisor.

A supervisor that can't write its journal does not start. What only reads, and what makes room, works all the
same: without a daemon, by a supervisor that writes nothing. Standard library only.
"""

import errno
import os

from claude_vm.supervisor.wire.errors import WireError

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_CLOSED = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO})

_MARK = "not-writable "


class NotWritableError(WireError):
    """Something in the data folder can't be written: there is no room (``disk-full``), or no right."""

    def __init__(self, number: int, path: str) -> None:
        """`number` is what the system says, as in `errno`."""
        reason = os.strerror(number)
        super().__init__(f"{path} can't be written: {reason}")
        self.number = number
        self.path = path
        if number in _FULL:
            self.code = "disk-full"
            self.hint = (
                "make room: `claude-vm list --disk-usage` shows templates, `claude-vm clean` deletes one"
            )
        else:
            self.code = "not-writable"
            self.hint = (
                "allow claude-vm to write there (rights, mounts, `ulimit -f`),"
                " or set CLAUDE_VM_HOME to another folder"
            )

    @property
    def report(self) -> str:
        """What a daemon that does not start tells its starter; see `reported`."""
        return f"{_MARK}{self.number} {self.path}"

    @property
    def consequence(self) -> str:
        """Say what does not work for as long as it lasts."""
        until = "there is room" if self.number in _FULL else "it can be"
        return f"{self}; until {until}, there are no sessions, no setup and no pool fill"


def of(error: BaseException, folder: str) -> NotWritableError | None:
    """Return what an error says of a data folder's writing; None: it is about something else."""
    if isinstance(error, OSError) and error.errno in _FULL | _CLOSED:
        path = error.filename if isinstance(error.filename, str) else os.fspath(error.filename or folder)
        return NotWritableError(error.errno, os.fsdecode(path))
    return None


def reported(report: str) -> NotWritableError | None:
    """Return what a daemon's report tells of that; None: it tells something else."""
    number, _, path = report.removeprefix(_MARK).partition(" ")
    if not report.startswith(_MARK) or not number.isdecimal():
        return None
    return NotWritableError(int(number), path)
