"""Deliberate faults: chosen by one variable, and harmless where there is none."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from claude_vm.supervisor.daemon.dispatch.faults import InjectedFaultError, read_faults

PROGRAM = Path(sys.executable).with_name("claude-vm")

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]


class Driver:
    def __init__(self, *records):
        self.records = records

    async def list_instances(self):
        return self.records


class Record:
    def __init__(self, instance_id, pid):
        self.instance_id = instance_id
        self.pid = pid


def test_without_the_variable_there_is_nothing_to_call():
    assert read_faults({}) is None
    assert read_faults({"CLAUDE_VM_FAULT": ""}) is None


@pytest.mark.parametrize(
    "text",
    [
        "x",
        "before:clone",
        "before:clone=explode",
        "before:nothing=raise",
        "before:clone#0=raise",
        "=raise",
        ",",
    ],
)
def test_what_does_not_exist_is_refused(text):
    with pytest.raises(ValueError, match="CLAUDE_VM_FAULT"):
        read_faults({"CLAUDE_VM_FAULT": text})


async def test_a_fault_happens_at_its_occurrence_only():
    faults = read_faults({"CLAUDE_VM_FAULT": "before:clone#2=raise, after:start=raise"})
    await faults.inject("before:clone", "i-1", Driver())
    await faults.inject("before:start", "i-1", Driver())
    with pytest.raises(InjectedFaultError):
        await faults.inject("before:clone", "i-2", Driver())
    with pytest.raises(InjectedFaultError):
        await faults.inject("after:start", "i-2", Driver())
    await faults.inject("before:clone", "i-3", Driver())
    await faults.inject("after:start", "i-3", Driver())


@pytest.fixture
def sleepers():
    processes = [subprocess.Popen(["sleep", "100"]) for _ in range(2)]
    yield processes
    for process in processes:
        process.kill()
        process.wait()


async def test_a_killed_vm_is_that_of_the_instance_and_no_other(sleepers):
    victim, other = sleepers
    faults = read_faults({"CLAUDE_VM_FAULT": "after:start=kill-vm"})
    records = (Record("i-1", other.pid), Record("i-2", victim.pid), Record("i-3", None))
    await faults.inject("after:start", "i-2", Driver(*records))
    assert victim.wait(10) == -signal.SIGKILL
    assert other.poll() is None


@pytest.fixture(scope="module")
def home_with_template(tmp_path_factory):
    """The real client and daemon on simulated guests. For a whole module: each test leaves it as it was."""
    folder = tmp_path_factory.mktemp("faults")
    home, project = folder / "home", folder / "project"
    home.mkdir()
    project.mkdir()
    (home / ".claude-vm.toml").write_text("[pool]\nsize = 0\n")  # nothing is made beside the session
    environ = {"HOME": str(home), "PATH": os.environ["PATH"], "CLAUDE_VM_DRIVER": "sim"}
    environ["CLAUDE_VM_VALIDATE"] = "1"

    def run(*words, **more):
        return subprocess.run(
            [PROGRAM, *words], cwd=project, env=environ | more, capture_output=True, check=False, timeout=60
        )

    assert run("setup", "--no-agent").returncode == 0
    assert run("daemon", "stop").returncode == 0
    run.home = home
    return run


@pytest.fixture
def claude_vm(home_with_template):
    """Run it with a daemon of the test's own."""
    yield home_with_template
    home_with_template("daemon", "stop", "--force")


@pytest.mark.parametrize(
    "moment",
    [
        "begun:clone",
        "after:clone",
        "before:start",
        "after:connect",
        "before:prime",
        "before:run",
        "after:run-started",
        "after:run",
        "before:delete",
        "after:delete",
    ],
)
def test_a_daemon_killed_at_any_moment_leaves_nothing_after_the_next_command(claude_vm, moment):
    """Simulated VMs die with their daemon, so that nothing goes on here."""
    died = claude_vm("shell", "true", CLAUDE_VM_FAULT=f"{moment}=kill-self")
    assert died.returncode == 125
    assert b"daemon" in died.stderr
    assert json.loads(claude_vm("ps", "--json").stdout) == []
    assert claude_vm("shell", "exit 3").returncode == 3
    assert not list((claude_vm.home / ".claude-vm" / "sim").glob("*/i-*"))


@pytest.mark.parametrize("moment", ["before:clone", "after:clone", "before:prime", "before:run"])
def test_a_step_that_fails_on_purpose_ends_its_session_and_leaves_nothing(claude_vm, moment):
    failed = claude_vm("shell", "true", CLAUDE_VM_FAULT=f"{moment}=raise")
    assert failed.returncode == 125
    assert b"[injected-fault]" in failed.stderr
    assert claude_vm("shell", "exit 3").returncode == 3
    assert not list((claude_vm.home / ".claude-vm" / "sim").glob("*/i-*"))


def test_a_daemon_that_is_asked_for_a_fault_that_does_not_exist_says_so(claude_vm):
    done = claude_vm("ps", CLAUDE_VM_FAULT="sometime=perhaps")
    assert done.returncode == 1
    assert b"CLAUDE_VM_FAULT" in done.stderr
    assert b"Traceback" not in done.stderr
