"""What a driver is: the records and Protocols that the supervisor knows, and nothing of any hypervisor.

Contract, beyond the signatures; `tests/contract` checks it for every driver:

* Calls for one instance come one after another. Calls for different instances come at the same time.
* Any call may be cancelled at any await. It then leaves the instance untouched, or such that
  `Driver.list_instances` shows it and `Driver.delete` removes it.
* `Driver.delete` is idempotent; an unknown id is fine. When it has returned, no process, socket, disk or
  temporary file of the instance is left.
* A driver sees and touches only what bears the `Owner` it was opened for.
* A VM outlives the process that started it, and has no pipe to it.
* Every failure is a `claude_vm.drivers.errors.DriverError` with the tool's own last words.
"""

from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from claude_vm.drivers.programs import Programs


class Phase(msgspec.Struct, frozen=True):
    """What a driver does at the moment. Each states its own.

    `mark` is for programs: lower case, and the same whatever people read. `words` are for people.
    """

    mark: str
    words: str


Progress = Callable[[Phase, str], None]
"""Called with a phase and a detail in words (may be empty). Never waits, never raises."""


def tell_no_progress(_phase: Phase, _detail: str) -> None:
    """Be a `Progress` that does nothing."""


Reachable = Callable[["Access"], None]
"""Called as soon as a connection to a starting guest may be begun. Never waits, never raises."""


def tell_nobody(_access: "Access") -> None:
    """Be a `Reachable` that does nothing."""


class Owner(msgspec.Struct, frozen=True):
    """Whose instances a driver makes. Two owners never touch each other's.

    `home` is the data folder (``CLAUDE_VM_HOME``), `supervisor_id` is ``[a-z0-9-]{1,24}`` and unique within
    it. `runtime` is a 0700 folder for sockets, whose path is short enough for a unix socket beneath it.
    """

    home: Path
    supervisor_id: str
    runtime: Path

    @property
    def mark(self) -> str:
        """The text that each process of this owner bears in its argument list."""
        import hashlib  # noqa: PLC0415 - only drivers that start something need it

        home = hashlib.sha256(bytes(self.home.resolve())).hexdigest()[:8]
        return f"claude-vm:{home}:{self.supervisor_id}"


class Mount(msgspec.Struct, frozen=True):
    """A host directory in a guest. Both paths are absolute; `host` exists and has no symlink left in it.

    `device` and `inode` tell which directory is meant, in case another one gets its name; an inode of 0 means
    whichever is there. Locks on its files may hold within one guest only.
    """

    host: str
    guest: str
    writable: bool = True
    device: int = 0
    inode: int = 0


class InstanceSpec(msgspec.Struct, frozen=True):
    """What to make. `instance_id` is ``i-`` and 10 lower-case hex digits, never used twice."""

    instance_id: str
    template: str
    generation: str
    cpus: int
    memory_mib: int
    disk_gib: int
    mounts: tuple[Mount, ...] = ()


class Access(msgspec.Struct, frozen=True):
    """How to reach a started guest by SSH. Valid until the instance is deleted.

    `host_key` is one OpenSSH public key line, to be pinned: it was made for this instance. `client_key` is
    the path of a private key file (0600). `restored` tells a RAM clone from a cold boot. `pid` is the process
    that makes the guest's connections on this host, 0 where that is none of its own. `holder` is the path, in
    the guest, of its holder's unix socket.
    """

    address: str
    port: int
    user: str
    home: str
    host_key: str
    client_key: Path
    restored: bool = False
    holder: str = "/run/claude-vm/holder/socket"
    pid: int = 0


class GuestFile(msgspec.Struct, frozen=True):
    """A file for a running guest. Parents are made (0755, owned like the file).

    `path` is absolute, or relative to the guest user's home. `owner` is ``user`` or ``root``. With
    `append` the data goes to the end of a file that may exist: how large files travel in pieces.
    """

    path: str
    data: bytes
    mode: int = 0o600
    owner: str = "user"
    append: bool = False


