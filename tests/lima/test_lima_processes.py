"""Which processes are those of an instance."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from claude_vm.drivers.lima import processes
from claude_vm.drivers.lima.processes import of_instance
from claude_vm.drivers.process import Marked

NAME = "sv.i-0123456789"
SLEEP = "import signal; signal.pause()"


@pytest.fixture
def folder(short):
    folder = short / "lima" / NAME
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def start():
    started = []

    def begin(*argv, env=None, **options):
        # The first word is what a program calls itself.
        environ = {**os.environ, **(env or {})}
        process = subprocess.Popen(argv, executable=sys.executable, env=environ, **options)
        started.append(process)
        while psutil.Process(process.pid).cmdline() != list(argv):
            pass
        return process.pid

    yield begin
    for process in started:
        process.kill()
        process.wait()


def pids(folder):
    return [process.pid for process in of_instance(folder)]


def test_all_that_lima_starts_is_found_and_the_host_agent_comes_first(folder, start):
    ssh = start(f"ssh: {folder}/ssh.sock [mux]", "-c", SLEEP)
    qemu = start("qemu-system-x86_64", "-c", SLEEP, f"file={folder}/disk,if=none")
    agent = start("/usr/bin/limactl", "-c", SLEEP, "hostagent", "--pidfile", f"{folder}/ha.pid")
    starting = start("limactl", "-c", SLEEP, "start", NAME, env={"LIMA_HOME": str(folder.parent)})
    found = pids(folder)
    assert set(found[:2]) == {agent, starting}
    assert set(found[2:]) == {ssh, qemu}


def test_others_that_bear_the_name_are_left_alone(folder, start, short):
    start("tail", "-c", SLEEP, "-f", f"{folder}/serial.log")
    start("limactl", "-c", SLEEP, "start", NAME, env={"LIMA_HOME": str(short / "other")})
    start("qemu-system-x86_64", "-c", SLEEP, f"file={folder}0/disk")
    start("qemu-system-x86_64", "-c", SLEEP, f"file={short}/other/{NAME}/disk")
    assert pids(folder) == []


@pytest.mark.parametrize(
    "argv",
    [
        ("sh", "-c", SLEEP, "tail -f {folder}/serial.log"),
        ("sh", "-c", SLEEP, "{folder}/start-qemu.bak"),
        ("python3", "-c", SLEEP, "read.py", "{folder}/ha.stdout.log"),
        ("python3", "-c", SLEEP, "{folder}/confine.py"),
        ("ssh", "-c", SLEEP, "elsewhere", "cat {folder}/ha.stderr.log"),
        ("ssh", "-c", SLEEP, "-o", "SetEnv=LOG={folder}/ha.stderr.log", "elsewhere"),
        ("sha256sum", "-c", SLEEP, "{folder}/disk"),
        ("shellcheck", "-c", SLEEP, "{folder}/start-qemu"),
        ("grep", "-c", SLEEP, "limactl", "{folder}/ha.stderr.log"),
        ("grep", "-c", SLEEP, "{folder}/limactl"),
    ],
)
def test_a_program_of_somebodys_own_that_only_reads_there_is_left_alone(folder, start, argv):
    start(*(word.format(folder=folder) for word in argv), env={"LIMA_HOME": str(folder.parent)})
    assert pids(folder) == []


@pytest.mark.parametrize(
    "argv",
    [
        ("/bin/sh", "{folder}/start-qemu", "-name", "guest=x"),
        ("/usr/bin/python3", "-I", "-S", "/x/vm/confine.py", "handover=/d", "qemu", "file={folder}/disk"),
        ("ssh", "-F", "/dev/null", "-o", 'ControlPath="{folder}/ssh.sock"', "-p", "1", "127.0.0.1"),
        ("ssh", "-F", "{folder}/ssh.config", "lima-x"),
        ("/usr/bin/ssh", "-S", "{folder}/ssh.sock", "-O", "exit", "x"),
        ("ssh: {folder}/ssh.sock [mux]",),
    ],
)
def test_what_lima_and_its_qemu_begin_with_is_told_by_how_it_is_called(folder, argv):
    words = [word.format(folder=folder) for word in argv]
    assert processes._is_ours(Marked(1, words), folder)
    others = [word.replace(NAME, f"{NAME}0") for word in words]
    assert not processes._is_ours(Marked(1, others), folder)


def test_a_script_that_stands_for_limactl_is_limactl(folder, start, short):
    (short / "limactl").write_text(SLEEP)
    agent = start("python3", f"{short}/limactl", "hostagent", f"{folder}/ha.pid")
    assert pids(folder) == [agent]


BEGINS_ANOTHER = (
    "import signal, subprocess, sys; "
    "subprocess.Popen(['ssh', '-c', sys.argv[1]], executable=sys.argv[2]); signal.pause()"
)


def test_what_a_host_agent_of_ours_has_begun_is_found_without_the_name(folder, start):
    def children(pid):
        while not (found := psutil.Process(pid).children()) or found[0].cmdline()[:1] != ["ssh"]:
            pass
        return [child.pid for child in found]

    words = ("-c", BEGINS_ANOTHER, SLEEP, sys.executable, "hostagent", f"{folder}/ha.pid")
    agent = start("limactl", *words, start_new_session=True)
    (ours,) = children(agent)
    # In the session of somebody's terminal, others are his own.
    other = start("limactl", *words)
    (theirs,) = children(other)
    try:
        assert set(pids(folder)) == {agent, other, ours}
    finally:
        for pid in (ours, theirs):
            os.kill(pid, signal.SIGKILL)
