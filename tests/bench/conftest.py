import pytest

from claude_vm.bench.records import Environment, Line, Report, Sample
from claude_vm.supervisor.core.core import Core


@pytest.fixture(autouse=True)
def validated(request, monkeypatch):
    """All cores, here and in daemons of sites, are validated after each event, unless time is measured."""
    if request.node.get_closest_marker("timed") is None:
        monkeypatch.setenv("CLAUDE_VM_VALIDATE", "1")
        handle = Core.handle

        def handle_and_validate(core, event):
            effects = handle(core, event)
            core.validate()
            return effects

        monkeypatch.setattr(Core, "handle", handle_and_validate)


@pytest.fixture
def sample():
    """Make a sample by its waiting time in milliseconds."""

    def make(mode="warm", ms=10.0, **facts):
        instants = {"shown": ms / 1000, "exited": ms / 1000 + 0.5} | facts.pop("instants", {})
        return Sample(mode=mode, instants=instants if facts.get("ok", True) else {}, **facts)

    return make


@pytest.fixture
def environment():
    return Environment(
        machine="x86_64",
        processor="Some processor",
        cpus=2,
        memory_mib=4096,
        system="Linux 6.1",
        accelerator="tcg",
        accelerator_reason="no KVM",
        versions={"claude-vm": "1.2", "Python": "3.11"},
        template="tpl: 2 CPUs",
        load=(0.5, 1.5),
    )


@pytest.fixture
def report(environment):
    def make(samples=(), lines=(), **facts):
        return Report(
            created_at=1.0,
            environment=facts.pop("environment", environment),
            command="run",
            samples=tuple(samples),
            lines=tuple(lines),
            **facts,
        )

    return make


@pytest.fixture
def line():
    def make(key="F1.p50", value=0.9, bound=1.0, **facts):
        return Line(key=key, what="a wait", target="<= 1", bound=bound, value=value, **facts)

    return make
