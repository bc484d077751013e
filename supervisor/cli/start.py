"""Where the programs begin: Ctrl-C ends them without a word from here on, before anything else is loaded.

Python turns it into an exception, whose traceback people would see. What the interpreter does before it comes
to this module, some milliseconds, nobody can change from within.
"""

import _signal  # type: ignore[import-not-found]  # the module around it takes as long to load as all that is loaded before

if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:
    # Until there is something to clean up, Ctrl-C just ends us.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

from claude_vm.supervisor.cli.main import main, main_setup, main_shell

__all__ = ["main", "main_setup", "main_shell"]
