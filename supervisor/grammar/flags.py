"""The runtime flags (feature A10), which stand before or after any sub-command, each declared once."""

from collections.abc import Mapping
from typing import Annotated

import msgspec

from claude_vm.context import environment, mount_specs, ports
from claude_vm.context.config.schema import settings_table
from claude_vm.context.config.setting import Value
from claude_vm.supervisor.grammar.declaring import Flag, flags_of

MACHINE = "Machine"
FILES = "Files and environment"
WAYS = "How it runs"
ABOUT = "About"

VERSION = Flag("--version", "Show our version and exit.", panel=ABOUT)
"""Stands before any word of another program, and is answered by the splitter."""


class Flags(msgspec.Struct, frozen=True, kw_only=True):
    """The runtime flags as given; None and empty mean: not given.

    Their values are not checked yet: those of settings are, together with the other layers, so that one
    report has every problem.
    """

    disk: Annotated[
        str | None, Flag("--disk", "Size of the disk, {valid}.", metavar="GB", panel=MACHINE, sets="vm.disk")
    ] = None
    memory: Annotated[
        str | None,
        Flag("--memory", "Size of the memory, {valid}.", metavar="GB", panel=MACHINE, sets="vm.memory"),
    ] = None
    cpus: Annotated[
        str | None, Flag("--cpus", "Number of CPUs, {valid}.", metavar="N", panel=MACHINE, sets="vm.cpus")
    ] = None
    driver: Annotated[
        str | None,
        Flag(
            "--driver",
            "The driver that runs the VMs: {valid}.",
            metavar="NAME",
            panel=MACHINE,
            sets="driver.name",
        ),
    ] = None
    mounts: Annotated[
        tuple[str, ...],
        Flag(
            mount_specs.FLAG,
            "Mount another host directory: HOST[:GUEST][:ro|:rw].",
            metavar="SPEC",
            panel=FILES,
            adds_to="mounts",
        ),
    ] = ()
    publish: Annotated[
        tuple[str, ...],
        Flag(
            ports.FLAG,
            "Publish a port of the guest on the host's loopback: [HOST:]GUEST, or `auto`.",
            metavar="SPEC",
            panel=WAYS,
            sets="network.publish",
        ),
    ] = ()
    env: Annotated[
        tuple[str, ...], Flag(environment.ENV, "Set an environment variable.", metavar="K=V", panel=FILES)
    ] = ()
    env_files: Annotated[
        tuple[str, ...],
        Flag(environment.ENV_FILE, "Set the variables in a file.", metavar="FILE", panel=FILES),
    ] = ()
    inherit_env: Annotated[
        tuple[str, ...],
        Flag(environment.INHERIT, "Pass on a variable of yours, if it is set.", metavar="NAME", panel=FILES),
    ] = ()
    any_directory: Annotated[
        bool,
        Flag(
            "--any-directory",
            "Allow the home directory, or a folder above it, as the project.",
            panel=FILES,
        ),
    ] = False
    accept_growth: Annotated[
        bool,
        Flag("--accept-growth", "Accept that the project now includes more than before.", panel=FILES),
    ] = False
    forward_ssh_agent: Annotated[
        bool,
        Flag(
            "--forward-ssh-agent", "Let the session use the SSH agent, while it runs.", short="-A", panel=WAYS
        ),
    ] = False
    auto_setup: Annotated[
        bool, Flag("--auto-setup", "Build a missing template without asking.", panel=WAYS)
    ] = False
    no_daemon: Annotated[
        bool, Flag("--no-daemon", "Do everything in this process, without a daemon.", panel=WAYS)
    ] = False
    no_wait: Annotated[
        bool,
        Flag(
            "--no-wait",
            "Don't wait for a template that is being built, or for VMs to become ready.",
            panel=WAYS,
        ),
    ] = False
    verbose: Annotated[bool, Flag("--verbose", "Show what the driver says.", short="-v", panel=WAYS)] = False
    quiet: Annotated[bool, Flag("--quiet", "Show errors only.", short="-q", panel=WAYS)] = False

    @property
    def flaw(self) -> str:
        """What is wrong with the flags together, or ""."""
        return "--verbose and --quiet exclude each other" if self.verbose and self.quiet else ""

    @property
    def settings(self) -> dict[str, Value]:
        """The values of settings that were given, by dotted key; of a flag that may be repeated the texts."""
        given = ((flag, getattr(self, field.name)) for flag, field in flags_of(Flags) if flag.sets)
        return {flag.sets: Value(value, flag.name) for flag, value in given if value not in {None, ()}}


def help_of(flag: Flag) -> str:
    """Return what a flag is for, with what is valid for the setting that it sets."""
    if "{valid}" not in flag.help:
        return flag.help
    return flag.help.replace("{valid}", settings_table()[flag.sets].setting.kind.valid)


def words_of(flag: Flag) -> Mapping[str, str]:
    """Return the words that may follow a flag, each with a short text, as far as they can be listed."""
    return settings_table()[flag.sets].setting.kind.words if flag.sets else {}
