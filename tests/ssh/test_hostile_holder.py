"""What the supervisor makes of a holder that is not ours: whoever is root in a guest can be it."""

import json
import struct

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from claude_vm.supervisor.ssh.errors import InputClosedError, ShellError, SshError, StatusLostError
from claude_vm.supervisor.ssh.shells import HeldProcess
from claude_vm.supervisor.ssh.stream import ANSWER_S, MOST_UNSENT, MOST_WAITING, Stream

pytestmark = pytest.mark.anyio


class Channel:
    """Takes the place of the library's channel; `unsent` is what it could not pass on."""

    def __init__(self):
        self.unsent = 0
        self.aborted = False
        self.keeps = False

    def write(self, data):
        self.unsent += len(data) if self.keeps else 0

    def is_closing(self):
        return self.aborted

    def abort(self):
        self.aborted = True

    def get_write_buffer_size(self):
        return self.unsent


def frame(letter, payload=b""):
    return struct.pack(">cI", letter, len(payload)) + payload


def out(offset, data, letter=b"O"):
    return frame(letter, struct.pack(">Q", offset) + data)


@pytest.fixture
def stream():
    return make()


def make():
    stream = Stream()
    stream.connection_made(Channel())
    return stream


NONSENSE = {
    "a huge frame": struct.pack(">cI", b"O", 0xFFFFFFFF),
    "an unknown letter": frame(b"?", b"x"),
    "output before its offset": out(10, b"ten") + out(10, b"again"),
    "output with a gap": out(0, b"ten") + out(5, b"later"),
    "output at no offset": out(1 << 63, b"x"),
    "empty output": out(0, b""),
    "output without an offset": frame(b"O", b"short"),
    "output after its end": frame(b"Z", b"1") + out(0, b"x"),
    "the end of a third output": frame(b"Z", b"3"),
    "the end of no output": frame(b"Z", b"0"),
    "an end that is no number": frame(b"Z", b"x"),
    "a status out of range": frame(b"X", struct.pack(">I", 256)),
    "a status that is too long": frame(b"X", b"12345"),
    "input that is no number": frame(b"C", b"1"),
    "remaining processes without end": frame(b"B") + frame(b"B", b'{"count": 1e99, "commands": []}'),
    "less than no remaining process": frame(b"B") + frame(b"B", b'{"count": -1, "commands": []}'),
    "more commands than are told": frame(b"B") + frame(b"B", json.dumps({"commands": ["x"] * 9}).encode()),
    "a command that is too long": frame(b"B") + frame(b"B", json.dumps({"commands": ["x" * 201]}).encode()),
    "commands that are no text": frame(b"B") + frame(b"B", b'{"count": 1, "commands": [1]}'),
    "remaining processes that are no JSON": frame(b"B") + frame(b"B", b"x"),
}


@pytest.mark.parametrize("said", NONSENSE)
async def test_nonsense_ends_this_session_with_an_error(stream, said):
    process = HeldProcess(stream)
    stream.data_received(NONSENSE[said], None)
    assert stream.channel.aborted
    with pytest.raises(StatusLostError, match="invalid data"):
        await process.wait()
    with pytest.raises(InputClosedError):
        await process.write(b"x")


async def test_what_was_written_before_the_nonsense_is_still_read(stream):
    process = HeldProcess(stream)
    stream.data_received(out(7, b"good") + frame(b"?"), None)
    assert await process.read_stdout(100) == b"good"
    assert await process.read_stdout(100) == b""


@pytest.mark.parametrize("size", [100, 1000, 65536])
async def test_endless_output_that_nobody_reads_is_bounded(stream, size):
    offset = 0
    while not stream.closed:
        stream.data_received(out(offset, bytes(size)), None)
        offset += size
        assert offset <= MOST_WAITING + 2 * size
    assert "more than it may" in stream.refusal


async def test_single_bytes_are_not_kept_one_by_one(stream):
    for offset in range(20_000):
        stream.data_received(out(offset, b"x"), None)
    assert len(stream._outputs[0]._chunks) < 100
    assert await HeldProcess(stream).read_stdout(1 << 20) == b"x" * 20_000


async def test_a_holder_that_takes_nothing_is_left(stream):
    stream.channel.keeps = True
    process = HeldProcess(stream)
    for _ in range(MOST_UNSENT):
        process.resize(1, 2)
        if stream.closed:
            break
    assert stream.channel.unsent < MOST_UNSENT + 100
    with pytest.raises(StatusLostError, match="accepts no data"):
        await process.wait()


async def test_a_claim_of_more_input_than_was_sent_opens_no_window(stream):
    process = HeldProcess(stream)
    stream.data_received(frame(b"C", struct.pack(">QQ", 1 << 63, 0)), None)
    with anyio.move_on_after(0.2) as scope:
        await process.write(bytes(10_000_000))
    assert scope.cancelled_caught
    assert stream.input_sent <= 1 << 18


async def test_a_holder_that_does_not_answer_is_given_up(stream, monkeypatch):
    monkeypatch.setattr("claude_vm.supervisor.ssh.stream.ANSWER_S", 0.05)
    assert ANSWER_S > 1

    class Link:
        async def open_holder(self, make_session):
            make_session().connection_made(Channel())

    with pytest.raises(ShellError, match="does not answer"):
        await stream.reopen(Link(), "a1")


async def test_a_refusal_is_shown_without_its_control_characters(stream):
    stream.data_received(frame(b"!", b"no\x1b[2J\nroom\xff" + b"x" * 5000), None)
    with pytest.raises(ShellError) as caught:
        await stream.wait_ready()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1200


frames = st.one_of(
    st.binary(max_size=40),
    st.builds(frame, st.sampled_from([bytes([c]) for c in b"ROFZCXL!?"]), st.binary(max_size=20)),
    st.builds(out, st.integers(0, 40) | st.integers(0, 2**64 - 1), st.binary(max_size=9)),
)


@given(st.lists(frames, max_size=20), st.integers(min_value=1, max_value=50))
@settings(max_examples=300)
def test_no_bytes_make_the_supervisor_fail(said, size):
    async def listen():
        stream = make()
        process = HeldProcess(stream)
        data = b"".join(said)
        for start in range(0, len(data), size):
            stream.data_received(data[start : start + size], None)
        stream.connection_lost(None)
        while await process.read_stdout(10) or await process.read_stderr(10):
            pass
        try:
            assert 0 <= await process.wait() <= 255
        except SshError as error:
            assert str(error).isprintable()  # noqa: PT017 - either end is right

    anyio.run(listen)
