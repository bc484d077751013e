"""Where the programs begin: Ctrl-C ends them without a word, before anything else is loaded.

Python turns it into an exception, whose traceback people would see. Nobody can change from within what the
interpreter does before it comes here, so `launcher/claude-vm` starts us with SIGINT blocked, where it can.
"""

import _signal  # type: ignore[import-not-found]  # the module around it takes as long to load as all that is loaded before
import sys

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    # Until there is something to clean up, Ctrl-C just ends us.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
if sys.argv[1:2] == ["blocked"]:
    # A signal that came meanwhile is delivered here.
    _signal.pthread_sigmask(_signal.SIG_UNBLOCK, (_signal.SIGINT,))

import os

from claude_vm.supervisor.cli import main as programs

PROGRAMS = {"claude-vm-setup": programs.main_setup, "claude-vm-shell": programs.main_shell}
GIVEN = "CLAUDE_VM_GIVEN"
"""The variables that the launcher was given, in base64, where its shell does not pass on all of them."""


def main() -> int:
    """Run the program that the launcher was called as; return its exit status.

    The launcher's words come before the user's: whether it has blocked SIGINT, and its own path.
    """
    if len(sys.argv) < 3 or sys.argv[1] not in {"blocked", "as-is"}:
        return programs.refuse_start()
    sys.argv[:] = sys.argv[2:]
    if given := os.environ.pop(GIVEN, ""):
        _restore(given)
    return PROGRAMS.get(os.path.basename(sys.argv[0]), programs.main)()  # noqa: PTH119 - pathlib takes too long to load


def _restore(given: str) -> None:
    """Make the environment what the launcher was given."""
    from binascii import a2b_base64  # noqa: PLC0415 - rarely needed

    os.environb.clear()
    for variable in a2b_base64(given).split(b"\0"):
        name, equals, value = variable.partition(b"=")
        if name and equals:
            os.environb[name] = value
