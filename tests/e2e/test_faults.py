"""A real VM, its connection or its supervisor is gone at a chosen transition: what the client learns, and
that nothing is left. `tests/chaos` has the transitions for which a simulated VM is enough."""

import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

GONE = {
    "after:start=kill-vm": b"[vm-died]",
    "before:prime=kill-vm": b"[vm-died]",
    "after:run-started=kill-vm": b"[vm-died]",
    "before:prime=cut-link": b"[ssh-link-lost]",
}
OF_A_DEATH = ["after:start", "begun:run", "after:run"]
if "CHAOS_KILLS" not in os.environ:  # all of them are for `make chaos`
    del GONE["after:start=kill-vm"]
    OF_A_DEATH = ["begun:run"]


def survey_class():
    name = "claude_vm_tests_survey"
    if name not in sys.modules:
        path = Path(__file__).parents[1] / "chaos" / "survey.py"
        spec = importlib.util.spec_from_file_location(name, path)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name].Survey


@pytest.fixture
def house(claude_vm, waiting):
    """A home whose daemon is started anew with the faults that a test asks for."""

    def ask(*words):
        done = claude_vm.run(*words, "--json")
        assert done.returncode == 0, done.stderr.decode()
        return json.loads(done.stdout)

    def restart(faults):
        claude_vm.stop_daemon()
        waiting(lambda: claude_vm.daemon_pid() is None)
        claude_vm.env["CLAUDE_VM_FAULT"] = faults
        claude_vm.run("daemon", "status")
        claude_vm.run("ps")
        del claude_vm.env["CLAUDE_VM_FAULT"]

    claude_vm.run("ps")
    claude_vm.survey = survey_class()(claude_vm.home, ask)
    claude_vm.ask = ask
    claude_vm.restart = restart
    yield claude_vm
    claude_vm.env.pop("CLAUDE_VM_FAULT", None)
    claude_vm.configure("[pool]\nsize = 0\n")
    claude_vm.run("pool", "drain", "--all")
    claude_vm.stop_daemon()  # it has faults to come


@pytest.mark.parametrize(("fault", "code"), GONE.items())
def test_a_session_whose_vm_or_connection_is_gone_tells_it_and_leaves_nothing(house, fault, code):
    house.restart(fault)
    done = house.shell("sh", "-c", "sleep 5; echo the end", timeout=120)
    assert done.returncode == 125
    assert code in done.stderr
    assert b"the end" not in done.stdout
    assert house.survey.settle() == []
    assert house.survey.double_claims() == []


def test_a_vm_that_dies_after_its_command_has_ended_changes_nothing_for_the_client(house):
    house.restart("before:delete=kill-vm")
    done = house.shell("sh", "-c", "exit 3")
    assert done.returncode == 3
    assert house.survey.settle() == []


@pytest.mark.parametrize("moment", OF_A_DEATH)
def test_a_vm_whose_supervisor_died_is_never_given_out_with_what_another_left_in_it(house, waiting, moment):
    """It lives on. From the claim on it belongs to one session, whether that has begun or not."""
    house.restart(f"{moment}=kill-self")
    words = ("sh", "-c", "test ! -e /tmp/used && touch /tmp/used && echo fresh")
    died = house.shell(*words)
    assert died.returncode == 125
    assert b"daemon" in died.stderr
    left = house.vm_pids()
    assert len(left) == 1
    done = house.shell(*words)
    assert (done.returncode, done.stdout) == (0, b"fresh\n")
    assert house.survey.settle() == []
    assert house.vm_pids() == []
    assert house.survey.double_claims() == []


def test_ready_vms_that_die_or_lose_their_connection_are_replaced(house, waiting):
    house.configure("[pool]\nsize = 2\n")
    house.restart("")
    assert house.run("pool", "fill").returncode == 0
    first, second, *_ = house.vm_pids()  # and one that is started ahead, sooner or later
    os.kill(first, signal.SIGKILL)
    waiting(lambda: first not in house.vm_pids())
    assert house.survey.settle(60) == []
    assert second in house.vm_pids()
    assert len(house.vm_pids()) >= 2


def test_the_kill_of_all_at_once_leaves_nothing(house, waiting):
    house.configure("[pool]\nsize = 1\n")
    house.restart("")
    assert house.run("pool", "fill").returncode == 0
    session = house.popen(
        "shell", "--", "sh", "-c", "echo up; sleep 600", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert session.stdout.readline() == b"up\n"
    waiting(lambda: len(house.vm_pids()) == 2)
    for pid in (house.daemon_pid(), session.pid, *house.vm_pids()):
        os.kill(pid, signal.SIGKILL)
    session.wait(10)
    house.configure("[pool]\nsize = 0\n")
    house.run("pool", "drain", "--all")
    assert house.survey.settle() == []
    assert house.vm_pids() == []


def test_a_session_whose_connection_is_cut_goes_on(house):
    house.restart("after:run-started=cut-link")
    done = house.shell("sh", "-c", "sleep 5; echo the end", timeout=120)
    assert (done.returncode, done.stdout) == (0, b"the end\n"), done.stderr.decode()
