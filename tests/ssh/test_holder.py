"""The guest's holder against whoever connects to it: real shells, a real loop, no SSH."""

import contextlib
import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_vm.drivers.guest.holder import Connections, Holder, Loop, holding, loop, remaining
from claude_vm.drivers.guest.holder.connection import MOST_QUEUED
from claude_vm.drivers.guest.holder.frames import encode
from claude_vm.drivers.guest.holder.holding import MAX_SHELLS
from claude_vm.drivers.guest.holder.output import KEPT
from claude_vm.drivers.guest.holder.shell import INPUT_WINDOW

WAIT = "printf R >&9; read id <&9; "
TERMINAL = ("/bin/sh", "-c", WAIT + 'exec sh -c "$COMMAND" 9>&-')
PIPES = ("/bin/sh", "-c", WAIT + 'exec sh -c "$COMMAND" <&3 >&4 3<&- 4>&- 9>&-')


class Client:
    """One connection; the loop turns while it waits, so that nothing sleeps."""

    def __init__(self, held):
        self.held = held
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        self.stream = ours
        self.data = b""
        self.ended = False
        held.connections.accept(theirs)

    def say(self, letter, payload=b""):
        if not isinstance(payload, bytes):
            payload = json.dumps(payload).encode()
        self.raw(encode(letter, payload))

    def raw(self, data):
        while data and not self.ended:
            try:
                data = data[self.stream.send(data) :]
            except BlockingIOError:
                self.held.run_once()
                self.read()
            except OSError:
                self.ended = True
        self.held.run_once()

    def read(self):
        try:
            part = self.stream.recv(1 << 20)
        except BlockingIOError:
            return
        except OSError:
            part = b""
        self.ended = self.ended or not part
        self.data += part

    def frames(self):
        found, rest = [], self.data
        while len(rest) >= 5:
            letter, length = struct.unpack_from(">cI", rest)
            if len(rest) < 5 + length:
                break
            found.append((letter, rest[5 : 5 + length]))
            rest = rest[5 + length :]
        return found

    def until(self, letter):
        for _ in range(5000):
            self.read()
            found = [payload for name, payload in self.frames() if name == letter]
            if found:
                return found[-1]
            assert not self.ended, self.data
            self.held.run_once()
        raise AssertionError(self.data[-200:])

    def session(self, name, command="cat", kind="pipes"):
        self.held.holder.environment["COMMAND"] = command
        self.say(b"P", {"kind": kind, "term": "xterm"})
        self.until(b"R")
        self.say(b"S", {"session": name, "size": [24, 80, 0, 0]})
        return self

    def output(self):
        return b"".join(payload[8:] for letter, payload in self.frames() if letter == b"O")


class Held:
    """A holder whose loop turns when it is told."""

    def __init__(self, *, adopts=False):
        self.loop = Loop()
        self.holder = Holder(
            self.loop,
            terminal_argv=TERMINAL,
            pipes_argv=PIPES,
            environment={"PATH": os.environ["PATH"]},
            adopts=adopts,
        )
        self.connections = Connections(self.holder)
        self.clients = []

    def client(self):
        client = Client(self)
        self.clients.append(client)
        return client

    def run_once(self):
        self.loop.poll(self, lambda: None)  # so that it waits 50 ms at the most
        self.loop.run_once()

    def until(self, true):
        for _ in range(5000):
            if true():
                return
            self.run_once()
        raise AssertionError

    def close(self):
        self.holder.close()
        self.connections.close()
        self.loop.close()
        for client in self.clients:
            client.stream.close()


