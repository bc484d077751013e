"""What is decided of a session before it has a VM."""

import msgspec

from claude_vm.context.ports import Publish
from claude_vm.drivers.api import GuestFile
from claude_vm.supervisor.core.keys import PoolKey
from claude_vm.supervisor.ssh.launch import LaunchMode, launch_file
from claude_vm.supervisor.ssh.process import Pty


class Launch(msgspec.Struct, frozen=True):
    """A main command: what runs, with what environment, where. See `claude_vm.supervisor.ssh.launch`."""

    mode: LaunchMode
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: str

    def check(self) -> None:
        """Refuse what no guest could run, before one is spent.

        Raises:
            LaunchError: What `launch_file` would refuse.
        """
        self.file("check", "")

    def file(self, session_id: str, agent: str) -> GuestFile:
        """Return the file for the guest. `agent` is where a forwarded agent is in there, "" if none is.

        Raises:
            LaunchError: See `launch_file`.
        """
        env = self.env | ({"SSH_AUTH_SOCK": agent} if agent else {})
        return launch_file(session_id, mode=self.mode, argv=self.argv, env=env, cwd=self.cwd)


class SessionPlan(msgspec.Struct, frozen=True):
    """All that is decided before a VM is asked for.

    `command_text` is one line for listings; `launch` the main command, None once it runs; `files` go into the
    guest before it starts; `writes` are the host directories that it works in
    (`claude_vm.supervisor.daemon.sessions.sharing`), `repository` the one whose other worktrees are locked as
    long as it runs, or "".
    """

    key: PoolKey
    project: str
    command_text: str
    launch: Launch | None
    files: tuple[GuestFile, ...] = ()
    pty: Pty | None = None
    publish: Publish = Publish()
    writes: tuple[str, ...] = ()
    repository: str = ""

    def without_secrets(self) -> "SessionPlan":
        """Return the plan without what has keys and tokens in it: the guest has them by now."""
        return msgspec.structs.replace(self, launch=None, files=())
