"""Who asks for something, and from where: all that its place and its session are decided from.

Nothing of a connection is in it, so what asks without a client is a caller, too.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from claude_vm.supervisor.grammar.flags import Flags
from claude_vm.supervisor.wire.records import Terminal


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """One who asks. `environ` is not copied: who lent it takes its secrets back when they are not needed.

    `terminfo` is the compiled entry of the terminal, when guests may lack it; `pid` whose command it is.
    """

    flags: Flags
    cwd: Path
    environ: Mapping[str, str]
    terminal: Terminal = Terminal()
    terminfo: bytes | None = None
    pid: int = 0

    @property
    def home(self) -> Path:
        """The home directory of its user."""
        return Path(self.environ.get("HOME") or Path.home())
