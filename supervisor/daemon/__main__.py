"""``python -m claude_vm.supervisor.daemon``: the daemon, started by a client or by hand."""

import sys

from claude_vm.supervisor.daemon.main import main

sys.exit(main(foreground="--foreground" in sys.argv[1:]))
