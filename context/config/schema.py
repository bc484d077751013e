"""The one table of settings: each with its type, default, kind, layers and what it is for.

A setting is a field of a section. The field's annotation has the type that the program sees and, in a
`Setting`, all that a user may say. Reading, checking, merging and `docs/configuration.md` are made from it.
"""

from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_type_hints

import msgspec

from claude_vm.context.config.kinds import (
    Duration,
    Either,
    ExistingFile,
    Integer,
    ListOf,
    Switch,
    Text,
    WordChoice,
)
from claude_vm.context.config.mount_tables import MountTable
from claude_vm.context.config.port_kinds import PortList, PortTable
from claude_vm.context.config.setting import FILES, HOST_FILES, Later, Layer, Obeyed, Setting
from claude_vm.context.mount_specs import MountSpec
from claude_vm.context.ports import PortSpec
from claude_vm.drivers.registry import AUTO, DRIVERS, ISOLATING

WORDS = ListOf(Text(), "a list of strings")
SCRIPTS = ListOf(ExistingFile(), "a list of files that exist")
MOUNTS = ListOf(
    MountTable(),
    "tables with location and optionally mount_point and writable; or strings as for --mount",
    item="mount",
)
PORTS = ListOf(PortTable(), "tables with guest and optionally host, both port numbers", item="port")
PACKAGE = r"[a-z0-9*][a-z0-9+.*-]*(?::[a-z0-9-]+)?(?:=[A-Za-z0-9.+:~*-]+)?"
DIGEST = r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})"
IMAGE = rf"https://[^#\s]+#{DIGEST}|template:[A-Za-z0-9_][A-Za-z0-9._/-]*"
KEY_NAME = r"(?:ctrl-[a-z@\[\]\\^_]|[!-+\--~])"
HOST_NAME = r"(?:\*\.)?[A-Za-z0-9_](?:[A-Za-z0-9_.-]*[A-Za-z0-9_])?(?::[0-9]{1,5})?"
SHARE = ("CLAUDE.md", "settings.json", "file-suggestion.sh", "statusline.sh", "skills", "commands")
DRIVER_WORDS = {AUTO: "what this host has", **{name: driver.words for name, driver in DRIVERS.items()}}

TEMPLATE, SESSION, BATCH = Obeyed
TOOL = Later(TEMPLATE, today=False)


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """Base of the sections. `files` are those that may set its settings, unless one says otherwise."""

    files: ClassVar[frozenset[Layer]] = FILES


class VmSection(Section, frozen=True):
    """Size of the template and of each session's VM, and what it is made of."""

    disk: Annotated[int, Setting(Integer(1, 1000), "Size of the disk, in GB", variable="CLAUDE_VM_DISK")] = 20
    memory: Annotated[int, Setting(Integer(1, 64), "Memory, in GB", variable="CLAUDE_VM_MEMORY")] = 8
    cpus: Annotated[int, Setting(Integer(1, 32), "Number of CPUs", variable="CLAUDE_VM_CPUS")] = 4
    image: Annotated[
        Path | str | None,
        Setting(
            Either(Text("https://ADDRESS#sha256:DIGEST, template:NAME", IMAGE), ExistingFile()),
            "Image to build the template from, with the driver lima; unset: one of Debian's packages, "
            "or `template:debian-13` where that can't be built",
        ),
    ] = None
    workdir: Annotated[
        str | None,
        Setting(
            Text("an absolute path", r"/[^\0]*"),
            "Where the project is mounted; unset: at the same path as on the host",
            later=Later(SESSION),
        ),
    ] = None


class DriverSection(Section, frozen=True):
    """What makes the VMs."""

    files = HOST_FILES

    name: Annotated[
        str,
        Setting(
            WordChoice(AUTO, *DRIVERS, **DRIVER_WORDS),
            "The driver; `sim` isolates nothing. `auto`: of those that can be used"
            f" ({', then '.join(DRIVERS[name].words for name in ISOLATING)}), the first that has a usable"
            " template of the project, else the first that has a stale one, else the first",
            variable="CLAUDE_VM_DRIVER",
        ),
    ] = AUTO


class ToolsSection(Section, frozen=True):
    """What the template has besides its base; a nearer layer may switch one off."""

    docker: Annotated[bool, Setting(Switch(), "Docker", later=TOOL)] = False
    node: Annotated[bool, Setting(Switch(), "Node.js", later=TOOL)] = False
    python: Annotated[bool, Setting(Switch(), "Python", later=TOOL)] = False
    chromium: Annotated[bool, Setting(Switch(), "Chromium", later=TOOL)] = False
    gpg: Annotated[bool, Setting(Switch(), "The host's GPG agent", later=TOOL)] = False
    gh: Annotated[bool, Setting(Switch(), "GitHub's command line", later=TOOL)] = False
    git: Annotated[bool, Setting(Switch(), "The host's git identity", later=TOOL)] = False
    rust: Annotated[bool, Setting(Switch(), "Rust", later=TOOL)] = False


