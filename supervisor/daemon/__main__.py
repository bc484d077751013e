"""``python -m claude_vm.supervisor.daemon``: the daemon, started by a client or by hand."""

import gc
import sys

# What libraries make while they load stays: to look through it for garbage takes an eighth of the start.
gc.disable()
from claude_vm.supervisor.daemon.process.main import main  # noqa: E402

gc.freeze()
gc.enable()

sys.exit(main(foreground="--foreground" in sys.argv[1:]))
