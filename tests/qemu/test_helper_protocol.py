import json
import os
import select
import socket
import stat
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claude_vm.drivers.guest.helper import holder_process, job, operations, paths, port, system
from claude_vm.drivers.guest.helper.operations import Helper
from claude_vm.drivers.guest.helper.requests import Lines

IDENTITY = {
    "id": "1",
    "op": "identify",
    "entropy": "QUFB" * 16,
    "unix_s": 1.5,
    "hostname": "claude-vm-1",
    "machine_id": "0" * 32,
    "user": "root",
    "host_key": "private",
    "authorized_key": "public",
}
shared = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


class Sessions:
    """Takes the place of what starts the sessions' holder, and writes down what it is told."""

    process = None

    def __init__(self):
        self.told = []

    def start(self, name):
        self.told.append(("start", name))

    def say(self, word):
        self.told.append(word)


class Sshd:
    """Takes the place of what starts sshd, and writes down what it is told."""

    down = False

    def __init__(self):
        self.told = []

    def __getattr__(self, name):
        return lambda: self.told.append(name)


class Recorder:
    """A System that only writes down what it is asked."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *arguments: self.calls.append((name, arguments))


@pytest.fixture
def guest(tmp_path, monkeypatch):
    """A helper whose files are in a scratch folder and whose system calls are recorded."""
    run = tmp_path / "run"
    run.mkdir()
    places = {
        "RUN": run,
        "IDENTIFIED": run / "identified",
        "SEALED": run / "sealed",
        "SSHD_EMPTY": run / "sshd",
    }
    for name, value in places.items():
        monkeypatch.setattr(paths, name, str(value))
    monkeypatch.setattr(
        operations, "make_directories", lambda path, _owner: Path(path).mkdir(parents=True, exist_ok=True)
    )
    monkeypatch.setattr(os, "fchown", lambda *_: None)
    for module in (operations, job):
        monkeypatch.setattr(module, "account", lambda _name: (os.getuid(), os.getgid(), str(tmp_path)))
    real = operations.replace
    recorder = Recorder()

    def replace(path, data, mode, owner=(0, 0)):
        recorder.calls.append(("replace", (path.removeprefix(str(run)),)))
        real(path, data, mode, owner)

    monkeypatch.setattr(operations, "replace", replace)
    monkeypatch.setattr(operations, "HolderProcess", Sessions)
    return Helper(recorder, Sshd())


def ask(guest, **request):
    return json.loads(guest.answer(json.dumps(request).encode()))


@given(st.lists(st.binary(max_size=40)), st.integers(min_value=1, max_value=30))
@shared
def test_lines_do_not_depend_on_how_the_stream_is_cut(chunks, size):
    stream = b"".join(chunks)
    whole, cut = Lines(20), Lines(20)

    expected = whole.feed(stream)
    found = [line for start in range(0, len(stream), size) for line in cut.feed(stream[start : start + size])]

    assert found == expected


def test_a_line_that_is_too_long_is_dropped_and_the_next_one_is_read():
    lines = Lines(8)

    assert lines.feed(b"123456789") == []
    assert lines.feed(b"0\nnext\n") == [b"next"]
    assert len(lines.buffer) == 0


@given(st.binary(max_size=200))
@shared
def test_no_bytes_make_the_helper_fail(guest, data):
    answer = json.loads(guest.answer(data))

    assert answer["ok"] is False
    assert guest.identified is False


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@given(st.sampled_from(sorted(set(IDENTITY) - {"id", "op"})), json_values)
@shared
def test_no_field_of_identify_makes_the_helper_fail(guest, name, value):
    guest.identified = False
    answer = ask(guest, **{**IDENTITY, name: value})

    assert answer["ok"] is guest.identified


@pytest.mark.parametrize("operation", ["mount", "files", "clock", "resize", "unmount", "run"])
@given(
    fields=st.dictionaries(
        st.sampled_from(["mounts", "files", "unix_s", "bytes", "path", "argv"]), json_values
    )
)
@shared
def test_no_request_makes_the_helper_fail(guest, operation, fields):
    answer = ask(guest, **{"id": "7", "op": operation, "user": 5, **fields})

    assert answer["id"] == "7"


def test_deep_nesting_is_refused(guest):
    assert json.loads(guest.answer(b"[" * 100_000))["ok"] is False


def test_random_state_comes_before_keys_and_names(guest):
    assert ask(guest, **IDENTITY) == {"id": "1", "ok": True}

    names = [name for name, _ in guest.system.calls]
    assert names[0] == "reseed"
    assert guest.ssh.told == ["open"]
    assert guest.system.calls.index(("reseed", (b"AAA" * 16,))) < names.index("replace")
    assert guest.identified


def test_ssh_stays_closed_when_the_random_pool_can_not_be_reseeded(guest):
    def refuse(_entropy):
        raise PermissionError(1, "Operation not permitted")

    guest.system.reseed = refuse

    assert ask(guest, **IDENTITY)["error"] == "Operation not permitted"
    assert not guest.identified
    assert guest.system.calls == []
    assert guest.ssh.told == []


def test_ssh_opens_with_its_keys_and_before_the_names(guest, tmp_path):
    seen = []

    class Opens(Sshd):
        def open(self):
            folder = tmp_path / "run/ssh"
            seen.append([(folder / name).read_text() for name in ("host_key", "authorized_key")])
            seen.append([name for name, _ in guest.system.calls])

    guest.ssh = Opens()
    ask(guest, **IDENTITY)

    keys, calls = seen
    assert keys == ["private", "public"]
    assert "reseed" in calls
    assert "set_names" not in calls


def test_a_seal_takes_identity_and_keys_away_and_forbids_run(guest, tmp_path):
    ask(guest, **IDENTITY)
    assert (tmp_path / "run/ssh/host_key").read_text() == "private"

    ask(guest, id="2", op="seal")

    assert not guest.identified
    assert list((tmp_path / "run/ssh").iterdir()) == []
    assert guest.ssh.told == ["open", "prepare"]
    assert ask(guest, id="3", op="run", argv=["true"], user="root", limit_s=1)["error"] == "sealed"


def test_shells_wait_from_the_first_moment_of_a_guest_and_none_is_in_a_snapshot(guest):
    ask(guest, **IDENTITY)
    assert guest.sessions.told == [("start", "root"), "prime"]

    ask(guest, id="2", op="seal")
    assert guest.sessions.told[2:] == ["forget"]


def test_the_holder_is_reached_as_soon_as_it_is_started_and_there_is_one(short, monkeypatch):
    monkeypatch.setattr(paths, "HOLDER", str(short / "holder"))
    monkeypatch.setattr(
        holder_process, "make_directories", lambda path, _owner: Path(path).mkdir(exist_ok=True)
    )
    monkeypatch.setattr(holder_process, "account", lambda _name: (os.getuid(), os.getgid(), str(short)))
    monkeypatch.setattr(holder_process, "groups", lambda _name: None)
    monkeypatch.setattr(holder_process, "let_die", lambda _pid: None)
    first, again = holder_process.HolderProcess(), holder_process.HolderProcess()
    first.start("me")
    try:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(str(short / "holder/socket"))
            stream.sendall(b"L\0\0\0\0")
            assert stream.recv(100) == b"L\0\0\0\2[]"
        pid = first.process.pid
        first.start("me")
        again.start("me")
        assert first.process.pid == pid
        assert again.process is None
        assert stat.S_IMODE((short / "holder/socket").stat().st_mode) == 0o600
    finally:
        with first.process as process:
            process.kill()


def test_a_helper_that_starts_again_is_what_it_was(guest):
    ask(guest, **IDENTITY)
    again = Helper(guest.system, Sshd())
    assert again.identified
    assert again.ssh.told == ["open"]

    ask(guest, id="2", op="seal")
    again = Helper(guest.system, Sshd())
    assert not again.identified
    assert again.ssh.told == []
    assert again.sealed


def test_mounts_come_in_depth_order_and_read_only_ones_are_flagged(guest, monkeypatch):
    mounts = [
        {"tag": "slot1", "path": "/a/b", "readonly": True, "options": "o"},
        {"tag": "slot0", "path": "/a", "readonly": False, "options": "o"},
    ]
    monkeypatch.setattr(operations, "make_directories", lambda *_: None)

    assert ask(guest, id="1", op="mount", mounts=mounts)["ok"]

    calls = [arguments for name, arguments in guest.system.calls if name == "mount"]
    assert [call[1] for call in calls] == ["/a", "/a/b"]
    assert [call[3] & system.MS_RDONLY for call in calls] == [0, system.MS_RDONLY]


@pytest.mark.parametrize("path", ["../etc/x", "/a/../b", "a\0b"])
def test_paths_with_surprises_are_refused(guest, path):
    file = {"path": path, "data": "", "mode": 0o600, "owner": "user", "append": False}

    assert "path" in ask(guest, id="1", op="files", files=[file])["error"]


def test_a_file_takes_the_place_of_a_link_instead_of_following_it(guest, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("old")
    (tmp_path / "link").symlink_to(outside)
    guest.user = (os.getuid(), os.getgid(), str(tmp_path))

    file = {"path": "link", "data": "bmV3", "mode": 0o640, "owner": "user", "append": False}
    assert ask(guest, id="1", op="files", files=[file])["ok"]

    assert outside.read_text() == "old"
    assert not (tmp_path / "link").is_symlink()
    assert (tmp_path / "link").read_bytes() == b"new"
    assert (tmp_path / "link").stat().st_mode & 0o7777 == 0o640


@pytest.mark.timeout(10)
def test_appending_to_a_pipe_is_refused_without_waiting(guest, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    guest.user = (os.getuid(), os.getgid(), str(tmp_path))

    file = {"path": "pipe", "data": "bmV3", "mode": 0o600, "owner": "user", "append": True}

    assert ask(guest, id="1", op="files", files=[file])["ok"] is False


def test_a_file_name_of_255_bytes_works(guest, tmp_path):
    guest.user = (os.getuid(), os.getgid(), str(tmp_path))
    name = "n" * 255

    file = {"path": name, "data": "bmV3", "mode": 0o600, "owner": "user", "append": False}

    assert ask(guest, id="1", op="files", files=[file])["ok"]
    assert (tmp_path / name).exists()


def test_a_program_answers_when_it_has_ended(guest, monkeypatch):
    request = {"id": "9", "op": "run", "argv": ["sh", "-c", "echo out; exit 3"], "user": "x", "limit_s": 20}
    own_user = {"user": None, "group": None, "extra_groups": None}
    monkeypatch.setattr(job, "Popen", lambda *a, **k: subprocess.Popen(*a, **{**k, **own_user}))

    assert guest.answer(json.dumps(request).encode()) == b""
    line = b""
    while not line:
        line = guest.go_on()
    assert json.loads(line) == {"id": "9", "ok": True, "status": 3, "output": "out\n"}
    assert guest.job is None


def test_an_answer_waits_for_the_news_that_the_host_is_back():
    ours, theirs = os.openpty()
    name = os.ttyname(theirs)
    os.close(theirs)  # hung up, as a port whose host is not there
    os.set_blocking(ours, False)
    sender = threading.Thread(target=port.send, args=(ours, b"answer\n"))
    sender.start()
    sender.join(0.2)
    theirs = os.open(name, os.O_RDWR | os.O_NOCTTY)
    ready, _, _ = select.select([theirs], [], [], 5)
    assert ready
    assert os.read(theirs, 100) == b"answer\n"
    sender.join()
    os.close(ours)
    os.close(theirs)


def test_an_answer_to_a_host_that_has_gone_is_dropped(monkeypatch):
    monkeypatch.setattr(port, "HOST_BACK_S", 0.05)
    ours, theirs = os.openpty()
    os.close(theirs)
    os.set_blocking(ours, False)
    port.send(ours, b"answer\n")
    os.close(ours)
