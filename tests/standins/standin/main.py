"""The command line: which words mean what, and what happens when something fails."""

import os
import sys
from pathlib import Path
from typing import NoReturn

from . import VERSION, agent, cloning, creation, disks, ending, guests, listing, starting
from .commandline import COMMANDS, Words, parse
from .errors import LimaError, ToolError
from .log import LEVELS, LOG, configure, quoted


def main() -> NoReturn:
    """Run the command that this process was started with, and end with its status."""
    if os.geteuid() == 0:
        sys.stderr.write("limactl: must not run as the root user\n")
        sys.exit(1)
    program = Path(os.environ.get("LIMACTL_STANDIN_PROGRAM") or sys.argv[0]).absolute()
    try:
        _run(sys.argv[1:], program)
    except ToolError as error:
        sys.exit(error.status)
    except (LimaError, OSError) as error:
        LOG.fatal(str(error))
        sys.exit(1)
    sys.exit(0)


def _run(given: list[str], program: Path) -> None:
    words = parse(given)
    if words.has("--version") or words.has("-v"):
        sys.stdout.write(f"limactl version {VERSION}\n")
        return
    if words.command in ("", "help") or words.has("--help") or words.has("-h"):
        sys.stdout.write("A stand-in for limactl. It has: " + " ".join(sorted(COMMANDS)) + "\n")
        return
    level = words.get("--log-level") or ("debug" if words.has("--debug") else "info")
    if level not in LEVELS:
        raise LimaError(f'not a valid logrus Level: "{level}"')
    form = words.get("--log-format") or "text"
    if form not in ("text", "json"):
        raise LimaError(f"unsupported log-format: {quoted(form)}")
    configure(sys.stderr, as_json=form == "json", level=level)
    if words.has("--yes") and words.has("--tty"):
        raise LimaError("cannot use both --tty and --yes flags at the same time")
    _RUN[words.command](words, program)


def _terminal(words: Words) -> bool:
    return not words.has("--yes") and words.flag("--tty", default=sys.stdout.isatty())


def _create(words: Words, program: Path) -> None:
    found = creation.load_or_create(
        words.only(),
        words.get("--name"),
        create_only=True,
        terminal=_terminal(words),
        prefix=program.parent.parent,
    )
    if found.errors:
        raise LimaError(f"errors inspecting instance: [{' '.join(found.errors)}]")
    creation.prepare(found, program.parent.parent)
    LOG.info(f"Run `limactl start {found.name}` to start the instance.")


def _start(words: Words, program: Path) -> None:
    found = creation.load_or_create(
        words.only(),
        words.get("--name"),
        create_only=False,
        terminal=_terminal(words),
        prefix=program.parent.parent,
    )
    timeout_s = words.duration("--timeout", default_s=600.0)
    starting.start(
        found, foreground=words.flag("--foreground"), timeout_s=timeout_s, prefix=program.parent.parent
    )


def _stop(words: Words, _program: Path) -> None:
    ending.stop(words.only() or "default", force=words.flag("--force"))


def _delete(words: Words, _program: Path) -> None:
    ending.delete(words.rest, force=words.flag("--force"))


def _list(words: Words, _program: Path) -> None:
    form = words.get("--format") or "table"
    as_json = words.flag("--json") or form == "json"
    listing.list_instances(words.rest, as_json=as_json, quiet=words.flag("--quiet"))


def _clone(words: Words, program: Path) -> None:
    found = cloning.clone(*words.rest, rename=words.command == "rename")
    if words.flag("--start"):
        starting.start(found, foreground=False, timeout_s=600.0, prefix=program.parent.parent)


def _protect(words: Words, _program: Path) -> None:
    cloning.protect(words.rest)


def _unprotect(words: Words, _program: Path) -> None:
    cloning.unprotect(words.rest)


def _info(_words: Words, program: Path) -> None:
    listing.print_info(program.parent.parent)


def _hostagent(words: Words, _program: Path) -> None:
    if not words.get("--pidfile") or not words.get("--socket"):
        raise LimaError("socket must be specified (limactl version mismatch?)")
    agent.run(words.rest[0], Path(words.get("--pidfile")), Path(words.get("--socket")))


def _shell(words: Words, _program: Path) -> None:
    if not words.rest:
        raise LimaError("requires instance name as first argument")
    name, *command = words.rest
    guests.shell(name, command, workdir=words.get("--workdir"), interpreter=words.get("--shell"))


def _copy(words: Words, _program: Path) -> None:
    guests.copy(words.rest, recursive=words.flag("--recursive"))


def _disk(words: Words, _program: Path) -> None:
    action, *rest = words.rest or [""]
    match action:
        case "create":
            disks.create(rest[0] if rest else "", words.get("--size"), words.get("--format") or "qcow2")
        case "list" | "ls":
            disks.list_disks(rest, as_json=words.flag("--json"))
        case "delete" | "remove" | "rm":
            disks.delete(rest, force=words.flag("--force"))
        case "unlock":
            disks.unlock(rest)
        case _:
            sys.stdout.write("Of `limactl disk` there are: create, list, delete, unlock\n")


_RUN = {
    "create": _create,
    "start": _start,
    "stop": _stop,
    "delete": _delete,
    "list": _list,
    "shell": _shell,
    "copy": _copy,
    "disk": _disk,
    "clone": _clone,
    "rename": _clone,
    "protect": _protect,
    "unprotect": _unprotect,
    "info": _info,
    "hostagent": _hostagent,
}
