"""The runtime flags (feature A10), which stand before or after any sub-command."""

from typing import Annotated

import msgspec
import typer

from claude_vm.drivers.names import NAMES
from claude_vm.supervisor.grammar.layout import ABOUT, UsageError
from claude_vm.supervisor.grammar.requests import Flags

MACHINE = "Machine"
FILES = "Files and environment"
WAYS = "How it runs"


class Invocation(msgspec.Struct):
    """What the commands' functions get through the context: our flags, and the words of another program."""

    operands: tuple[str, ...] = ()
    flags: Flags = Flags()


def invocation(context: typer.Context) -> Invocation:
    """Return what was given besides the command's own parameters."""
    found = context.obj
    if not isinstance(found, Invocation):  # pragma: no cover - parse() always gives one
        raise TypeError(found)
    return found


def runtime_flags(  # noqa: PLR0917 - typer passes them by name
    context: typer.Context,
    disk: Annotated[
        str | None, typer.Option(metavar="GB", help="Size of the disk, 1-1000.", rich_help_panel=MACHINE)
    ] = None,
    memory: Annotated[
        str | None, typer.Option(metavar="GB", help="Size of the memory, 1-64.", rich_help_panel=MACHINE)
    ] = None,
    cpus: Annotated[
        str | None, typer.Option(metavar="N", help="Number of CPUs, 1-32.", rich_help_panel=MACHINE)
    ] = None,
    driver: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"What makes VMs: {', '.join(NAMES)}.", rich_help_panel=MACHINE),
    ] = None,
    mount: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="Mount another host directory: HOST[:GUEST][:ro|:rw]. May be repeated.",
            rich_help_panel=FILES,
        ),
    ] = None,
    publish: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SPEC",
            help="Give the host's loopback a port of the guest: [HOST:]GUEST; or `auto`. May be repeated.",
            rich_help_panel=WAYS,
        ),
    ] = None,
    env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="K=V", help="Set an environment variable. May be repeated.", rich_help_panel=FILES
        ),
    ] = None,
    env_file: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="Set those that the file has. May be repeated.", rich_help_panel=FILES
        ),
    ] = None,
    inherit_env: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME", help="Pass this one on, if set. May be repeated.", rich_help_panel=FILES
        ),
    ] = None,
    any_directory: Annotated[
        bool,
        typer.Option(
            "--any-directory",
            help="Allow the home directory, or a folder above it, as the project.",
            rich_help_panel=FILES,
        ),
    ] = False,
    accept_growth: Annotated[
        bool,
        typer.Option(
            "--accept-growth",
            help="Accept that the project has become more than it was.",
            rich_help_panel=FILES,
        ),
    ] = False,
    forward_ssh_agent: Annotated[
        bool,
        typer.Option(
            "-A",
            "--forward-ssh-agent",
            help="Let the session use the SSH agent, while it runs.",
            rich_help_panel=WAYS,
        ),
    ] = False,
    auto_setup: Annotated[
        bool, typer.Option("--auto-setup", help="Build a missing template unasked.", rich_help_panel=WAYS)
    ] = False,
    no_daemon: Annotated[
        bool,
        typer.Option("--no-daemon", help="Do all in this process, without a daemon.", rich_help_panel=WAYS),
    ] = False,
    no_wait: Annotated[
        bool,
        typer.Option(
            "--no-wait",
            help="Return at once, not when a template that somebody builds, or VMs to be ready, are there.",
            rich_help_panel=WAYS,
        ),
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option("-v", "--verbose", help="Show what the driver says.", rich_help_panel=WAYS),
    ] = False,
    quiet: Annotated[
        bool, typer.Option("-q", "--quiet", help="Show errors only.", rich_help_panel=WAYS)
    ] = False,
    version: Annotated[  # noqa: ARG001 - answered before typer sees it; it stands here for the help
        bool, typer.Option("--version", help="Show our version and exit.", rich_help_panel=ABOUT)
    ] = False,
) -> None:
    """Run Claude Code, or any command, in a disposable Linux VM.

    Without a sub-command, the first word that is no flag of ours starts Claude's arguments, which reach it
    as they are; `--` ends our flags. The current project is mounted in the VM, at the same path, writable.
    """
    if verbose and quiet:
        raise UsageError("--verbose and --quiet exclude each other", ctx=context)
    invocation(context).flags = Flags(
        disk=disk,
        memory=memory,
        cpus=cpus,
        driver=driver,
        mounts=tuple(mount or ()),
        publish=tuple(publish or ()),
        env=tuple(env or ()),
        env_files=tuple(env_file or ()),
        inherit_env=tuple(inherit_env or ()),
        forward_ssh_agent=forward_ssh_agent,
        auto_setup=auto_setup,
        any_directory=any_directory,
        accept_growth=accept_growth,
        no_daemon=no_daemon,
        no_wait=no_wait,
        verbose=verbose,
        quiet=quiet,
    )
    for given in (mount, publish, env, env_file, inherit_env):
        if given:
            given.clear()  # typer keeps each function's last arguments
