"""``claude-vm bench``: runs in the client's own process, because the daemon is what it measures."""

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from claude_vm.bench import gate, phases, picture, surroundings, table
from claude_vm.bench.compare import compare_lines
from claude_vm.bench.errors import BadRequestError, BenchError
from claude_vm.bench.figures import registry, waits
from claude_vm.bench.lab import Lab, open_lab
from claude_vm.bench.modes import MODES
from claude_vm.bench.plan import PATTERNS, unit
from claude_vm.bench.records import Environment, Line, Report, Sample, read, write
from claude_vm.context.errors import ContextError
from claude_vm.drivers.errors import DriverError, words_of
from claude_vm.supervisor.grammar.requests import Bench
from claude_vm.supervisor.wire.complaint import beneath, complaint
from claude_vm.supervisor.wire.escape import printed

FAILED = 1
USAGE = 2
BASELINES = {"warm": "ssh", "clone": "by-hand"}
"""What is measured beside a mode, in the same patterns where that makes sense."""


def main(request: Bench) -> int:
    """Carry out a request; return the exit status. Output goes to stdout, progress to stderr."""
    # An interrupted run must still remove its homes, its daemons and its VMs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    try:
        return _ACTIONS[request.action](request)
    except (BenchError, ContextError, DriverError) as error:
        line, more = complaint(error)
        _say(line, *(beneath(text) for text in more))
        return USAGE if isinstance(error, BadRequestError) else FAILED
    except OSError as error:
        _say(f"claude-vm: {words_of(error)} [system-error]")
        return FAILED
    except KeyboardInterrupt:
        return 130


def _say(*lines: str) -> None:
    sys.stderr.write(printed(lines))


def _run(request: Bench) -> int:
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

    report = _measured(request, measure)
    measured = {sample.mode for sample in report.samples if sample.ok}
    return _finish(request, report) or (0 if measured.issuperset(modes) else FAILED)


def _has_baseline(mode: str, pattern: str) -> bool:
    """A burst of restores by hand would measure the machine, not us."""
    return mode == "warm" or (mode == "clone" and pattern == "sequential")


def _targets(request: Bench) -> int:
    figures = request.figures or registry.TARGETS
    report = _measured_for(figures, request.rounds, request)
    missing = any(line.judged and line.value is None for line in report.lines)
    return _finish(request, report) or (FAILED if missing else 0)


def _compare(request: Bench) -> int:
    before, after = (read(Path(file)) for file in request.files)
    sys.stdout.write(printed(compare_lines(before, after)))
    return 0


def _gate(request: Bench) -> int:
    bounds = gate.read_gate(Path(request.files[0]))
    if request.result:
        verdicts = gate.judge(bounds, read(Path(request.result)).lines)
    else:
        report = _measured_for(bounds.run.figures, bounds.run.rounds, request)
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


def _measured_for(figures: Sequence[str], rounds: int, request: Bench) -> Report:
    return _measured(request, lambda lab: registry.measure(lab, figures, rounds))


def _picture(request: Bench) -> int:
    result, file = request.files
    picture.draw(read(Path(result)), Path(file))
    return 0


def _check(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise BadRequestError(f"there is no {what} '{name}'", f"known are: {', '.join(known)}")


def _check_files(request: Bench) -> None:
    """Notice before a long measurement that its result could not be written."""
    if request.picture:
        picture.check(Path(request.picture))
    for file in (request.json, request.csv, request.picture):
        path = Path(file)
        if file and (path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK)):
            raise BenchError(f"{path} can't be written", "name a file in a folder that is there and yours")


def _measured(request: Bench, measure: Callable[[Lab], tuple[list[Sample], list[Line]]]) -> Report:
    _check_files(request)
    surroundings.leave_out_of_path(Path.cwd())
    before = surroundings.load_now()
    flags = {"driver.name": request.flags.driver} if request.flags.driver else {}
    with open_lab(Path.cwd(), os.environ, _teller(quiet=request.flags.quiet), flags=flags) as lab:
        samples, lines = measure(lab)
        found = _environment(lab, before)
    return Report(
        created_at=time.time(),
        environment=found,
        command=request.action,
        samples=tuple(samples),
        lines=tuple(lines),
    )


def _environment(lab: Lab, before: float) -> Environment:
    load = (before, surroundings.load_now())
    try:
        facts = lab.facts
    except BenchError:
        return surroundings.environment(accelerator="none", reason="no VM was measured", load=load)
    record = facts.record
    template = (
        f"{record.name}: {record.cpus} CPUs, {record.memory_mib} MiB,"
        f" Claude Code {record.claude_version or '(none)'}"
    )
    capabilities = facts.capabilities
    return surroundings.environment(
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


def _finish(request: Bench, report: Report) -> int:
    sys.stdout.write(printed(table.report_lines(report)))
    if request.json:
        write(report, Path(request.json))
    if request.csv:
        try:
            with Path(request.csv).open("w", newline="") as file:
                phases.write_csv(report.samples, file)
        except OSError as error:
            raise BenchError(f"{request.csv} can't be written: {error.strerror}") from error
    if request.picture:
        picture.draw(report, Path(request.picture))
    return 0


_ACTIONS: dict[str, Callable[[Bench], int]] = {
    "run": _run,
    "targets": _targets,
    "compare": _compare,
    "gate": _gate,
    "picture": _picture,
}