@pytest.fixture(autouse=True, scope="module")
def quick_turns():
    """A turn of the loop in which nothing happens is short."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "_EXIT_POLL_S", 0.002)
        yield


@pytest.fixture
def held():
    held = Held()
    yield held
    held.close()


words = st.sampled_from(["pty", "pipes", "xterm", "s1", "s2", "", "-", "\ud800", "\0", "x" * 70])
values = st.one_of(
    words, st.none(), st.integers(), st.floats(), st.booleans(), st.lists(st.integers(-1, 70000), max_size=5)
)
requests = st.builds(
    lambda letter, fields: encode(letter, json.dumps(fields).encode()),
    st.sampled_from([b"P", b"T", b"S", b"L"]),
    st.dictionaries(
        st.sampled_from(["kind", "term", "session", "out", "err", "size"]), values | st.just([1, 2, 3, 4])
    )
    | values,
)
garbage = st.one_of(
    requests,
    st.binary(max_size=30),
    st.builds(encode, st.sampled_from([bytes([c]) for c in b"PTSLIEWKA?"]), st.binary(max_size=20)),
    st.builds(lambda a, b: encode(b"A", struct.pack(">QQ", a, b)), *[st.integers(0, 2**64 - 1)] * 2),
)


@given(st.lists(st.tuples(st.integers(0, 2), garbage), max_size=12))
@settings(max_examples=40)
def test_no_frames_make_the_holder_fail_and_other_sessions_go_on(said):
    held = Held()
    try:
        other = held.client().session("other")
        taken = held.client().session("s1")
        clients = [taken, held.client(), held.client()]
        for index, data in said:
            if clients[index].ended:
                clients[index] = held.client()
            clients[index].raw(data)
            clients[index].read()
        other.say(b"I", b"still here\n")
        held.until(lambda: other.read() or b"still here\n" in other.output())
    finally:
        held.close()


@pytest.mark.parametrize(
    "request_",
    [
        (b"P", {"kind": "pty", "term": "a\ud800"}),
        (b"P", {"kind": "pty", "term": "x" * 100_000}),
        (b"P", {"kind": [], "term": "x"}),
        (b"T", {"session": "s1", "out": 1.5, "err": None}),
        (b"T", {"session": "s1", "out": "1", "err": None}),
        (b"T", {"session": "nobody"}),
        (b"S", {"session": "s3", "size": [1, 2, 3, 4]}),
        (b"I", b"x"),
        (b"Q", b""),
        (b"P", b"[" * 100_000),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left_of_it(held, request_):
    held.client().session("s1")
    before = len(list(Path("/proc/self/fd").iterdir()))
    client = held.client()
    client.say(*request_)
    assert client.until(b"!")
    held.until(lambda: client.read() or client.ended)
    client.stream.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [row["session"] for row in held.holder.listing()] == ["s1"]


def test_a_frame_that_is_too_long_is_refused_before_it_is_kept(held):
    client = held.client()
    client.raw(struct.pack(">cI", b"I", 1 << 30))
    assert b"too long" in client.until(b"!")


def test_a_wrong_size_leaves_the_shell_no_session(held):
    client = held.client()
    client.say(b"P", {"kind": "pty", "term": "x"})
    client.until(b"R")
    client.say(b"S", {"session": "s1", "size": ["a", 1, 2, 3]})
    client.until(b"!")
    assert held.holder.listing() == []


def test_a_shell_that_cannot_be_started_leaves_no_descriptor(held):
    held.holder.pipes_argv = held.holder.terminal_argv = ("/no/such/program",)
    before = len(list(Path("/proc/self/fd").iterdir()))
    for kind in ("pty", "pipes"):
        client = held.client()
        client.say(b"P", {"kind": kind, "term": "x"})
        client.until(b"!")
        held.until(lambda client=client: client.read() or client.ended)
        client.stream.close()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_two_sessions_never_have_one_name(held):
    held.client().session("s1")
    client = held.client().session("s1")
    assert b"of this name" in client.until(b"!")


@pytest.mark.parametrize("kind", ["pty", "pipes"])
def test_no_input_reaches_a_shell_before_its_session(held, kind):
    client = held.client()
    client.say(b"P", {"kind": kind, "term": "x"})
    client.until(b"R")
    client.say(b"I", b"\3")
    assert b"before the session" in client.until(b"!")


def test_more_input_than_the_window_is_refused_also_again_and_again(held):
    held.client().session("s1", "sleep 1000")
    for _ in range(4):
        client = held.client()
        client.say(b"T", {"session": "s1"})
        for _ in range(6):
            if not client.ended:
                client.say(b"I", bytes(100_000))
                client.read()
        assert b"window" in client.until(b"!")
    (shell,) = held.holder.shells
    assert len(shell._input) <= INPUT_WINDOW


def test_too_many_shells_are_refused_and_there_is_room_again(held, monkeypatch):
    assert MAX_SHELLS == 64
    monkeypatch.setattr(holding, "MAX_SHELLS", 3)
    clients = [held.client() for _ in range(4)]
    for client in clients:
        client.say(b"P", {"kind": "pipes", "term": "x"})
    assert b"too many shells" in clients[3].until(b"!")
    clients[0].until(b"R")
    clients[0].stream.close()
    held.until(lambda: len(held.holder.shells) == 2)
    again = held.client()
    again.say(b"P", {"kind": "pipes", "term": "x"})
    again.until(b"R")


def test_the_newer_of_two_connections_to_a_session_takes_its_place(held):
    first = held.client().session("s1")
    first.say(b"I", b"one")
    held.until(lambda: first.read() or first.output() == b"one")
    second = held.client()
    second.say(b"T", {"session": "s1", "out": None, "err": None})
    held.until(lambda: first.read() or first.ended)
    second.say(b"I", b"two")
    held.until(lambda: second.read() or second.output() == b"onetwo")


def test_a_reader_that_is_slow_holds_up_only_its_own_session(held):
    slow = held.client().session("slow", "cat /dev/zero")
    quick = held.client().session("quick")
    for number in range(50):
        quick.say(b"I", b"%02d" % number)
        held.until(lambda: quick.read() or len(quick.output()) == 2 * (number + 1))  # noqa: B023
    shell = slow.held.holder.session("slow")
    held.until(lambda: shell.outputs[0].kept.data)
    assert 0 < len(shell.outputs[0].kept.data) <= KEPT + (1 << 16)
    assert len(shell.connection._waiting) <= MOST_QUEUED


def test_who_asks_and_reads_no_answer_costs_little(held):
    client = held.client().session("s1")
    (connection,) = held.connections._open
    sent = 0
    for _ in range(300):
        try:
            sent += client.stream.send(encode(b"L") * 2000)
        except BlockingIOError:
            held.run_once()
    assert sent > 100_000
    assert len(connection._waiting) < MOST_QUEUED + (1 << 21)


def test_a_killed_shell_tells_the_number_of_its_signal(held):
    client = held.client().session("s1", "sleep 1000")
    client.say(b"K", b"KILL")
    assert client.until(b"X") == struct.pack(">I", 128 + signal.SIGKILL)
    assert sys.platform == "linux"


def kinds(held):
    return sorted(shell.kind for shell in held.holder.shells)


def ready(held):
    return sum(shell.ready for shell in held.holder.shells)


def test_shells_are_started_in_turn_each_when_the_former_one_waits(held):
    held.holder.prime_in_turn(("pty", "pipes"))
    assert kinds(held) == ["pty"]
    held.until(lambda: ready(held) == 1)
    assert kinds(held) == ["pipes", "pty"]
    held.until(lambda: ready(held) == 2)
    assert kinds(held) == ["pipes", "pty"]


def test_a_shell_whose_turn_has_not_come_is_started_for_who_asks_and_not_again(held):
    held.holder.prime_in_turn(("pty", "pipes"))
    held.client().session("1")
    held.until(lambda: ready(held) == 2)
    assert kinds(held) == ["pipes", "pty"]


def test_a_shell_that_dies_in_its_turn_does_not_stop_the_next_one(held):
    held.holder.prime_in_turn(("pty", "pipes"))
    os.killpg(next(iter(held.holder.shells)).pid, signal.SIGKILL)
    held.until(lambda: kinds(held) == ["pipes"])


def test_a_shell_that_is_given_up_in_its_turn_does_not_stop_the_next_one(held):
    held.holder.prime_in_turn(("pty", "pipes"))
    client = held.client()
    client.say(b"P", {"kind": "pty", "term": holding.TERM})
    client.stream.close()
    held.until(lambda: kinds(held) == ["pipes"])


def test_turns_do_not_outlive_the_shells(held):
    held.holder.prime_in_turn(("pty", "pipes"))
    held.holder.close()
    held.client().session("1", kind="pty")
    assert kinds(held) == ["pty"]


@pytest.fixture
def adopting():
    """A holder that adopts what its sessions leave: this process does, as long as the test lasts."""
    remaining.adopt_orphans()
    held = Held(adopts=True)
    yield held
    held.holder.close()
    while left := held.holder.orphans.listed():  # one that is killed may leave its children to us
        for process in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    held.close()
    remaining.adopt_orphans(False)


def left(client):
    """What a session that ended left behind, told after its status."""
    client.until(b"X")
    names = [letter for letter, _ in client.frames()]
    if b"B" not in names:
        return None
    assert names.index(b"B") < names.index(b"X")
    client.held.until(lambda: client.read() or [name for name, _ in client.frames()].count(b"B") == 2)
    return json.loads(client.until(b"B"))


@pytest.mark.parametrize("kind", ["pty", "pipes"])
@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("sleep 701 & exit 3", ["sleep 701"]),
        ("setsid -f sleep 702 >/dev/null 2>&1 </dev/null", ["sleep 702"]),
        ("trap '' HUP; (sh -c 'sleep 703; true' &) ; exec sleep 0", ["sleep 703"]),
        ("trap '' HUP; sleep 704 & sleep 705 & :", ["sleep 704", "sleep 705"]),
    ],
)
def test_what_a_session_leaves_at_work_is_told(adopting, kind, line, told):
    before = "trap '' HUP; "  # what has a terminal would end with it
    found = left(adopting.client().session("s1", before + line, kind))
    assert found == {"count": len(told), "commands": told}


@pytest.mark.parametrize("kind", ["pty", "pipes"])
def test_a_session_that_leaves_nothing_says_only_its_status(adopting, kind):
    client = adopting.client().session("s1", "sleep 0; (sleep 0); exit 4", kind)
    assert left(client) is None
    assert client.until(b"X") == struct.pack(">I", 4)


def test_what_is_just_dying_is_not_told(adopting, tmp_path):
    os.mkfifo(tmp_path / "end")
    client = adopting.client().session("s1", f"setsid -f cat {tmp_path}/end >/dev/null; exit 0")
    client.until(b"X")
    assert [letter for letter, _ in client.frames()].count(b"B") == 1
    os.close(os.open(tmp_path / "end", os.O_WRONLY))  # which ends it
    assert left(client) == {"count": 0, "commands": []}


def test_what_was_there_before_a_session_is_not_its_own(adopting):
    profile = "setsid -f sleep 706 </dev/null >/dev/null 2>&1 9>&-; "
    adopting.holder.pipes_argv = (*PIPES[:2], profile + PIPES[2])
    assert left(adopting.client().session("s1", "exit 0")) is None


def test_many_processes_are_counted_and_the_first_ones_named(adopting):
    line = "for i in 1 2 3 4 5 6 7 8 9 10; do setsid -f sleep 80$i >/dev/null 2>&1; done"
    found = left(adopting.client().session("s1", line))
    assert found["count"] == 10
    assert len(found["commands"]) == remaining.MOST_TOLD


def test_a_long_command_line_is_told_in_part(adopting):
    words = "x" * 5000
    found = left(
        adopting.client().session("s1", f"setsid -f tail -f /dev/null --pid=1 -s 9 {words} 2>/dev/null")
    )
    assert len(found["commands"][0]) == remaining.COMMAND_LIMIT


def test_adopted_processes_leave_no_dead_behind_while_a_session_runs(adopting):
    client = adopting.client().session("s1", "for i in 1 2 3; do setsid -f true; done; echo done; cat")
    adopting.until(lambda: client.read() or client.output() == b"done\n")
    assert adopting.holder.orphans.listed()  # dead or dying, and nobody has waited for them
    adopting.until(lambda: adopting.holder.orphans.collect() or not adopting.holder.orphans.listed())
    client.say(b"E")
    assert client.until(b"X") == bytes(4)
