"""``start`` and what an instance is meanwhile: files, processes, events, and QEMU's command line."""

import json
import os
import re
import signal
import socket
import stat
import time
from datetime import datetime
from pathlib import Path

import psutil
import pytest

QEMU = "qemu-system-x86_64"


def test_a_start_in_the_foreground_is_one_process_that_becomes_the_host_agent(lima):
    folder = lima.create()

    with lima.started() as process:
        assert lima.pid("a", "ha") == process.pid
        agent = psutil.Process(process.pid)
        assert [child.pid for child in agent.children() if child.name().startswith("qemu")] == [
            lima.pid("a", "qemu")
        ]
        words = agent.cmdline()
        assert words[-6:] == [
            "hostagent",
            "--pidfile",
            f"{folder}/ha.pid",
            "--socket",
            f"{folder}/ha.sock",
            "a",
        ]
        assert words[-7].rpartition("/")[2] == "limactl"
        found = lima.listed()
        assert found["status"] == "Running"
        assert (found["hostAgentPID"], found["driverPID"]) == (process.pid, lima.pid("a", "qemu"))
        assert "errors" not in found
        process.kill()
        assert process.communicate()[0] == b""


def test_what_the_foreground_says_before_it_becomes_the_host_agent_is_on_stderr(lima):
    lima.create()

    with lima.started() as process:
        process.kill()
        said = process.communicate()[1].decode()

    messages = re.findall(r"level=info msg=\"(.*)\"", said)
    assert messages == [
        "Using the existing instance `a`",
        "Starting the instance `a` with internal VM driver `qemu`",
        "Running the host agent in the foreground",
    ]


def test_a_running_instance_has_sockets_logs_and_a_cd(lima):
    folder = lima.create()

    with lima.started():
        kinds = {path.name: stat.S_IFMT(path.stat().st_mode) for path in folder.iterdir()}

    assert {name for name, kind in kinds.items() if kind == stat.S_IFSOCK} == {
        "ha.sock",
        "qmp.sock",
        "serial.sock",
        "serialv.sock",
    }
    assert {name for name, kind in kinds.items() if kind == stat.S_IFREG} == {
        *("lima.yaml", "lima-version", "cloud-config.yaml", "disk", "cidata.iso", "ssh.config"),
        *("ha.pid", "qemu.pid", "ha.stdout.log", "ha.stderr.log", "serial.log", "serialv.log"),
    }


def test_the_first_event_says_the_port_and_nothing_more(lima):
    lima.create()
    before = time.time()

    with lima.started():
        (event,) = lima.events()

    assert event["status"] == {"sshLocalPort": lima.port}
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+(Z|[+-]\d\d:\d\d)", event["time"])
    whole = re.sub(r"\.(\d{6})\d*", r".\1", event["time"])
    assert before <= datetime.fromisoformat(whole).timestamp() <= time.time()


def test_the_log_tells_the_phases_of_a_start(lima, waiting):
    folder = lima.create()

    with lima.started():
        waiting(lambda: "Waiting for the essential requirement 1 of 2: `ssh`" in lima.phases())

    phases = lima.phases()
    assert phases[0] == f"hostagent socket created at {folder}/ha.sock"
    watch = f"Starting QEMU (hint: to watch the boot progress, see `{folder}/serial*.log`)"
    assert phases[1] == watch
    assert phases[2].startswith("Running in plain mode. ")
    assert phases[3] == "Waiting for the essential requirement 1 of 2: `ssh`"
    line = json.loads((folder / "ha.stderr.log").read_text().splitlines()[0])
    assert set(line) == {"level", "msg", "time"}


def test_without_a_port_one_is_found_and_told_everywhere(lima):
    folder = lima.create(ssh={})
    assert "sshLocalPort" not in lima.listed()

    with lima.started():
        port = lima.events()[0]["status"]["sshLocalPort"]
        assert port > 1023
        assert lima.listed()["sshLocalPort"] == port
        assert f"  Port {port}\n" in (folder / "ssh.config").read_text()
        assert f"hostfwd=tcp:127.0.0.1:{port}-:22" in " ".join(command_line(lima))


def command_line(lima):
    return Path(f"/proc/{lima.pid('a', 'qemu')}/cmdline").read_text().split("\0")[:-1]


