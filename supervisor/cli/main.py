"""The command line: finds or starts the daemon, hands it the words, and is its terminal.

Nothing heavy is imported before it is needed, and with a running daemon it never is: the words are parsed
there. Without one they are parsed here first, so that help and usage errors start nothing.
"""

import gc
import os
import sys

from claude_vm.supervisor.statuses import FAILED, OUTPUT_CLOSED, SESSION_FAILED, USAGE

TYPE_CHECKING = False  # the module of that name takes long to load
if TYPE_CHECKING:
    from claude_vm.supervisor.grammar.requests import Request


def main() -> int:
    """Run ``claude-vm`` with the words of the command line; return its exit status."""
    return _leave(_guarded(sys.argv[1:]))


def main_setup() -> int:
    """Run ``claude-vm-setup``: ``claude-vm setup`` (feature A9)."""
    return _leave(_guarded(["setup", *sys.argv[1:]]))


def main_shell() -> int:
    """Run ``claude-vm-shell``: ``claude-vm shell`` (feature A9)."""
    return _leave(_guarded(["shell", *sys.argv[1:]]))


def refuse_start() -> int:
    """Tell somebody who has run the launcher's other half by hand what to run; return the exit status."""
    write_lines(
        ("claude-vm: this program is only a part of claude-vm: run claude-vm [usage]",), to_stderr=True
    )
    return USAGE


def _leave(status: int) -> int:
    """End the process at once when only the thin client was loaded; else return the status.

    The client has no buffers, threads or exit functions, and taking the interpreter apart would take longer
    than all that the client does after its imports.
    """
    if "threading" not in sys.modules:
        os._exit(status)
    return status


def _guarded(argv: list[str]) -> int:
    """Run the words; whatever fails is a message and a status, never a traceback."""
    gc.disable()  # imports make no garbage, only objects that would be counted again and again
    _open_standard_descriptors()
    from claude_vm.supervisor.cli.signals import EndedBySignalError, die_of  # noqa: PLC0415 - after that
    from claude_vm.supervisor.wire.errors import WireError  # noqa: PLC0415

    try:
        return run(argv)
    except EndedBySignalError as error:
        return die_of(error.number)
    except (WireError, OSError) as error:
        return _tell(error, _failed_status(argv))


def run(argv: list[str]) -> int:
    """Run the words and return the exit status.

    Raises:
        EndedBySignalError: A signal ends this process.
        WireError: There is no daemon to be had, or it says no.
        OSError: The system says no.
    """
    if argv == ["--version"]:
        return _print_version()
    from claude_vm.supervisor.cli import daemon  # noqa: PLC0415 - see the module's text
    from claude_vm.supervisor.wire.messages import MAX_WORDS  # noqa: PLC0415 - likewise

    if len(argv) > MAX_WORDS:
        return _refuse_words(len(argv), MAX_WORDS)

    if shell := os.environ.get("_CLAUDE_VM_COMPLETE"):
        from claude_vm.supervisor.grammar.completion import completed  # noqa: PLC0415 - likewise

        return write_lines(completed(shell, argv))
    if _is_for_us(argv):
        return _run_here(argv)
    connection = daemon.connect()
    if connection is None:
        return _run_here(argv)
    return daemon.attend(connection, argv)


def write_lines(lines: tuple[str, ...], *, to_stderr: bool = False) -> int:
    """Write lines to stdout or stderr, made harmless; return 0, or `OUTPUT_CLOSED` when nobody reads them."""
    from claude_vm.supervisor.wire.escape import printed  # noqa: PLC0415 - its tables take a millisecond

    return _write(printed(lines), to_stderr=to_stderr)


def _write(text: str, *, to_stderr: bool = False) -> int:
    data = memoryview(text.encode())
    try:
        while data:
            data = data[os.write(2 if to_stderr else 1, data) :]
    except BrokenPipeError:
        return OUTPUT_CLOSED
    return 0


def _tell(error: Exception, status: int) -> int:
    """Say what went wrong, and what to do next, on stderr; return the exit status."""
    from claude_vm.supervisor.wire.error_text import beneath, error_text  # noqa: PLC0415 - rarely needed

    line, more = error_text(error, "system-error")
    write_lines((line, *(beneath(text) for text in more)), to_stderr=True)
    return status


def _refuse_words(count: int, most: int) -> int:
    write_lines(
        (
            f"claude-vm: {count} words are too many: a command line may have {most} [usage]",
            "  put them into a file of the project, and name that file",
        ),
        to_stderr=True,
    )
    return USAGE


def _failed_status(argv: list[str]) -> int:
    """Return the exit status of a failure of ours: a session has its own (feature A4)."""
    from claude_vm.supervisor.grammar.parse import Printout, parse  # noqa: PLC0415 - takes long to load

    answer = parse(argv)
    return SESSION_FAILED if not isinstance(answer, Printout) and answer.runs_others else FAILED


def _is_for_us(argv: list[str]) -> bool:
    """Tell whether the words may ask for something that no running daemon can do."""
    return "--no-daemon" in argv or ("daemon" in argv and "run" in argv) or "bench" in argv


def _run_here(argv: list[str]) -> int:
    """Parse the words here; then answer, run in this process, or start the daemon."""
    gc.enable()
    from claude_vm.supervisor.cli import daemon, tty  # noqa: PLC0415 - see the module's text
    from claude_vm.supervisor.grammar.commands.bench import Bench  # noqa: PLC0415 - takes long to load
    from claude_vm.supervisor.grammar.commands.installation import RunDaemon  # noqa: PLC0415 - likewise
    from claude_vm.supervisor.grammar.parse import Printout, parse  # noqa: PLC0415 - likewise

    answer = parse(argv, columns=tty.window_size()[1] or 80)
    if isinstance(answer, Printout):
        closed = write_lines(answer.lines, to_stderr=answer.to_stderr)
        return answer.status or closed
    if isinstance(answer, RunDaemon):
        from claude_vm.supervisor.daemon.process.main import main as run_daemon  # noqa: PLC0415 - likewise

        return run_daemon(foreground=True)
    if isinstance(answer, Bench):
        from claude_vm.bench.main import main as run_bench  # noqa: PLC0415 - likewise

        return run_bench(answer)
    if answer.flags.no_daemon:
        return daemon.run_in_process(argv)
    return _ask_daemon(answer, argv)


def _ask_daemon(answer: "Request", argv: list[str]) -> int:
    """Have the words carried out by the daemon, which is started unless there is an answer without one."""
    from claude_vm.supervisor.cli import daemon  # noqa: PLC0415 - see the module's text
    from claude_vm.supervisor.grammar.commands.installation import (  # noqa: PLC0415 - takes long to load
        ShowDaemon,
        StopDaemon,
        Version,
    )

    connection = daemon.connect()
    if connection is None:
        if isinstance(answer, StopDaemon):
            _write("no daemon runs\n", to_stderr=True)
            return 0
        if isinstance(answer, ShowDaemon):
            _write('{"pid": null}\n' if answer.json else "not running\n")
            return FAILED
        if isinstance(answer, Version) and not answer.json:
            return _print_version()
        return daemon.run_by_daemon(argv)
    return daemon.attend(connection, argv)


def _print_version() -> int:
    from claude_vm.supervisor.wire.version import VERSION  # noqa: PLC0415 - see the module's text

    return _write(f"claude-vm {VERSION}\n")


def _open_standard_descriptors() -> None:
    """Open what is closed of stdin, stdout and stderr: else a socket would get its number."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDONLY if descriptor == 0 else os.O_WRONLY)
