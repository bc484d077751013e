"""Build hook: an editable install finds the top-level folders as ``claude_vm.*``.

Wheels rename the folders with hatch's ``sources`` option, which editable installs don't support. Links in a
folder of their own do the same there, and type checkers follow them.
"""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGES = ("supervisor", "drivers", "context", "bench")


class EditableLinks(BuildHookInterface[Any]):
    """Links ``.dev/claude_vm/<package>`` to the folder of that name."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002
        """Make the links when the build is an editable one."""
        if version != "editable":
            return
        target = Path(self.root, ".dev", "claude_vm")
        target.mkdir(parents=True, exist_ok=True)
        for name in PACKAGES:
            link = target / name
            if not link.is_symlink():
                link.symlink_to(Path("..", "..", name), target_is_directory=True)
