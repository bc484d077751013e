"""How instances end: by themselves, by ``stop`` and ``delete``, by the death of one of their processes."""

import os
import signal
import socket
import subprocess

import psutil


def states(lima):
    return [event["status"] for event in lima.events()]


def expect_stopped(lima):
    """Expect an instance that can be started again, of which no process is left."""
    psutil.wait_procs(lima.processes(), timeout=10)
    assert lima.processes() == []
    found = lima.listed()
    assert (found["status"], found.get("errors")) == ("Stopped", None)
    assert lima.pid("a", "ha") is None
    assert lima.pid("a", "qemu") is None


def test_a_vm_that_ends_by_itself_ends_its_host_agent_with_an_event(lima, ending):
    lima.create()

    with lima.started() as process:
        ending(lima)
        assert process.wait(30) == 0

    assert states(lima) == [{"sshLocalPort": lima.port}, {"exiting": True}]
    assert "Shutting down the host agent" in lima.phases()
    assert any(line.startswith("Driver stopped due to error: ") for line in lima.phases())
    expect_stopped(lima)


def test_a_vm_that_is_killed_ends_its_host_agent_and_leaves_a_dead_socket(lima):
    folder = lima.create()

    with lima.started() as process:
        os.kill(lima.pid("a", "qemu"), signal.SIGKILL)
        assert process.wait(30) == 0

    assert states(lima)[-1] == {"exiting": True}
    assert "Driver stopped due to error: `signal: killed`" in lima.phases()
    expect_stopped(lima)
    assert (folder / "qmp.sock").exists()
    assert not (folder / "ha.sock").exists()


def test_a_signal_to_the_host_agent_presses_the_power_button_and_waits(lima, ending, waiting):
    lima.create()

    for number in (signal.SIGTERM, signal.SIGINT):
        with lima.started() as process:
            os.kill(process.pid, number)
            waiting(lambda: "Sending QMP system_powerdown command" in lima.phases())
            assert process.poll() is None
            ending(lima)
            assert process.wait(30) == 0
        assert f"Received {number.name}, shutting down the host agent" in lima.phases()
        assert states(lima)[-1] == {"exiting": True}
        expect_stopped(lima)


def test_stop_waits_for_the_vm_and_says_so(lima, ending, waiting):
    lima.create()

    with lima.started() as process:
        stop = lima.begin("stop", "a")
        waiting(lambda: "Sending QMP system_powerdown command" in lima.phases())
        assert stop.poll() is None
        ending(lima)
        said = stop.communicate(timeout=30)[1].decode()
        process.wait(30)

    assert stop.returncode == 0
    assert f"Sending SIGINT to hostagent process {process.pid}" in said
    # Not its last line, which the log also has: what is written when it exits need not be passed on.
    assert "[hostagent] Received SIGINT, shutting down the host agent" in said
    assert "The instance a has shut down" in said
    expect_stopped(lima)


def test_stop_by_force_kills_both_and_removes_their_traces(lima):
    folder = lima.create()
    before = {path.name for path in folder.iterdir()}

    with lima.started() as process:
        qemu = lima.pid("a", "qemu")
        done = lima.run("stop", "--force", "a").expect()
        assert process.wait(30) == -signal.SIGKILL

    assert done.said("info")[:2] == [
        f"Sending SIGKILL to the qemu driver process {qemu}",
        f"Sending SIGKILL to the host agent process {process.pid}",
    ]
    expect_stopped(lima)
    left = {path.name for path in folder.iterdir()} - before
    assert left == {
        *("cidata.iso", "ssh.config", "ha.stdout.log", "ha.stderr.log"),
        *("serial.log", "serialv.log"),
    }
    assert states(lima) == [{"sshLocalPort": lima.port}]


def test_stop_by_force_of_a_stopped_instance_is_fine(lima):
    lima.create()

    done = lima.run("stop", "-f", "a").expect()

    assert done.said("info")[:2] == [
        "The qemu driver process seems already stopped",
        "The host agent process seems already stopped",
    ]


def test_delete_by_force_of_a_running_instance_leaves_nothing(lima, waiting):
    lima.create()

    with lima.started() as process:
        lima.delete()
        process.wait(30)

    waiting(lambda: not lima.processes())
    assert [path.name for path in lima.home.iterdir()] == ["_config"]


def test_delete_takes_several_names_and_does_not_mind_unknown_ones(lima):
    for name in ("a", "b"):
        lima.create(name)

    done = lima.run("delete", "a", "nobody", "b").expect()

    assert done.said("info")[-1] == f"Deleted `b` (`{lima.home}/b`)"
    assert f"Deleted `a` (`{lima.home}/a`)" in done.said("info")
    assert [path.name for path in lima.home.iterdir()] == ["_config"]


