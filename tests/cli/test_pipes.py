import hashlib
import json
import os
import signal
import socket
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

from claude_vm.supervisor.wire.messages import WINDOW

EVERY_BYTE = bytes(range(256)) * 300


@pytest.mark.parametrize("status", [0, 1, 2, 37, 125, 143, 255])
def test_the_exit_status_is_the_daemons(scripted, status):
    done = scripted.run("status", str(status))
    assert done.returncode == status
    assert done.stdout == b""
    assert done.stderr == f"leaving with {status}\n".encode()


def test_every_byte_passes_unchanged_both_ways_and_the_end_of_input_too(scripted):
    done = scripted.run("echo", input=EVERY_BYTE)
    assert done.stdout == EVERY_BYTE
    assert done.stderr == b"end of input\n"
    assert done.returncode == 0


def test_stdout_and_stderr_stay_apart(scripted):
    done = scripted.run("outputs")
    assert (done.stdout, done.stderr) == (b"to stdout\n", b"to stderr\n")


def test_words_directory_and_variables_of_any_bytes_arrive_as_they_are(scripted, tmp_path):
    words = [
        b"",
        b" ",
        b"two words",
        b"\"'$(x)`\\",
        b"line\nbreak",
        "häß€😀".encode(),
        b"latin \xe9\xff",
        b"-p",
    ]
    folder = os.fsencode(tmp_path) + b"/sp ace\n\xff"
    os.mkdir(folder)  # noqa: PTH102 - a path of bytes
    for locale in ("C.UTF-8", "C", "de_DE.ISO-8859-1"):
        done = scripted.run(
            "describe", *words, cwd=folder, environ={"LC_ALL": locale, b"ODD": b"x\xfe\xc3\xa9"}
        )
        told = json.loads(done.stdout)
        assert [bytes.fromhex(w) for w in told["argv"]] == words
        assert bytes.fromhex(told["cwd"]) == folder
        assert bytes.fromhex(told["odd"]) == b"x\xfe\xc3\xa9"
        assert told["tty"] == [False, False, False]


