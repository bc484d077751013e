"""``claude-vm bench``: runs in the client's own process, because the daemon is what it measures."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from claude_vm.bench import environment, gate, phases, picture, table
from claude_vm.bench.compare import compare_lines
from claude_vm.bench.errors import BadRequestError, BenchError
from claude_vm.bench.figures import registry, waits
from claude_vm.bench.lab import Lab, open_lab
from claude_vm.bench.modes import MODES
from claude_vm.bench.plan import PATTERNS, unit
from claude_vm.bench.records import Environment, Line, Report, Sample, read, write
from claude_vm.context.errors import ContextError
from claude_vm.drivers.errors import DriverError, words_of
from claude_vm.supervisor.grammar.commands.bench import (
    Bench,
    BenchCompare,
    BenchGate,
    BenchPicture,
    BenchRun,
    BenchTargets,
)
from claude_vm.supervisor.statuses import FAILED, INTERRUPTED, USAGE
from claude_vm.supervisor.wire.error_text import beneath, error_text
from claude_vm.supervisor.wire.escape import printed

BASELINES = {"warm": "ssh", "clone": "by-hand"}
"""What is measured beside a mode, in the same patterns where that makes sense."""


def main(request: Bench) -> int:
    """Carry out a request; return the exit status. Output goes to stdout, progress to stderr."""
    # An interrupted run must still remove its homes, its daemons and its VMs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return _ACTIONS[type(request)](request)
    except (BenchError, ContextError, DriverError) as error:
        line, more = error_text(error)
        _say(line, *(beneath(text) for text in more))
        return USAGE if isinstance(error, BadRequestError) else FAILED
    except OSError as error:
        _say(f"claude-vm: {words_of(error)} [system-error]")
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _say(*lines: str) -> None:
    sys.stderr.write(printed(lines))


def _run(request: BenchRun) -> int:
    modes = request.modes or MODES
    patterns = request.patterns or PATTERNS
    _check("mode", modes, MODES)
    _check("pattern", patterns, PATTERNS)

    def measure(lab: Lab) -> tuple[list[Sample], list[Line]]:
        wanted = [
            unit(name, pattern, slow=name in waits.SLOW)
            for mode in modes
            for pattern in patterns
            for name in (mode, *([BASELINES[mode]] if _has_baseline(mode, pattern) else []))
        ]
        samples, missing = waits.run_units(lab, wanted, rounds=request.rounds)
        for mode, why in missing.items():
            lab.tell(f"not measured: {mode} ({why})")
        return samples, []

    report = _measured(request, measure, (request.json, request.csv), request.picture)
    measured = {sample.mode for sample in report.samples if sample.ok}
    return _finish(report, request.json, request.csv, request.picture) or (
        0 if measured.issuperset(modes) else FAILED
    )


def _has_baseline(mode: str, pattern: str) -> bool:
    """A burst of restores by hand would measure the machine, not us."""
    return mode == "warm" or (mode == "clone" and pattern == "sequential")


def _targets(request: BenchTargets) -> int:
    figures = request.figures or registry.TARGETS
    report = _measured_for(figures, request.rounds, request, (request.json, request.csv))
    missing = any(line.judged and line.value is None for line in report.lines)
    return _finish(report, request.json, request.csv) or (FAILED if missing else 0)


def _compare(request: BenchCompare) -> int:
    before, after = read(Path(request.before)), read(Path(request.after))
    sys.stdout.write(printed(compare_lines(before, after)))
    return 0


def _gate(request: BenchGate) -> int:
    bounds = gate.read_gate(Path(request.file))
    if request.result:
        verdicts = gate.judge(bounds, read(Path(request.result)).lines)
    else:
        report = _measured_for(bounds.run.figures, bounds.run.rounds, request, (request.json,))
        if request.json:
            write(report, Path(request.json))
        verdicts = gate.judge(bounds, report.lines)
        for _ in range(bounds.run.attempts - 1):
            if broken := gate.broken_figures(verdicts):
                _say(f"out of bounds: {', '.join(broken)}; measured again")
                again = _measured_for(broken, bounds.run.rounds, request)
                verdicts = gate.retried(verdicts, gate.judge(bounds, again.lines))
    sys.stdout.write(printed(gate.gate_lines(verdicts)))
    return 0 if all(verdict.kept for verdict in verdicts) else FAILED


def _measured_for(figures: Sequence[str], rounds: int, request: Bench, files: Sequence[str] = ()) -> Report:
    return _measured(request, lambda lab: registry.measure(lab, figures, rounds), files)


def _picture(request: BenchPicture) -> int:
    picture.draw(read(Path(request.result)), Path(request.file))
    return 0


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise BadRequestError(f"there is no {what} '{name}'", f"choose from: {', '.join(known)}")


def _check_files(files: Sequence[str], drawn: str) -> None:
    """Notice before a long measurement that its result could not be written."""
    if drawn:
        picture.check(Path(drawn))
    for file in (*files, drawn):
        path = Path(file)
        if file and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)):
            raise BenchError(
                f"{path} can't be written", "name a file in a folder that exists and that you may write to"
            )


def _measured(
    request: Bench,
    measure: Callable[[Lab], tuple[list[Sample], list[Line]]],
    files: Sequence[str] = (),
    drawn: str = "",
) -> Report:
    _check_files(files, drawn)
    environment.leave_out_of_path(Path.cwd())
    before = environment.load_now()
    driver = {key: value for key, value in request.flags.settings.items() if key == "driver.name"}
    with open_lab(Path.cwd(), os.environ, _teller(quiet=request.flags.quiet), flags=driver) as lab:
        samples, lines = measure(lab)
        found = _environment(lab, before)
    return Report(
        created_at=time.time(),
        environment=found,
        command=request.command,
        samples=tuple(samples),
        lines=tuple(lines),
    )


def _environment(lab: Lab, before: float) -> Environment:
    load = (before, environment.load_now())
    try:
        facts = lab.facts
    except BenchError:
        return environment.environment(accelerator="none", reason="no VM was measured", load=load)
    record = facts.record
    template = (
        f"{record.name}: {record.cpus} CPUs, {record.memory_mib} MiB,"
        f" Claude Code {record.claude_version or '(none)'}"
    )
    capabilities = facts.capabilities
    return environment.environment(
        accelerator=capabilities.accelerator,
        reason=capabilities.accelerator_reason,
        template=template,
        load=load,
    )


def _teller(*, quiet: bool) -> Callable[[str], None]:
    begun = time.monotonic()

    def tell(text: str) -> None:
        if not quiet:
            _say(f"bench {time.monotonic() - begun:6.0f} s  {text}")
            sys.stderr.flush()

    return tell


def _finish(report: Report, json: str, csv: str, drawn: str = "") -> int:
    sys.stdout.write(printed(table.report_lines(report)))
    if json:
        write(report, Path(json))
    if csv:
        try:
            with Path(csv).open("w", newline="") as file:
                phases.write_csv(report.samples, file)
        except OSError as error:
            raise BenchError(f"{csv} can't be written: {error.strerror}") from error
    if drawn:
        picture.draw(report, Path(drawn))
    return 0


# Each function takes the request of its key's type; a table can't say that.
_ACTIONS: dict[type[Bench], Callable[..., int]] = {
    BenchRun: _run,
    BenchTargets: _targets,
    BenchCompare: _compare,
    BenchGate: _gate,
    BenchPicture: _picture,
}