def test_words_of_the_environment_come_first_and_win(lima):
    folder = lima.create()
    program = f"'{QEMU}' -machine 'q35,vmport=off' -accel tcg -cpu max -m 65 -S -name \"a b\""

    with lima.started(env={"QEMU_SYSTEM_X86_64": program}):
        words = command_line(lima)
        log = lima.log()

    assert words[0].endswith(f"/{QEMU}")
    assert words[1:12] == [
        *("-machine", "q35,vmport=off", "-accel", "tcg", "-cpu", "max", "-m", "65", "-S"),
        *("-name", "a b"),
    ]
    rest = words[12:]
    assert not {"-machine", "-cpu", "-m"} & set(rest)
    assert rest[rest.index("-smp") + 1] == "1,sockets=1,cores=1,threads=1"
    warnings = [message for level, message in log if level == "warning"]
    assert any(
        w.startswith("Specifying args ([") and w.endswith("is supported only for debugging!")
        for w in warnings
    )
    assert "Not adding QEMU argument `-m` `64`, as it conflicts with `-m` `65`" in warnings
    assert ("-pidfile", f"{folder}/qemu.pid") == tuple(rest[-2:])


def test_qemu_gets_the_disk_the_cd_the_network_and_a_monitor(lima):
    folder = lima.create()
    # As much of a kernel as QEMU reads: the magic number, and a version that takes an initrd.
    (folder / "kernel").write_bytes(bytes(0x202) + b"HdrS\x02\x02" + bytes(8192))
    (folder / "initrd").write_bytes(b"initrd")
    (folder / "kernel.cmdline").write_text("root=/dev/vda rw")

    with lima.started():
        words = command_line(lima)

    address = next(word for word in words if word.startswith("virtio-net-pci,")).rpartition("mac=")[2]
    assert re.fullmatch(r"52:55:55(:[0-9a-f]{2}){3}", address)
    network = "user,id=net0,net=192.168.5.0/24,dhcpstart=192.168.5.15"
    socket_ = "server=on,wait=off"
    assert words[words.index("-m") :] == [
        *("-m", "64", "-smp", "1,sockets=1,cores=1,threads=1", "-device", "qemu-xhci,id=usb-bus"),
        *("-drive", f"file={folder}/disk,if=none,discard=on,id=boot-disk"),
        *("-device", "virtio-blk-pci,drive=boot-disk,bootindex=1"),
        *("-boot", "order=c,splash-time=0,menu=on"),
        *("-drive", f"id=cdrom0,if=none,format=raw,readonly=on,file={folder}/cidata.iso"),
        *("-device", "virtio-scsi,id=scsi0", "-device", "scsi-cd,bus=scsi0.0,drive=cdrom0"),
        *("-kernel", f"{folder}/kernel", "-append", "root=/dev/vda rw", "-initrd", f"{folder}/initrd"),
        *("-netdev", f"{network},hostfwd=tcp:127.0.0.1:{lima.port}-:22"),
        *("-device", f"virtio-net-pci,netdev=net0,mac={address}", "-device", "virtio-rng-pci"),
        *("-audiodev", "none,id=snd0", "-display", "none", "-vga", "none", "-parallel", "none"),
        *(
            "-chardev",
            f"socket,id=char-serial,path={folder}/serial.sock,{socket_},logfile={folder}/serial.log",
        ),
        *("-serial", "chardev:char-serial"),
        "-chardev",
        f"socket,id=char-serial-virtio,path={folder}/serialv.sock,{socket_},logfile={folder}/serialv.log",
        *("-device", "virtio-serial-pci,id=virtio-serial0,max_ports=1"),
        *("-device", "virtconsole,chardev=char-serial-virtio,id=console0"),
        *("-chardev", f"socket,id=char-qmp,path={folder}/qmp.sock,server=on,wait=off"),
        *("-qmp", "chardev:char-qmp", "-name", "lima-a", "-pidfile", f"{folder}/qemu.pid"),
    ]


def test_the_monitor_is_free_for_one_client(lima):
    folder = lima.create()

    with lima.started(), socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        first.connect(str(folder / "qmp.sock"))
        assert json.loads(first.makefile().readline())["QMP"]
        second.connect(str(folder / "qmp.sock"))
        second.settimeout(0.2)
        with pytest.raises(TimeoutError):
            second.recv(1)


def test_a_start_of_a_running_instance_is_fine_and_starts_nothing(lima):
    lima.create()

    with lima.started() as process:
        done = lima.run("start", "a").expect()
        assert lima.pid("a", "ha") == process.pid

    assert done.said("info") == [
        "Using the existing instance `a`",
        "The instance `a` is already running. Run `limactl shell a` to open the shell.",
    ]


def test_what_needs_a_stopped_instance_is_refused_while_it_runs(lima):
    lima.create()

    with lima.started():
        lima.run("clone", "a", "b").expect("cannot clone a running instance")
        lima.run("delete", "a").expect(
            "failed to delete instance `a`: expected status `Stopped`, got `Running`"
        )
        assert lima.listed()["status"] == "Running"
    assert lima.run("list", "--quiet").out == "a\n"


