"""`claude-vm doctor`: what this host has and lacks."""

import msgspec

from claude_vm.context.config.problems import ConfigError
from claude_vm.drivers import registry
from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.daemon.commands.command import Command
from claude_vm.supervisor.daemon.policy import MIB_PER_GB, budget_problem, host_memory_mib, pool_policy
from claude_vm.supervisor.grammar.requests import Doctor


class DriverReport(msgspec.Struct, frozen=True):
    """One driver, as ``doctor --json`` prints it. `problems`: pairs of what is wrong and what fixes it."""

    driver: str
    usable: bool
    accelerator: str
    accelerator_reason: str
    ram_clones: bool
    problems: list[tuple[str, str]]


async def doctor(command: Command, request: Doctor) -> int:
    """Report on every driver; 0 when one can run sessions in isolation."""
    reports = [await _report(command, name) for name in registry.ISOLATING]
    pool = _pool_problems(command)
    reports = [msgspec.structs.replace(r, problems=[*r.problems, *pool]) for r in reports]
    if request.json:
        await command.out_json(reports)
    else:
        for report in reports:
            await command.out(_text(report))
    return 0 if any(r.usable for r in reports) else 1


def _pool_problems(command: Command) -> list[tuple[str, str]]:
    """Return what keeps a VM of the configured size from being kept ready: what is wrong, what fixes it."""
    try:
        settings = command.settings()
    except ConfigError as error:
        return [(str(error), error.hint)]
    policy = pool_policy(settings, host_memory_mib())
    problem = budget_problem(policy, settings.vm.memory * MIB_PER_GB)
    return [problem] if problem else []


async def _report(command: Command, name: str) -> DriverReport:
    try:
        driver = await command.host.drivers.get(name)
        problems = await driver.diagnose()
        fatal = any(p.fatal for p in problems)
        found = [(p.what, p.fix) for p in problems]
        if fatal:
            return DriverReport(name, False, "none", "not usable", False, found)
        facts = await driver.capabilities()
    except DriverError as error:
        return DriverReport(name, False, "none", "not usable", False, [(str(error), error.hint)])
    return DriverReport(name, True, facts.accelerator, facts.accelerator_reason, facts.ram_clones, found)


def _text(report: DriverReport) -> str:
    state = "usable" if report.usable else "not usable"
    lines = [f"{report.driver}: {state}; accelerator {report.accelerator} ({report.accelerator_reason})"]
    for what, fix in report.problems:
        lines.append(f"  - {what}")
        if fix:
            lines.append(f"    fix: {fix}")
    return "\n".join(lines)