def test_a_killed_host_agent_leaves_its_vm_and_a_broken_instance(lima, waiting):
    lima.create()

    with lima.started() as process:
        qemu = lima.pid("a", "qemu")
        process.kill()
        process.wait()

        assert psutil.pid_exists(qemu)
        found = lima.listed()
        assert (found["status"], found["errors"], found["driverPID"]) == ("Broken", [], qemu)
        broken = "qemu driver is running but host agent is not"
        lima.run("start", "a").expect(f"errors inspecting instance: [{broken}]")
        lima.run("stop", "a").expect("expected status `Running`, got `Broken` (maybe use `limactl stop -f`?)")
        lima.run("delete", "a").expect(
            "failed to delete instance `a`: expected status `Stopped`, got `Broken`"
        )
        lima.delete()

    waiting(lambda: not lima.processes())
    assert lima.run("list", "--quiet").out == ""


def test_an_instance_starts_again_after_each_kind_of_death(lima):
    lima.create()
    with lima.started() as process:
        process.kill()
        process.wait()
        lima.run("stop", "--force", "a").expect()

    with lima.started() as process:
        os.kill(lima.pid("a", "qemu"), signal.SIGKILL)
        process.wait(30)

    with lima.started():
        assert lima.listed()["status"] == "Running"


def test_files_with_ids_of_dead_processes_are_removed_by_who_looks(lima):
    folder = lima.create()
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in ("ha.pid", "qemu.pid"):
        (folder / name).write_text(f"{dead.pid}\n")

    assert lima.listed()["status"] == "Stopped"

    assert lima.pid("a", "ha") is None


def test_a_process_id_that_is_another_s_makes_a_broken_instance(lima):
    folder = lima.create()
    (folder / "qemu.pid").write_text(f"{os.getpid()}\n")

    found = lima.listed()

    assert (found["status"], found["driverPID"]) == ("Broken", os.getpid())
    (folder / "qemu.pid").write_text("x\n")
    assert lima.listed()["status"] == "Broken"


def test_a_taken_port_ends_the_start_and_qemu_says_why(lima):
    lima.create()

    with socket.create_server(("127.0.0.1", lima.port)):
        process = lima.begin("start", "--foreground", "a")
        process.communicate(timeout=60)
        background = lima.run("start", "a")

    assert process.returncode == 0
    assert states(lima)[-1] == {"exiting": True}
    said = " ".join(message for level, message in lima.log() if message.startswith("qemu[stderr]: "))
    assert "Could not set up host forwarding rule" in said
    (error,) = background.said("fatal")
    assert error.startswith(("exiting, status={", "host agent process has exited"))
    expect_stopped(lima)


def test_an_ssh_that_waits_for_an_answer_outlives_its_host_agent_and_names_only_the_home(lima, waiting):
    """Who cleans up has to find it: no path with the instance's name is among its arguments."""
    lima.create()

    with socket.create_server(("127.0.0.1", lima.port)) as other:
        process = lima.begin("start", "--foreground", "a")
        connection, _ = other.accept()
        process.communicate(timeout=60)
        with connection:
            (left,) = lima.processes()
            words = left.cmdline()

    assert words[0] == "ssh"
    assert f'IdentityFile="{lima.home}/_config/user"' in words
    assert str(lima.home / "a") not in " ".join(words)
    waiting(lambda: not lima.processes())


def test_a_qemu_that_refuses_its_arguments_ends_the_start(lima):
    lima.create()
    env = {"QEMU_SYSTEM_X86_64": "qemu-system-x86_64 -cpu max -no-such-option"}

    process = lima.begin("start", "--foreground", "a", env=env)
    process.communicate(timeout=60)

    assert process.returncode == 0
    assert states(lima)[-1] == {"exiting": True}
    assert "Driver stopped due to error: `exit status 1`" in lima.phases()
    expect_stopped(lima)


def test_a_qemu_that_is_not_there_ends_the_start_with_an_error(lima):
    lima.create()
    env = {"QEMU_SYSTEM_X86_64": "no-such-qemu -S"}

    process = lima.begin("start", "--foreground", "a", env=env)
    process.communicate(timeout=60)

    assert process.returncode == 1
    assert states(lima) == [{"exiting": True}]
    assert lima.log()[-1] == ("fatal", 'exec: "no-such-qemu": executable file not found in $PATH')
    expect_stopped(lima)