def test_what_needs_a_running_instance_is_refused_before(lima):
    lima.create()

    lima.run("stop", "a").expect("expected status `Running`, got `Stopped` (maybe use `limactl stop -f`?)")
    lima.run("shell", "a", "true").expect(
        "instance `a` is stopped, run `limactl start a` to start the instance"
    )


def test_a_start_in_the_background_that_is_not_ready_in_time_goes_on(lima):
    lima.create()

    done = lima.run("start", "--timeout=1s", "a")

    done.expect("did not receive an event with the `running` status")
    assert f"SSH Local Port: {lima.port}" in done.said("info")
    assert "[hostagent] Waiting for the essential requirement 1 of 2: `ssh`" in done.said("info")
    assert lima.listed()["status"] == "Running"
    agent = psutil.Process(lima.pid("a", "ha"))
    assert os.getpgid(agent.pid) == agent.pid
    lima.delete()


def test_each_start_has_events_logs_and_an_instance_id_of_its_own(lima, ending, waiting):
    folder = lima.create()
    with lima.started() as process:
        first = instance_id(folder)
        ending(lima)
        process.wait()
    older = (folder / "ha.stdout.log").read_text()
    waiting(lambda: f"iid-{int(time.time())}" != first)

    with (folder / "ha.stdout.log").open() as follower, lima.started():
        assert follower.read() == older
        assert older not in (folder / "ha.stdout.log").read_text()
        assert len(lima.events()) == 1
        assert instance_id(folder) != first


def instance_id(folder):
    data = (folder / "cidata.iso").read_bytes()
    return re.search(rb"instance-id: (iid-\d+)\n", data)[1].decode()


def test_an_instance_is_broken_while_its_host_agent_has_no_vm_yet(lima, waiting):
    folder = lima.create()
    gate, slow = lima.root / "gate", lima.root / "slow"
    os.mkfifo(gate)
    slow.write_text(f'#!/bin/sh\nread line <"{gate}"\nexec {QEMU} "$@"\n')
    slow.chmod(0o755)

    process = lima.begin("start", "--foreground", "a", env={"QEMU_SYSTEM_X86_64": str(slow)})
    waiting(lambda: (folder / "ha.sock").exists() and (folder / "ha.pid").exists())
    found = lima.listed()
    again = lima.run("start", "a")
    lima.delete()
    process.communicate(timeout=60)

    assert (found["status"], found["errors"], found["hostAgentPID"]) == ("Broken", [], process.pid)
    again.expect("errors inspecting instance: [host agent is running but driver is not]")
    assert not folder.exists()
    lima.kill_processes()


def test_a_guest_that_can_not_be_reached_is_tried_again_three_seconds_later(lima):
    lima.create()
    deaf = lima.root / "deaf"
    deaf.write_text(
        '#!/bin/bash\nfor word; do words+=("${word/,hostfwd=tcp:*/}"); done\nexec '
        + QEMU
        + ' "${words[@]}"\n'
    )
    deaf.chmod(0o755)
    program = lima.env["QEMU_SYSTEM_X86_64"].replace(QEMU, str(deaf))

    with socket.create_server(("127.0.0.1", lima.port)) as guest:
        guest.settimeout(60)
        with lima.started(env={"QEMU_SYSTEM_X86_64": program}):
            ends = []
            for _ in range(2):
                connection, _ = guest.accept()
                at = time.monotonic()
                connection.close()
                ends.append(at)
            assert lima.listed()["status"] == "Running"

    assert ends[1] - ends[0] >= 3
    assert len(lima.events()) == 1


def test_the_host_agent_answers_at_its_socket(lima):
    folder = lima.create()

    with lima.started():
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(folder / "ha.sock"))
            connection.sendall(b"GET /v1/info HTTP/1.0\r\nHost: lima\r\n\r\n")
            head, _, body = connection.makefile("rb").read().partition(b"\r\n\r\n")
        answer = json.loads(body)
        assert b" 200 OK" in head.splitlines()[0]

    assert answer == {"sshLocalPort": lima.port}


def test_an_older_instance_s_disk_is_found_under_its_old_name(lima):
    folder = lima.create()
    (folder / "disk").rename(folder / "diffdisk")

    with lima.started():
        pass

    assert str((folder / "disk").readlink()) == "diffdisk"


def test_qemu_is_in_a_process_group_of_its_own(lima):
    lima.create()

    with lima.started() as process:
        qemu = lima.pid("a", "qemu")
        assert os.getpgid(qemu) == qemu
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert psutil.pid_exists(qemu)
