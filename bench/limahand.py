"""A session on Lima by hand: `limactl clone`, `limactl start`, `limactl shell`, one after the other."""

import contextlib
import secrets
import time
from pathlib import Path

from claude_vm.bench import children
from claude_vm.bench.errors import BenchError
from claude_vm.bench.limastock import TEMPLATE, Ordinary
from claude_vm.drivers.lima import events


class LimaByHand:
    """Runs sessions by hand on clones of an ordinary instance."""

    def __init__(self, ordinary: Ordinary) -> None:
        self._ordinary = ordinary

    def run(self) -> children.Timing:
        """Clone, start, open a shell, wait for its prompt; the deletion is outside of the time."""
        name = f"b{secrets.token_hex(4)}"
        instants: dict[str, float] = {}
        begun = time.monotonic()
        try:
            self._ordinary.do("clone", TEMPLATE, name)
            instants["cloned"] = time.monotonic() - begun
            self._ordinary.do("start", name)
            instants["started"] = time.monotonic() - begun
            instants |= self._phases(name, begun)
            shell = children.run(
                ["limactl", "shell", "--workdir", "/", name],
                env=self._ordinary.env,
                cwd=Path("/"),
                steps=children.PROMPT,
                terminal=True,
            )
            instants |= {key: at + (shell.begun_at - begun) for key, at in shell.instants.items()}
            return children.Timing(begun, instants, shell.status, shell.error)
        except (BenchError, OSError) as error:
            return children.Timing(begun, {}, 1, f"by hand: {error}")
        finally:
            with contextlib.suppress(BenchError):
                self._ordinary.do("delete", "--force", name)

    def _phases(self, name: str, begun: float) -> dict[str, float]:
        """Return when Lima began with what it says it did. It tells whole seconds only."""
        offset = time.time() - time.monotonic() + begun
        found = events.phases(self._ordinary.lima_home / name, offset)
        return {text.partition(":")[0][:60]: at - offset for at, text in found}