class PackagesSection(Section, frozen=True):
    """More packages for the template."""

    system: Annotated[
        tuple[str, ...],
        Setting(
            ListOf(
                Text("a package name, perhaps with :arch and =version", PACKAGE), "a list of package names"
            ),
            "Packages of the distribution",
            adds_up=True,
            later=Later(TEMPLATE),
        ),
    ] = ()
    setup_script: Annotated[
        tuple[str, ...],
        Setting(
            Text(empty_is_unset=True),
            "Script that adds package sources; every layer's runs",
            adds_up=True,
            later=Later(TEMPLATE),
        ),
    ] = ()


class SetupSection(Section, frozen=True):
    """More for the building of the template."""

    scripts: Annotated[
        tuple[Path, ...], Setting(SCRIPTS, "Scripts to run", adds_up=True, later=Later(TEMPLATE))
    ] = ()
    mounts: Annotated[
        tuple[MountSpec, ...],
        Setting(MOUNTS, "Mounts during the building only", adds_up=True, later=Later(TEMPLATE)),
    ] = ()


class RuntimeSection(Section, frozen=True):
    """More for each session."""

    scripts: Annotated[
        tuple[Path, ...],
        Setting(SCRIPTS, "Scripts to run before the command", adds_up=True, later=Later(SESSION)),
    ] = ()


class DefaultsSection(Section, frozen=True):
    """What is done when the command line does not say otherwise."""

    claude_args: Annotated[
        tuple[str, ...] | None,
        Setting(WORDS, "Arguments of Claude; unset: `--dangerously-skip-permissions`; `[]`: none"),
    ] = None


class ContextSection(Section, frozen=True):
    """What Claude is told."""

    instructions: Annotated[
        str | None, Setting(Text(empty_is_unset=True), "Text for Claude's CLAUDE.md", later=Later(SESSION))
    ] = None
    instructions_file: Annotated[
        Path | None, Setting(ExistingFile(empty_is_unset=True), "The same from a file", later=Later(SESSION))
    ] = None


class PoolSection(Section, frozen=True):
    """VMs that are kept ready. They are the daemon's, so no project has a say."""

    files = HOST_FILES

    size: Annotated[
        int,
        Setting(Integer(0, 64), "VMs to keep ready for each project in use (per sizes and mounts); 0: none"),
    ] = 1
    paused: Annotated[
        str | int,
        Setting(
            Either(WordChoice("auto"), Integer(0, 64)),
            "VMs to start ahead and keep paused, for when none is ready; `auto`: 1 if `size` is not 0",
        ),
    ] = "auto"
    max_instances: Annotated[
        str | int,
        Setting(
            Either(WordChoice("auto"), Integer(1, 1000)),
            "Most VMs at a time, in sessions and ready; more sessions wait; `auto`: by this host's memory"
            " and cores",
        ),
    ] = "auto"
    idle_timeout: Annotated[
        int, Setting(Duration(), "When a project's ready VMs are given up, after its last session")
    ] = 30 * 60
    max_age: Annotated[
        int,
        Setting(
            # Counted from its start, so it has to be longer than that takes, or none would ever be ready.
            Duration(least_s=60),
            "When a ready VM is replaced by a new one",
        ),
    ] = 12 * 3600
    memory_budget: Annotated[
        str,
        Setting(
            Text("1%-100%, or 1GB and more", r"(?:[1-9][0-9]?|100)%|[1-9][0-9]{0,5} ?GB"),
            "Memory that all VMs that are kept ready may take: a share of this host's, or GB",
        ),
    ] = "50%"


class SessionSection(Section, frozen=True):
    """What becomes of sessions."""

    files = HOST_FILES

    note_second_writer: Annotated[
        bool, Setting(Switch(), "Say it when another session can write in the same directories")
    ] = True

    on_disconnect: Annotated[
        str,
        Setting(WordChoice("keep", "stop"), "When the terminal is lost", later=Later(SESSION, today="stop")),
    ] = "keep"
    detach_keys: Annotated[
        str,
        Setting(
            Text("keys such as ctrl-p,ctrl-q", rf"{KEY_NAME}(?:,{KEY_NAME})*"),
            "Keys that leave a session running",
            later=Later(SESSION),
        ),
    ] = "ctrl-p,ctrl-q"
    record: Annotated[bool, Setting(Switch(), "Record sessions", later=Later(SESSION, today=False))] = True
    retention: Annotated[
        int, Setting(Duration(), "How long records and logs are kept", later=Later(SESSION))
    ] = 30 * 86400