class InstanceStatus(StrEnum):
    """What a driver can tell about an instance without asking its guest."""

    ABSENT = "absent"
    STOPPED = "stopped"
    RUNNING = "running"


class InstanceRecord(msgspec.Struct, frozen=True):
    """An instance that exists in some form. `pid` is that of its VM process, when it runs."""

    instance_id: str
    supervisor_id: str
    status: InstanceStatus
    pid: int | None = None


class TemplateSpec(msgspec.Struct, frozen=True):
    """A template to build.

    `name` is legal for every driver (see `claude_vm.context.project`). `uid` and `gid` are those of the
    project's owner, who owns what the guest writes if root starts it; else that is who starts it.
    `claude_binary` is a host file (a Linux program for
    the host's architecture), or None for a template without Claude Code. `ca_certificates` are PEM texts.
    `proxies` are environment variables (``http_proxy`` …) in the guest's own terms. `image` names another
    image to start from than the one that is built: a path, an address with its digest, a template of Lima's.
    `environ` are variables of who asks for it, of which proxies and ``TMPDIR`` count on this host.
    """

    name: str
    project: str
    cpus: int
    memory_mib: int
    disk_gib: int
    uid: int
    gid: int
    claude_binary: Path | None = None
    claude_version: str | None = None
    ca_certificates: tuple[str, ...] = ()
    proxies: tuple[tuple[str, str], ...] = ()
    image: str = ""
    environ: tuple[tuple[str, str], ...] = ()

    def __repr__(self) -> str:
        """No value of a variable: addresses of proxies may have passwords."""
        return f"TemplateSpec({self.name!r}, {self.project!r})"


class TemplateRecord(msgspec.Struct, frozen=True):
    """A usable template generation, as stored beside it in ``template.json``.

    `created_at` and `last_used_at` are Unix times in seconds; `size_bytes` is what it takes on disk.
    `terminfo` and `locales` are the names that its guest knows. `guest` names the programs of ours that its
    guest has, and `stale` tells that they are not those that this version talks to: no session can run in it,
    and only building it anew helps.
    """

    name: str
    generation: str
    driver: str
    project: str
    created_at: float
    cpus: int
    memory_mib: int
    disk_gib: int
    size_bytes: int
    user: str
    home: str
    claude_version: str | None
    image: str
    terminfo: tuple[str, ...] = ()
    locales: tuple[str, ...] = ()
    last_used_at: float = 0.0
    guest: str = ""
    stale: bool = False


class Capabilities(msgspec.Struct, frozen=True):
    """What this driver can do on this host. `accelerator` is ``kvm``, ``tcg``, ``hvf`` or ``none``.

    `host_address` is what its guests call the host's loopback. `prestart` tells whether `Driver.prestart` is
    of use here. `phases` are those by which `Driver.start` tells how far it is, in their order; it may tell
    of others, such as trouble. `instructions` tell an agent in a guest what is unusual there, as shortly as
    can be: they are read with each of its requests.
    """

    accelerator: str
    accelerator_reason: str
    ram_clones: bool
    max_mounts: int
    host_address: str
    isolates: bool = True
    prestart: bool = False
    phases: tuple[Phase, ...] = ()
    instructions: str = ""


class Diagnostic(msgspec.Struct, frozen=True):
    """Something that `claude-vm doctor` found: what, and the command or step that fixes it."""

    what: str
    fix: str
    fatal: bool = True


class Inspection(msgspec.Struct, frozen=True):
    """What a host has for a driver that is not open. `version` is its program's, "" if it is not known."""

    installed: bool
    version: str = ""
    problems: tuple[Diagnostic, ...] = ()


