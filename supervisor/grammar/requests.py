"""What a command line asks for: one record for each command, made by `claude_vm.supervisor.grammar.parse`."""

import msgspec


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime flags (feature A10), as given; None and empty mean: not given.

    Sizes in GB (disk, memory) and counts (cpus), not yet checked against their ranges: configuration does
    that, together with the other layers, so that one report has every problem.
    """

    disk: str | None = None
    memory: str | None = None
    cpus: str | None = None
    driver: str | None = None
    mounts: tuple[str, ...] = ()
    publish: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    env_files: tuple[str, ...] = ()
    inherit_env: tuple[str, ...] = ()
    forward_ssh_agent: bool = False
    auto_setup: bool = False
    any_directory: bool = False
    accept_growth: bool = False
    no_daemon: bool = False
    no_wait: bool = False
    verbose: bool = False
    quiet: bool = False


class Request(msgspec.Struct, frozen=True, tag=True, kw_only=True):
    """Base of all requests."""

    flags: Flags = Flags()


class Agent(Request, frozen=True):
    """Run Claude with these arguments, byte for byte."""

    args: tuple[str, ...] = ()


class Shell(Request, frozen=True):
    """Run a command, or with no words a login shell."""

    words: tuple[str, ...] = ()


class Setup(Request, frozen=True):
    """Build the project's template."""

    agent: bool = True


class Ps(Request, frozen=True):
    """List sessions, with `all` also those that ended; or tell the `story` of one id, if it is not ""."""

    all: bool = False
    story: str = ""
    json: bool = False


class Stop(Request, frozen=True):
    """End sessions: the named ones, or all."""

    sessions: tuple[str, ...] = ()
    all: bool = False


class Pool(Request, frozen=True):
    """`status`, `fill` or `drain`.

    `count` is how many VMs `fill` shall keep ready, None: as many as the settings say. `all` is `drain`'s:
    the VMs of every project.
    """

    action: str
    count: int | None = None
    all: bool = False
    json: bool = False


class ListTemplates(Request, frozen=True):
    """List templates."""

    disk_usage: bool = False
    unused: bool = False
    json: bool = False


class Info(Request, frozen=True):
    """Describe the current project."""

    json: bool = False


class Clean(Request, frozen=True):
    """Delete the project's template."""

    yes: bool = False
    force: bool = False


class CleanAll(Request, frozen=True):
    """Delete all templates and caches."""

    yes: bool = False
    force: bool = False


class Daemon(Request, frozen=True):
    """`run`, `status` or `stop`."""

    action: str
    force: bool = False
    json: bool = False


class Bench(Request, frozen=True):
    """`run`, `targets`, `compare`, `gate` or `picture`.

    `rounds` is 0 when it is not given; `modes`, `patterns` and `figures` are empty when they are not. Files
    are as they were typed, and "" when they are not given.
    """

    action: str
    rounds: int = 0
    modes: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    figures: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    result: str = ""
    json: str = ""
    csv: str = ""
    picture: str = ""


class Doctor(Request, frozen=True):
    """Check what this host has and lacks."""

    json: bool = False


class Version(Request, frozen=True):
    """Print our version."""

    json: bool = False
