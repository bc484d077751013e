"""What a guest listens at: told by the real holder, and by one that lies."""

import json
import socket
import struct
from contextlib import aclosing

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.drivers.guest.holder.listening import listening_ports as read_tables
from claude_vm.supervisor.ssh import listening as module
from claude_vm.supervisor.ssh.errors import LinkLostError, ShellError, SshError
from claude_vm.supervisor.ssh.listening import MOST_PORTS, listening_ports

pytestmark = pytest.mark.anyio

HEAD = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def row(address, port, state="0A"):
    return (
        f"   0: {address}:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000  1000 0 1\n"
    )


def test_all_addresses_and_the_loopback_count_and_nothing_else(tmp_path):
    (tmp_path / "tcp").write_text(
        HEAD
        + row("00000000", 8000)
        + row("0100007F", 3000)
        + row("0F02000A", 4000)  # the guest's address in its network
        + row("3500007F", 5353)  # another address of the loopback network
        + row("0100007F", 5000, "01")  # a connection
    )
    (tmp_path / "tcp6").write_text(
        HEAD
        + row("0" * 32, 9000)
        + row("00000000000000000000000001000000", 9001)
        + row("0000000000000000FFFF00000100007F", 9002)
        + row("0000000000000000FFFF00000F02000A", 9003)
    )
    tables = [str(tmp_path / name) for name in ("tcp", "tcp6", "missing")]
    assert read_tables(tables) == [3000, 8000, 9000, 9001, 9002]


def test_the_tables_of_this_host_have_what_listens_here():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert port in read_tables(["/proc/net/tcp", "/proc/net/tcp6"])
    assert port not in read_tables(["/proc/net/tcp", "/proc/net/tcp6"])


def test_a_table_of_any_length_costs_a_bounded_read_and_gives_a_bounded_answer(tmp_path):
    (tmp_path / "tcp").write_text(HEAD + "".join(row("00000000", port) for port in range(1024, 65535)))
    assert len(read_tables([str(tmp_path / "tcp")])) == MOST_PORTS


@pytest.fixture
def tables(server, tmp_path):
    """Return a way to say what a simulated guest listens at; a real one has this host's own tables."""
    if not hasattr(server, "guest"):
        return None
    folder = server.guest.path("/proc/net")
    folder.mkdir(parents=True)

    def write(*ports):
        (folder / "new").write_text(HEAD + "".join(row("00000000", port) for port in ports))
        (folder / "new").replace(folder / "tcp")

    write()
    return write


async def test_ports_are_told_as_they_come_and_go(link, holder, tables):
    with anyio.fail_after(30):
        async with aclosing(listening_ports(link)) as answers:
            before = await anext(answers)
            with socket.create_server(("127.0.0.1", 0)) as listener:
                port = listener.getsockname()[1]
                assert port not in before
                if tables is not None:
                    tables(port)
                while port not in await anext(answers):
                    pass
            if tables is not None:
                tables()
            while port in await anext(answers):
                pass


@pytest.mark.parametrize("server", ["sim"], indirect=True)
async def test_a_guest_without_tables_says_that_it_can_not_tell(link, holder):
    with pytest.raises(ShellError, match="does not say"):
        await first(link)


async def last(answers):
    """Return the last answer; there is none before an error."""
    found = None
    async for found in answers:
        assert all(0 < port < 65536 for port in found)
    return found


async def first(link):
    async with aclosing(listening_ports(link)) as answers:
        return await anext(answers)


async def test_the_end_of_the_connection_is_told(link, holder, tables):
    async with aclosing(listening_ports(link)) as answers:
        await anext(answers)
        link.cut()
        with pytest.raises(LinkLostError):
            await last(answers)


class Liar:
    """A link whose holder says what it is told to."""

    def __init__(self, said):
        self.said = said
        self.closed = False
        self.channel = self

    async def open_dialogue(self):
        return self, self

    def write(self, data):
        assert data == struct.pack(">cI", b"N", 0)

    def abort(self):
        self.closed = True

    async def readexactly(self, count):
        await anyio.lowlevel.checkpoint()
        if len(self.said) < count:
            raise OSError("the end")
        taken, self.said = self.said[:count], self.said[count:]
        return taken


def frame(letter, payload=b""):
    return struct.pack(">cI", letter, len(payload)) + payload


NONSENSE = {
    "a huge frame": struct.pack(">cI", b"N", 0xFFFFFFFF),
    "another letter": frame(b"X", b"[]"),
    "no JSON": frame(b"N", b"[1,"),
    "no list": frame(b"N", b'{"3000": 1}'),
    "texts": frame(b"N", b'["3000"]'),
    "fractions": frame(b"N", b"[3000.5]"),
    "a port that is none": frame(b"N", b"[65536]"),
    "port zero": frame(b"N", b"[0]"),
    "a negative port": frame(b"N", b"[-1]"),
    "a very large number": frame(b"N", b"[1" + b"0" * 400 + b"]"),
    "too many": frame(b"N", json.dumps(list(range(1, MOST_PORTS + 2))).encode()),
    "deep": frame(b"N", b"[" * 4000),
    "a half": frame(b"N", b"[3000]")[:-1],
    "nothing": b"",
}


@pytest.mark.parametrize("said", NONSENSE)
async def test_nonsense_ends_the_watching_with_an_error(said):
    link = Liar(NONSENSE[said])
    with pytest.raises(SshError):
        await first(link)
    assert link.closed


@given(st.binary(max_size=200))
def test_any_bytes_give_ports_or_an_error(said):
    async def listen():
        with pytest.raises(SshError):
            await last(listening_ports(Liar(said)))

    anyio.run(listen)


async def test_a_guest_that_tells_without_end_is_heard_at_its_turn(monkeypatch):
    pauses = []

    async def pause(seconds):
        pauses.append(seconds)

    monkeypatch.setattr(module.anyio, "sleep", pause)
    with pytest.raises(SshError):
        await last(listening_ports(Liar(frame(b"N", b"[3000]") * 50)))
    assert len(pauses) == 50
    assert set(pauses) == {module.PAUSE_S}