def test_a_reader_that_ends_is_141_like_a_death_of_sigpipe(scripted):
    client = scripted.popen("yes", stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
    with client:
        assert client.stdout.readline() == b"y\n"
        client.stdout.close()
        assert client.stderr.read() == b""
        assert client.wait(20) == 141


def test_a_full_disk_beneath_stdout_is_told(scripted):
    with Path("/dev/full").open("wb") as full:
        client = scripted.popen("outputs", stdout=full, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL)
        _, words = client.communicate(timeout=20)
    assert client.returncode == 125
    assert b"No space left on device [output-failed]" in words


def peak_memory(pid, stop, peaks):
    process = psutil.Process(pid)
    while not stop.wait(0.02):
        try:
            peaks.append(process.memory_info().rss)
        except psutil.NoSuchProcess:
            return


@pytest.mark.parametrize("direction", ["produce", "consume"])
def test_64_mib_pass_with_the_same_hash_and_flat_memory(scripted, direction):
    count = 64 * 1024 * 1024
    block = bytes(range(256)) * 256
    digest = hashlib.sha256()
    words = (direction, str(count)) if direction == "produce" else (direction,)
    client = scripted.popen(*words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    stop, client_peaks, server_peaks = threading.Event(), [], []
    watchers = [
        threading.Thread(target=peak_memory, args=(client.pid, stop, client_peaks)),
        threading.Thread(target=peak_memory, args=(scripted.server.pid, stop, server_peaks)),
    ]
    before = psutil.Process(scripted.server.pid).memory_info().rss
    for watcher in watchers:
        watcher.start()
    with client:
        if direction == "consume":
            for _ in range(count // len(block)):
                client.stdin.write(block)
                digest.update(block)
            client.stdin.close()
            told = client.stdout.read()
            assert told == f"{count} {digest.hexdigest()}\n".encode()
        else:
            received, expected = hashlib.sha256(), hashlib.sha256()
            while data := client.stdout.read(1 << 16):
                received.update(data)
            for _ in range(count // len(block)):
                expected.update(block)
            assert received.hexdigest() == expected.hexdigest()
        assert client.wait(60) == 0
    stop.set()
    for watcher in watchers:
        watcher.join()
    mib = 1024 * 1024
    assert max(client_peaks) < 40 * mib
    assert max(server_peaks) - before < 16 * mib


def test_a_receiver_that_stops_stops_the_writer_and_signals_still_pass(scripted):
    client = scripted.popen("ignore-input", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with client:
        assert client.stdout.readline() == b"ready\n"
        descriptor = client.stdin.fileno()
        os.set_blocking(descriptor, False)
        written = 0
        # The pipe is full for good when the client waits and takes nothing any more.
        process = psutil.Process(client.pid)
        while True:
            try:
                written += os.write(descriptor, bytes(4096))
            except BlockingIOError:
                if written >= WINDOW and process.status() == psutil.STATUS_SLEEPING:
                    try:
                        written += os.write(descriptor, bytes(4096))
                    except BlockingIOError:
                        break
        pipe = 64 * 1024
        assert WINDOW <= written <= WINDOW + 2 * pipe
        client.send_signal(signal.SIGINT)
        assert client.wait(20) == 9


def test_a_reader_that_stops_stops_the_sender_and_signals_still_pass(scripted):
    client = scripted.popen("flood", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    with client:
        assert client.stdout.read(1) == b"\x00"
        counts = []
        for _ in range(20):
            client.send_signal(signal.SIGINT)
            counts.append(int(client.stderr.readline()))
        assert max(counts) <= WINDOW + 3 * 64 * 1024
        client.kill()


def test_interrupts_are_passed_on_when_the_command_runs(scripted):
    client = scripted.popen("controls", "pipes", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
    with client:
        assert client.stdout.readline() == b"ready\r\n"
        for _ in range(3):
            client.send_signal(signal.SIGINT)
            assert client.stdout.readline() == b"Signal(name='INT')\r\n"
        client.send_signal(signal.SIGTERM)
        assert client.wait(20) == -signal.SIGTERM


def test_a_second_interrupt_during_the_boot_leaves_at_once(scripted):
    client = scripted.popen("boot", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    with client:
        assert client.stderr.readline() == b"booting\n"
        client.send_signal(signal.SIGINT)
        assert client.stderr.readline() == b"got Signal(name='INT')\n"
        client.send_signal(signal.SIGINT)
        assert client.wait(20) == 130
        assert client.stderr.read() == b""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_ends_the_client_is_what_it_dies_of(scripted, number, tmp_path):
    client = scripted.popen("boot", stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, cwd=tmp_path)
    with client:
        client.stderr.readline()
        client.send_signal(number)
        assert client.wait(20) == -number
        assert client.stderr.read() == b""


def test_an_ignored_hangup_stays_ignored(scripted):
    client = scripted.popen(
        "controls",
        "pipes",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    with client:
        client.stdout.readline()
        client.send_signal(signal.SIGHUP)
        client.send_signal(signal.SIGINT)
        assert client.stdout.readline() == b"Signal(name='INT')\r\n"
        client.kill()


def test_a_lost_daemon_is_125_and_a_message(scripted):
    client = scripted.popen("die", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, words = client.communicate(b"go", timeout=20)
    assert client.returncode == 125
    assert out == b"before\n"
    assert words.startswith(
        b"claude-vm: the daemon ended during the session [daemon-lost]\n  the session goes on"
    )
    assert b"claude-vm ps" in words
    assert b"Traceback" not in words


def test_a_failure_in_the_daemon_is_125_without_a_traceback(scripted):
    done = scripted.run("fail")
    assert done.returncode == 125
    assert done.stderr == b"claude-vm: internal error (KeyError: 'secret place'); the daemon's log has more\n"


def test_a_question_without_a_terminal_is_answered_by_nobody(scripted):
    done = scripted.run("ask", input=b"y\n")
    assert done.stdout == b"answer: None\n"


def test_progress_without_a_terminal_is_plain_lines(scripted):
    assert scripted.run("progress").stderr == b"phase 0\nphase 1\nphase 2\ndone\n"


def test_closed_standard_descriptors_are_no_harm(scripted):
    script = 'exec "$0" "$@" outputs <&- 2>&-'
    done = subprocess.run(
        ["sh", "-c", script, *scripted.command],
        env=scripted.environ,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, b"to stdout\n")


def test_a_removed_directory_is_told_as_it_was(scripted, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    script = 'cd "$0" && rmdir "$0" && exec "$@" describe'
    done = subprocess.run(
        ["sh", "-c", script, gone, *scripted.command],
        env=scripted.environ,
        capture_output=True,
        timeout=20,
        check=False,
    )
    assert bytes.fromhex(json.loads(done.stdout)["cwd"]) == os.fsencode(gone)


def test_the_clients_ssh_agent_answers_when_it_is_asked(scripted, home):
    path = str(home / "agent")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()

        def answer():
            connection, _ = listener.accept()
            with connection:
                heard.append(connection.recv(100))
                connection.sendall(b"key")

        heard = []
        thread = threading.Thread(target=answer)
        thread.start()
        done = scripted.run("agent", environ={"SSH_AUTH_SOCK": path})
        thread.join()
    assert heard == [b"hello agent"]
    assert done.stdout == b"key\n"


@pytest.mark.parametrize("address", [None, "/nonexistent", ""])
def test_without_an_ssh_agent_the_channel_ends(scripted, address):
    environ = {} if address is None else {"SSH_AUTH_SOCK": address}
    assert scripted.run("agent", environ=environ).stdout == b"no agent\n"
