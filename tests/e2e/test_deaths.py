"""Whatever is killed, and whenever: the next command finds nothing of it left."""

import json
import os
import signal
import subprocess

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

DELAYS_S = [0.0, 0.3, 1.0, 2.5]
if "CHAOS_KILLS" in os.environ:  # all of them are for `make soak`
    DELAYS_S += [0.1, 0.6, 1.5]


def running_session(claude_vm, *flags):
    session = claude_vm.popen(
        *flags,
        "shell",
        "--",
        "sh",
        "-c",
        "echo up; sleep 600",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert session.stdout.readline() == b"up\n"
    return session


def finish(session, timeout=60):
    try:
        session.wait(timeout)
        return session.stderr.read()
    finally:
        session.stdout.close()
        session.stderr.close()


def no_vm_after_the_next_command(claude_vm, waiting):
    claude_vm.run("ps")
    waiting(lambda: claude_vm.vm_pids() == [], timeout=20)
    # Its VM is gone a moment before its session is.
    waiting(lambda: json.loads(claude_vm.run("ps", "--json").stdout) == [], timeout=20)


def test_a_killed_client_ends_its_session(claude_vm, waiting):
    session = running_session(claude_vm)
    session.kill()
    finish(session)
    waiting(lambda: claude_vm.vm_pids() == [], timeout=20)
    no_vm_after_the_next_command(claude_vm, waiting)


def test_a_killed_vm_ends_its_session_with_the_reason(claude_vm, waiting):
    session = running_session(claude_vm)
    (vm,) = claude_vm.vm_pids()
    os.kill(vm, signal.SIGKILL)
    said = finish(session, timeout=30)
    assert session.returncode == 125
    assert b"vm-died" in said
    no_vm_after_the_next_command(claude_vm, waiting)


@pytest.mark.parametrize("daemon_runs", [False, True])
def test_a_killed_client_without_daemon_leaves_a_vm_that_the_next_command_sweeps(
    claude_vm, waiting, daemon_runs
):
    if daemon_runs:
        claude_vm.run("ps")
    else:
        claude_vm.stop_daemon()
    session = running_session(claude_vm, "--no-daemon")
    session.kill()
    finish(session)
    assert len(claude_vm.vm_pids()) == 1
    no_vm_after_the_next_command(claude_vm, waiting)
    waiting(lambda: [p.name for p in (claude_vm.home / "supervisors").iterdir()] == ["daemon"], timeout=20)


@pytest.mark.parametrize("delay_s", DELAYS_S)
def test_ctrl_c_before_the_command_runs_leaves_nothing(claude_vm, waiting, delay_s):
    session = claude_vm.popen(
        "shell",
        "--",
        "sh",
        "-c",
        "sleep 600",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        session.wait(0.15 + delay_s)  # how far the start has come by then is what this varies
    except subprocess.TimeoutExpired:
        session.send_signal(signal.SIGINT)
    finish(session)
    assert session.returncode in {130, -signal.SIGINT}  # a shell tells both as 130
    waiting(lambda: claude_vm.vm_pids() == [], timeout=10)
    no_vm_after_the_next_command(claude_vm, waiting)


def test_ctrl_c_while_the_vm_comes_up_leaves_nothing(claude_vm, waiting):
    """What the delays above may all miss on a slow host or a quick one: there is a VM, and no command yet."""
    claude_vm.run("ps")
    session = claude_vm.popen(
        "shell", "sleep 600", stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    waiting(lambda: claude_vm.vm_pids() != [], interval=0.005)
    session.send_signal(signal.SIGINT)
    finish(session)
    assert session.returncode in {130, -signal.SIGINT}
    waiting(lambda: claude_vm.vm_pids() == [], timeout=10)
    no_vm_after_the_next_command(claude_vm, waiting)


def test_a_daemon_killed_during_the_start_leaves_nothing_after_the_next_command(claude_vm, waiting):
    claude_vm.run("ps")
    session = claude_vm.popen("shell", "true", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    waiting(lambda: claude_vm.vm_pids() != [], interval=0.005)
    os.kill(claude_vm.daemon_pid(), signal.SIGKILL)
    finish(session)
    no_vm_after_the_next_command(claude_vm, waiting)


def test_the_leak_check_sees_what_a_leak_leaves(installation, tmp_path):
    """A decoy of each kind: process, file in the home, temporary folder."""
    from importlib.util import module_from_spec, spec_from_file_location
    from pathlib import Path

    specification = spec_from_file_location("leaks", Path(__file__).with_name("leaks.py"))
    leaks = module_from_spec(specification)
    specification.loader.exec_module(leaks)
    check = leaks.LeakCheck(installation.home)
    assert check.leaks() == []
    file = installation.home / "instances" / "daemon" / "i-decoy" / "disk.qcow2"
    temporary = Path("/tmp/claude-vm-decoy")
    marked = subprocess.Popen(["sh", "-c", f"sleep 60; : {check.mark}decoy"])
    try:
        file.parent.mkdir(parents=True)
        file.touch()
        temporary.mkdir()
        found = check.leaks()
    finally:
        marked.kill()
        marked.wait()
        file.unlink()
        file.parent.rmdir()
        temporary.rmdir()
    text = "\n".join(found)
    assert "i-decoy" in text
    assert "claude-vm-decoy" in text
    assert f"process {marked.pid}" in text


def test_a_vm_that_stands_still_is_waited_for_and_its_session_loses_nothing(claude_vm):
    script = "read x; for n in $(seq 60); do echo $n; sleep 0.02; done; read y; echo $y; exit 7"
    session = claude_vm.popen(
        "shell", script, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    session.stdin.write(b"go\n")
    session.stdin.flush()
    assert session.stdout.readline() == b"1\n"
    (pid,) = claude_vm.vm_pids()
    os.kill(pid, signal.SIGSTOP)
    try:
        session.stdin.write(b"typed meanwhile\n")
        session.stdin.flush()
        assert b"the guest has not answered for 10 s" in session.stderr.readline()
    finally:
        os.kill(pid, signal.SIGCONT)
    assert b"the guest answers again" in session.stderr.readline()
    session.stdin.close()
    lines = session.stdout.read().split(b"\n")
    assert lines == [*(b"%d" % n for n in range(2, 61)), b"typed meanwhile", b""]
    assert session.wait(60) == 7
    session.stdout.close()
    session.stderr.close()


def test_a_connection_that_breaks_is_made_again_and_its_session_goes_on(claude_vm):
    kill = "[ $((n % 20)) = 0 ] && sudo pkill -KILL sshd"
    script = f"for n in $(seq 50); do echo $n; {kill}; sleep 0.02; done; exit 6"
    done = claude_vm.shell("sh", "-c", script)
    assert (done.returncode, done.stderr) == (6, b"")
    assert done.stdout.split() == [b"%d" % n for n in range(1, 51)]
