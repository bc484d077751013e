"""`claude-vm doctor`: what this host has and lacks for each driver, and which driver `auto` takes."""

from collections.abc import Sequence

import msgspec

from claude_vm.context.config.problems import ConfigError
from claude_vm.drivers import registry
from claude_vm.drivers.api import Diagnostic
from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.daemon.clients.command import Command
from claude_vm.supervisor.daemon.pool.policy import MIB_PER_GB, budget_problem, host_memory_mib, pool_policy
from claude_vm.supervisor.grammar.commands.installation import Doctor


class DriverReport(msgspec.Struct, frozen=True):
    """One driver, as ``doctor --json`` prints it.

    `installed`: its programs are there; `usable`: nothing keeps it from running sessions. `problems`: pairs
    of what is wrong and what fixes it. `version` is that of its program, "" where it is not known. `isolates`
    is false for the simulation. `auto`: it is what `auto` takes, for the reason `auto_reason`.
    """

    driver: str
    usable: bool = False
    accelerator: str = "none"
    accelerator_reason: str = "not usable"
    ram_clones: bool = False
    problems: list[tuple[str, str]] = []
    installed: bool = False
    isolates: bool = True
    version: str = ""
    auto: bool = False
    auto_reason: str = ""


async def doctor(command: Command, request: Doctor) -> int:
    """Report on every driver; 0 when `auto` finds one that can run sessions in isolation."""
    reports = await _chosen(command, [await _report(command, name) for name in registry.DRIVERS])
    await command.workspace.say_remarks()
    pool = await _pool_problems(command)
    reports = [
        msgspec.structs.replace(r, problems=[*r.problems, *(pool if r.isolates else [])]) for r in reports
    ]
    if request.json:
        await command.out_json(reports)
    else:
        taken = next((r for r in reports if r.auto), None)
        await command.out(
            f"auto: {taken.driver} ({taken.auto_reason})"
            if taken is not None
            else "auto: no driver is usable; each line below says what is missing"
        )
        for report in reports:
            await command.out(*_text(report))
    return 0 if any(r.usable and r.isolates for r in reports) else 1


async def _chosen(command: Command, reports: Sequence[DriverReport]) -> list[DriverReport]:
    """Mark the one that `auto` takes where no project has a template, with the reason."""
    try:
        taken = (await registry.usable(command.workspace.programs()))[0]
    except DriverError:
        return list(reports)
    before: list[str] = []
    found: list[DriverReport] = []
    for report in reports:
        if report.driver == taken:
            why = "; ".join([*before, f"{taken} is usable" if report.usable else f"{taken} is installed"])
            found.append(msgspec.structs.replace(report, auto=True, auto_reason=why))
        else:
            found.append(report)
            state = "is not usable" if report.installed else "is not installed"
            before += [f"{report.driver} {state}"] if not report.usable and report.isolates else []
    return found


async def _pool_problems(command: Command) -> list[tuple[str, str]]:
    """Return what keeps a VM of the configured size from being kept ready: what is wrong, what fixes it."""
    try:
        settings = await command.workspace.settings()
    except ConfigError as error:
        return [(str(error), error.hint)]
    policy = pool_policy(settings, host_memory_mib())
    problem = budget_problem(policy, settings.vm.memory * MIB_PER_GB)
    return [problem] if problem else []


async def _report(command: Command, name: str) -> DriverReport:
    """Return what is known of a driver, whatever is wrong with it."""
    found = await registry.find(name).inspect(command.workspace.programs())
    report = DriverReport(
        name,
        problems=_pairs(found.problems),
        installed=found.installed,
        isolates=registry.DRIVERS[name].isolates,
        version=found.version,
    )
    if any(problem.fatal for problem in found.problems):
        return report
    try:
        driver = await command.supervisor.drivers.get(name, command.workspace.programs())
        said = await driver.diagnose()
        told = {problem.what for problem in said}
        problems = [*said, *(problem for problem in found.problems if problem.what not in told)]
        if any(problem.fatal for problem in problems):
            return msgspec.structs.replace(report, problems=_pairs(problems))
        facts = await driver.capabilities()
    except DriverError as error:
        return msgspec.structs.replace(report, problems=[(str(error), error.hint), *report.problems])
    return msgspec.structs.replace(
        report,
        usable=True,
        accelerator=facts.accelerator,
        accelerator_reason=facts.accelerator_reason,
        ram_clones=facts.ram_clones,
        problems=_pairs(problems),
        isolates=facts.isolates,
    )


def _pairs(problems: Sequence[Diagnostic]) -> list[tuple[str, str]]:
    return [(problem.what, problem.fix) for problem in problems]


def _text(report: DriverReport) -> list[str]:
    state = "usable" if report.usable else "not usable" if report.installed else "not installed"
    if report.usable and not report.isolates:
        state = "for tests only"
    lines = [report.driver + (f" {report.version}" if report.version else "") + f": {state}"]
    if report.usable and report.isolates:
        lines[0] += f"; accelerator {report.accelerator} ({report.accelerator_reason})"
    for what, fix in report.problems:
        lines.append(f"  - {what}")
        if fix:
            lines.append(f"    fix: {fix}")
    return lines