class ClaudeSection(Section, frozen=True):
    """What Claude gets of the host's ``~/.claude``."""

    share: Annotated[
        tuple[str, ...],
        Setting(
            ListOf(
                Text("a path in ~/.claude, perhaps with :rw", r"(?!/)(?s:.+)"), "a list of paths in ~/.claude"
            ),
            "Files and directories that are given to the guest",
            later=Later(SESSION),
        ),
    ] = SHARE
    credentials: Annotated[
        str,
        Setting(
            WordChoice("share", "copy-back", "none"),
            "What becomes of Claude's login",
            later=Later(SESSION, today="none"),
        ),
    ] = "copy-back"
    conversations: Annotated[
        bool, Setting(Switch(), "Share this project's conversations", later=Later(SESSION, today=False))
    ] = True


class GitSection(Section, frozen=True):
    """The project's repository."""

    mode: Annotated[
        str,
        Setting(
            WordChoice("rw", unenforced=("protect",)),
            "Hooks and config: `rw`; `protect` is refused until it works",
            later=Later(SESSION, today="rw"),
        ),
    ] = "rw"


class NetworkSection(Section, frozen=True):
    """The guest's network."""

    mode: Annotated[
        str,
        Setting(
            WordChoice("open", unenforced=("allowlist", "offline")),
            "What the guest may reach; `allowlist` and `offline` are refused until they work",
            later=Later(SESSION, today="open"),
        ),
    ] = "open"
    allow: Annotated[
        tuple[str, ...],
        Setting(
            ListOf(Text("a host name, perhaps with *. before it", HOST_NAME), "a list of host names"),
            "Hosts that `allowlist` allows",
            adds_up=True,
            later=Later(SESSION),
        ),
    ] = ()
    ca: Annotated[
        str, Setting(WordChoice("host", "none"), "Certificates that the guest trusts besides its own")
    ] = "host"
    publish: Annotated[
        tuple[PortSpec | str, ...],
        Setting(
            PortList(),
            "Guest ports to publish on the host's loopback; `auto`: each port that the guest listens at",
        ),
    ] = ()


class BatchSection(Section, frozen=True):
    """Many tasks at once."""

    parallel: Annotated[
        str | int,
        Setting(
            Either(WordChoice("auto"), Integer(1, 1000)),
            "Tasks at a time",
            files=HOST_FILES,
            later=Later(BATCH),
        ),
    ] = "auto"
    timeout: Annotated[int, Setting(Duration(), "Longest time of a task", later=Later(BATCH))] = 3600
    retries: Annotated[
        int, Setting(Integer(0, 10), "How often a failed task is repeated", later=Later(BATCH))
    ] = 0


class Sections(Section, frozen=True, kw_only=True):
    """All sections with their defaults."""

    vm: VmSection = VmSection()
    driver: DriverSection = DriverSection()
    tools: ToolsSection = ToolsSection()
    packages: PackagesSection = PackagesSection()
    setup: SetupSection = SetupSection()
    runtime: RuntimeSection = RuntimeSection()
    mounts: Annotated[
        tuple[MountSpec, ...], Setting(MOUNTS, "More host directories for each session", adds_up=True)
    ] = ()
    ports: Annotated[
        tuple[PortSpec, ...],
        Setting(PORTS, "More such ports, whatever `network.publish` says", adds_up=True),
    ] = ()
    defaults: DefaultsSection = DefaultsSection()
    context: ContextSection = ContextSection()
    pool: PoolSection = PoolSection()
    session: SessionSection = SessionSection()
    claude: ClaudeSection = ClaudeSection()
    git: GitSection = GitSection()
    network: NetworkSection = NetworkSection()
    batch: BatchSection = BatchSection()


ALIASES = {"vm.driver": "driver.name"}
"""Other names of keys in files."""

EXCLUSIVE = (("context.instructions", "context.instructions_file"),)
"""Settings of which one counts: of the nearest layer that sets any, the first that it sets (feature C6)."""

LATER = frozenset({"phase"})
"""Top-level keys that a later version will have."""


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table: a setting under its dotted key, the files that may set it, and its default."""

    key: str
    setting: Setting
    files: frozenset[Layer]
    default: Any


@cache
def settings_table() -> dict[str, Entry]:
    """Return every setting by its dotted key, in order."""
    return {entry.key: entry for entry in _entries(Sections(), "")}


def _entries(section: Section, prefix: str) -> list[Entry]:
    found: list[Entry] = []
    hints = get_type_hints(type(section), include_extras=True)
    for name in section.__struct_fields__:
        value = getattr(section, name)
        if isinstance(value, Section):
            found += _entries(value, f"{name}.")
        else:
            (setting,) = (part for part in hints[name].__metadata__ if isinstance(part, Setting))
            files = setting.files or section.files
            found.append(Entry(key=prefix + name, setting=setting, files=files, default=value))
    return found