class Driver(Protocol):
    """Makes, starts and deletes virtual machines. See the module's text for the contract."""

    name: str

    def look_in(self, programs: Programs) -> None:
        """Look for this host's programs there from now on: who asks for the driver finds them there.

        What is under way is not affected. A driver that lacks a program there, and has all where it looked
        so far, goes on with those. Never waits.
        """
        ...

    async def diagnose(self) -> Sequence[Diagnostic]:
        """Return what is missing on this host. Never raises."""
        ...

    async def capabilities(self) -> Capabilities:
        """Return what this driver can do here. Probes once, then remembers."""
        ...

    async def clone(self, spec: InstanceSpec) -> None:
        """Make the disk and the folder of a new instance; starts nothing.

        Raises:
            DriverError: The template or generation is gone, the disk is full, the disk would shrink.
        """
        ...

    async def prestart(self, instance_id: str) -> None:
        """Start a cloned instance's VM process ahead, as far as it gets without running the guest.

        Optional, and only with `Capabilities.prestart`: between `clone` and `start`, once. The process has
        its disk and its mounts' host directories open then, and takes no memory of the guest's size. `start`
        goes on from there, or from the beginning if that process has ended meanwhile.

        Raises:
            MountChangedError: As in `start`.
            DriverError: There is no such instance, it was started already, it does not come so far, or this
                driver can't do that here.
        """
        ...

    async def start(self, instance_id: str, progress: Progress, reachable: Reachable = tell_nobody) -> Access:
        """Restore or boot a cloned instance; return when it has its identity and its mounts, and listens.

        A connection to its SSH port is answered then, though not at once. A handshake takes longer than all
        that is left to do by then: a driver whose guest keeps connections waiting until it has its identity
        may tell `reachable` before that. A second call takes the first one back: that guest did not come up.

        Identity: fresh random state *before* the first SSH handshake, clock, host name, machine id, SSH
        host key, authorized key. A cold boot is the fall-back where a RAM clone is impossible.

        Raises:
            MountChangedError: A mount's host directory is not the one that is meant.
            DriverError: It does not come up; the text has the console's last lines.
        """
        ...

    async def put_files(self, instance_id: str, files: Sequence[GuestFile]) -> None:
        """Write files into a running guest, as root, in order. At most 8 MiB in all.

        Raises:
            DriverError: The guest does not answer, or says why it can't.
        """
        ...

    async def set_clock(self, instance_id: str) -> None:
        """Set the guest's clock to the host's.

        Raises:
            DriverError: The guest does not answer.
        """
        ...

    async def poll(self, instance_id: str) -> InstanceStatus:
        """Return the instance's status. Never raises; an unknown id is ABSENT."""
        ...

    async def taken_mib(self, instance_id: str) -> int:
        """Return what the processes of an instance's VM take of the host's memory now, in MiB.

        What several VMs share counts in parts, so that the sum over all of them is right. 0 when no VM runs,
        or nobody can tell. Never raises.
        """
        ...

    async def wait_stopped(self, instance_id: str) -> str:
        """Return why the VM ended, in a few words, once it has. By events, where the system has them."""
        ...

    async def delete(self, instance_id: str) -> None:
        """End the VM at once and remove all that belongs to it.

        Raises:
            DriverError: Something could not be removed; calling again is right.
        """
        ...

    async def list_instances(self) -> Sequence[InstanceRecord]:
        """Return everything that bears the owner's mark, whoever made it: folders and processes."""
        ...

    # Templates: immutable generations beside each other; one of them is current.

    async def build_template(self, spec: TemplateSpec, progress: Progress) -> TemplateRecord:
        """Build a new generation and make it the current one at the end, atomically.

        A failed or cancelled build leaves the former generation current and nothing else behind. The call
        may take minutes; `progress` tells the phases.

        Raises:
            DriverError: With the failing tool's last output.
        """
        ...

    async def templates(self) -> Sequence[TemplateRecord]:
        """Return the current generation of each template of this home and driver, by name."""
        ...

    async def touch_template(self, name: str) -> None:
        """Record that the template is used now. An unknown name is fine."""
        ...

    async def delete_template(self, name: str) -> None:
        """Remove all generations of a template, unless an instance of anyone still uses one.

        Raises:
            TemplateInUseError: With the instances that use it.
        """
        ...

    async def collect_garbage(self, *, images: bool = False) -> Sequence[str]:
        """Remove old generations and half-built ones that nothing uses; return what was removed.

        With `images` also cached base images, so that the next build has to make its own again; never those
        of a cache folder that is a link, because it is shared with another home.
        """
        ...
