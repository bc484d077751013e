import json
import os

import anyio
import pytest

from claude_vm.supervisor.wire.connected_client import Signal, TerminalSize
from claude_vm.supervisor.wire.errors import (
    AgentRefusedError,
    ClientGoneError,
    OutputClosedError,
    ProtocolError,
)
from claude_vm.supervisor.wire.framing import encode, encode_json, encode_numbers, encode_size
from claude_vm.supervisor.wire.messages import (
    AGENT_WINDOW,
    MAX_AGENTS,
    MAX_DATA,
    PROTOCOL,
    WINDOW,
    FrameType,
)
from claude_vm.supervisor.wire.records import Refusal, judge
from claude_vm.supervisor.wire.version import VERSION

pytestmark = pytest.mark.anyio


def text_of(payload):
    return json.loads(payload)


async def test_a_command_gets_its_invocation_and_its_status_is_the_last_frame(serving):
    seen = []

    async def handler(client):
        seen.append(client.invocation)
        await client.note("begun")
        await client.send_stdout(b"out")
        await client.send_stderr(b"err")
        return 37

    async with serving(handler, begin=False) as client:
        await client.begin(
            argv=["ps", "--json"],
            cwd="/srv",
            env={"A": "b"},
            terminal={"rows": 24, "columns": 80, "term": "xterm"},
        )
        assert text_of(await client.expect(FrameType.HELLO)) == {
            "protocol": PROTOCOL,
            "version": VERSION,
            "pid": os.getpid(),
        }
        assert await client.rest() == [
            (FrameType.NOTE, b'{"text":"begun","level":"info"}'),
            (FrameType.STDOUT, b"out"),
            (FrameType.STDERR, b"err"),
            (FrameType.EXIT, b'{"status":37}'),
        ]
    (invocation,) = seen
    assert invocation.argv == ("ps", "--json")
    assert invocation.cwd == "/srv"
    assert invocation.env == {"A": "b"}
    assert (invocation.terminal.rows, invocation.terminal.columns, invocation.terminal.term) == (
        24,
        80,
        "xterm",
    )


async def test_bytes_that_are_no_utf8_arrive_as_they_were(serving):
    odd = b"caf\xe9 \xff \xc3\xa9".decode("utf-8", "surrogateescape")
    seen = []

    async def handler(client):
        seen.append(client.invocation)
        return 0

    async with serving(handler, begin=False) as client:
        await client.begin(argv=[odd, "", "a\nb\"'\\ \x01"], cwd="/" + odd, env={odd: odd})
        await client.rest()
    (invocation,) = seen
    assert invocation.argv[0].encode("utf-8", "surrogateescape") == b"caf\xe9 \xff \xc3\xa9"
    assert invocation.argv[1:] == ("", "a\nb\"'\\ \x01")
    assert invocation.cwd == "/" + odd
    assert invocation.env == {odd: odd}


async def test_stdin_is_acknowledged_when_the_next_piece_is_asked_for(serving):
    go_on = anyio.Event()
    pieces = []

    async def handler(client):
        client.started_nowait(pty=False)
        pieces.append(await client.receive_stdin())
        await client.send_stderr(b"taken")
        await go_on.wait()
        while pieces[-1]:
            pieces.append(await client.receive_stdin())
        return 0

    async with serving(handler) as client:
        assert text_of(await client.expect(FrameType.STARTED)) == {"pty": False}
        await client.send(encode(FrameType.STDIN, b"one"))
        await client.expect(FrameType.STDERR)
        await client.send(encode(FrameType.STDIN, b"th"), encode(FrameType.STDIN, b"ree"))
        await anyio.wait_all_tasks_blocked()
        go_on.set()
        assert await client.expect(FrameType.STDIN_ACK) == (3).to_bytes(4, "big")
        assert await client.expect(FrameType.STDIN_ACK) == (5).to_bytes(4, "big")
        await client.send(encode(FrameType.STDIN_EOF))
        assert await client.expect(FrameType.EXIT)
    assert pieces == [b"one", b"three", b""]


async def test_a_client_that_reads_nothing_stops_the_sender_within_the_window(serving):
    sent = 0
    stuck = anyio.Event()

    async def handler(client):
        nonlocal sent
        while True:
            if sent == WINDOW:
                stuck.set()
            await client.send_stdout(bytes(MAX_DATA))
            sent += MAX_DATA

    async with serving(handler, capacity=1) as client:
        await stuck.wait()
        await anyio.wait_all_tasks_blocked()
        assert sent == WINDOW
        for _ in range(WINDOW // MAX_DATA):
            await client.expect(FrameType.STDOUT)
        await anyio.wait_all_tasks_blocked()
        assert sent == WINDOW
        await client.send(encode_numbers(FrameType.STDOUT_ACK, 10))
        assert len(await client.expect(FrameType.STDOUT)) == 10
        await client.send(encode(FrameType.STDOUT_CLOSED))
        assert await client.rest() == [(FrameType.EXIT, b'{"status":141}')]


async def test_signals_and_sizes_pass_a_full_stdin(serving):
    controls = []

    async def handler(client):
        client.started_nowait(pty=True)
        controls.extend([await client.next_control() for _ in range(3)])
        return 0

    async with serving(handler) as client:
        await client.expect(FrameType.STARTED)
        for _ in range(WINDOW // MAX_DATA):
            await client.send(encode(FrameType.STDIN, bytes(MAX_DATA)))
        await client.send(
            encode_size(24, 80),
            encode_size(50, 132, 1000, 800),
            encode(FrameType.SIGNAL, b"INT"),
            encode(FrameType.SIGNAL, b"TERM"),
            encode(FrameType.SIGNAL, b"INT"),
        )
        await client.expect(FrameType.EXIT)
    assert controls == [Signal("INT"), Signal("TERM"), TerminalSize(50, 132, 1000, 800)]


async def test_a_client_that_leaves_sets_gone_and_closes_its_outputs(serving):
    ended = []

    async def handler(client):
        client.started_nowait(pty=False)
        await client.gone.wait()
        with pytest.raises(ClientGoneError):
            await client.send_stdout(b"x")
        with pytest.raises(AgentRefusedError):
            await client.open_agent()
        assert await client.prompt("sure?") is None
        await client.note("nobody hears this")
        with anyio.move_on_after(0):
            await client.receive_stdin()
            ended.append("input that was cut off looked complete")
        ended.append("end")
        return 1

    async with serving(handler) as client:
        await client.expect(FrameType.STARTED)
        await client.stream.aclose()
    assert ended == ["end"]


async def test_a_prompt_gives_the_line_and_none_without_a_terminal(serving):
    answers = []

    async def handler(client):
        answers.append(await client.prompt("sure\x1b[2J? "))
        answers.append(await client.prompt("really? "))
        return 0

    async with serving(handler) as client:
        assert text_of(await client.expect(FrameType.PROMPT)) == {"text": "sure\\x1b[2J? "}
        await client.send(encode_json(FrameType.ANSWER, {"line": "y"}))
        await client.expect(FrameType.PROMPT)
        await client.send(encode_json(FrameType.ANSWER, {"line": None}))
        await client.expect(FrameType.EXIT)
    assert answers == ["y", None]


async def test_a_handlers_failure_is_125_and_a_message_without_a_traceback(serving):
    class DiskFullError(Exception):
        code = "disk-full"
        hint = "free some space"

    errors = []

    async def handler(client):
        del client
        raise ExceptionGroup("two", [DiskFullError("no space in \x1b]0;home"), ValueError()])

    async with serving(handler, on_error=errors.append) as client:
        note, end = await client.rest()
    assert text_of(note[1]) == {
        "text": "claude-vm: no space in \\x1b]0;home [disk-full]\n  free some space",
        "level": "error",
    }
    assert end == (FrameType.EXIT, b'{"status":125}')
    assert isinstance(errors[0], ExceptionGroup)


async def test_an_unknown_failure_tells_its_kind_and_points_to_the_log(serving):
    async def handler(client):
        del client
        raise KeyError("x")

    async with serving(handler) as client:
        note, _ = await client.rest()
    assert text_of(note[1])["text"] == "claude-vm: internal error (KeyError: 'x'); the daemon's log has more"
    assert b"Traceback" not in note[1]


@pytest.mark.parametrize("started", [False, True])
async def test_a_closing_server_tells_its_clients_and_where_a_session_may_be_found(serving, started):
    async def handler(client):
        if started:
            client.started_nowait(pty=False)
        else:
            await client.note("soon")
        await anyio.sleep_forever()

    async with serving(handler) as client:
        await client.expect(FrameType.STARTED if started else FrameType.NOTE)
        client.close_server()
        note, end = await client.rest()
    text = text_of(note[1])["text"]
    assert text.startswith("claude-vm: the daemon is shutting down")
    assert [word in text for word in ("may go on", "claude-vm ps", "claude-vm stop")] == [started] * 3
    assert end == (FrameType.EXIT, b'{"status":125}')


async def test_an_agent_channel_is_bounded_both_ways_and_closed_once(serving):
    done = anyio.Event()

    async def handler(client):
        agent = await client.open_agent()
        await agent.send(b"request")
        assert await agent.receive(3) == b"ans"
        assert await agent.receive(2) == b"we"
        assert await agent.receive() == b"r"
        await agent.aclose()
        await agent.aclose()
        with pytest.raises(anyio.ClosedResourceError):
            await agent.receive()
        with pytest.raises(anyio.ClosedResourceError):
            await agent.send(b"x")
        second = await client.open_agent()
        with pytest.raises(anyio.EndOfStream):
            await second.receive()
        with pytest.raises(anyio.BrokenResourceError):
            await second.send(b"x")
        third = await client.open_agent()
        with anyio.move_on_after(0.0):
            await third.send(bytes(AGENT_WINDOW + 1))
        await done.wait()
        return 0

    async with serving(handler) as client:
        first = await client.expect(FrameType.AGENT_OPEN)
        assert await client.expect(FrameType.AGENT_DATA) == first + b"request"
        await client.send(
            encode(FrameType.AGENT_ACK, first + (7).to_bytes(4, "big")),
            encode(FrameType.AGENT_DATA, first + b"ans"),
            encode(FrameType.AGENT_DATA, first + b"wer"),
        )
        assert await client.expect(FrameType.AGENT_ACK) == first + (3).to_bytes(4, "big")
        assert await client.expect(FrameType.AGENT_ACK) == first + (2).to_bytes(4, "big")
        assert await client.expect(FrameType.AGENT_CLOSE) == first
        second = await client.expect(FrameType.AGENT_OPEN)
        assert second != first
        await client.send(
            encode(FrameType.AGENT_DATA, first + b"late"), encode(FrameType.AGENT_CLOSE, second)
        )
        third = await client.expect(FrameType.AGENT_OPEN)
        received = 0
        while received < AGENT_WINDOW:
            data = await client.expect(FrameType.AGENT_DATA)
            assert data[:4] == third
            received += len(data) - 4
        assert received == AGENT_WINDOW
        done.set()
        await client.expect(FrameType.EXIT)


async def test_the_number_of_agent_channels_is_bounded(serving):
    async def handler(client):
        agents = [await client.open_agent() for _ in range(MAX_AGENTS)]
        with pytest.raises(AgentRefusedError):
            await client.open_agent()
        await agents[0].aclose()
        await client.open_agent()
        return 0

    async with serving(handler) as client:
        frames = await client.rest()
    assert [f[0] for f in frames].count(FrameType.AGENT_OPEN) == MAX_AGENTS + 1
    assert frames[-1] == (FrameType.EXIT, b'{"status":0}')


@pytest.mark.parametrize(
    "frames",
    [
        b"\xff\x00\x00\x00\x00",
        b"\x10\xff\xff\xff\xff",
        encode(FrameType.STDOUT, b"wrong direction"),
        encode_json(FrameType.HELLO, {"protocol": 1}),
        encode_json(FrameType.ANSWER, {"line": "to no question"}),
        encode_numbers(FrameType.STDOUT_ACK, 1),
        encode(FrameType.SIGNAL, b"KILLALL"),
        encode(FrameType.SIGNAL, b"\xff\xfe"),
        encode(FrameType.STDIN_EOF) + encode(FrameType.STDIN, b"after the end"),
        encode(FrameType.STDIN, bytes(MAX_DATA)) * (WINDOW // MAX_DATA) + encode(FrameType.STDIN, b"1"),
        encode_numbers(FrameType.AGENT_DATA, 7, data=b"of no channel"),
        encode(FrameType.INVOKE, b"{}"),
    ],
)
async def test_what_the_protocol_forbids_cuts_the_client_off_with_a_reason(serving, frames):
    errors = []

    async def handler(client):
        client.started_nowait(pty=False)
        await client.gone.wait()
        return 0

    async with serving(handler, on_error=errors.append) as client:
        await client.expect(FrameType.STARTED)
        await client.send(frames)
        refused = text_of(await client.expect(FrameType.REFUSED))
        assert refused["code"] == "protocol-error"
        assert await client.rest() == []
    assert [type(e) for e in errors] == [ProtocolError]


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x00" * 100,
        encode(FrameType.STDIN, b"x") * 2,
        encode_json(FrameType.HELLO, {"protocol": 1, "version": "1", "pid": 1}) * 2,
        encode(FrameType.HELLO, b"no JSON") + encode(FrameType.INVOKE, b"{}"),
        encode(FrameType.HELLO, b"[1]") + encode(FrameType.INVOKE, b"{}"),
        encode(FrameType.HELLO, b'{"protocol":"1","version":"1","pid":1}') + encode(FrameType.INVOKE, b"{}"),
        encode(FrameType.HELLO, b"[" * 200_000) + encode(FrameType.INVOKE, b"{}"),
    ],
)
async def test_a_wrong_beginning_is_refused(serving, beginning):
    async def handler(client):
        raise AssertionError(client)

    async with serving(handler, begin=False) as client:
        await client.send(beginning)
        assert text_of(await client.expect(FrameType.REFUSED))["code"] == "protocol-error"
        assert await client.next() is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"argv": "ps"},
        {"argv": [1]},
        {"argv": ["a\0b"]},
        {"argv": ["\ud800"]},
        {"cwd": "relative"},
        {"cwd": None},
        {"env": {"A": 1}},
        {"env": []},
        {"terminal": {"rows": "many"}},
        {"terminal": {"colour": True}},
        {"terminfo": "not base64!"},
        {"terminfo": 7},
        {"\udcb4": 7},
        {"terminal": {"\udcb4": 7}},
    ],
)
async def test_a_wrong_invocation_is_refused(serving, wrong):
    async def handler(client):
        raise AssertionError(client)

    message = json.dumps({"argv": [], "cwd": "/", "env": {}, **wrong}).encode()
    async with serving(handler, begin=False) as client:
        await client.send(
            encode_json(FrameType.HELLO, {"protocol": PROTOCOL, "version": VERSION, "pid": 1}),
            encode(FrameType.INVOKE, message),
        )
        assert text_of(await client.expect(FrameType.REFUSED))["code"] == "protocol-error"
        assert await client.next() is None


async def test_a_bug_in_the_handshake_ends_one_connection_and_nothing_else(serving):
    told = []

    def admit(hello, argv):
        raise LookupError("a bug")

    async with serving(None, begin=False, admit=admit, on_error=told.append) as client:
        await client.begin()
        assert await client.next() is None
    assert [type(error) for error in told] == [LookupError]


async def test_a_silent_client_is_refused_in_time(serving):
    async def handler(client):
        raise AssertionError(client)

    async with serving(handler, begin=False, handshake_s=0) as client:
        assert text_of(await client.expect(FrameType.REFUSED))["code"] == "protocol-error"


async def test_another_users_process_is_refused(serving):
    async def handler(client):
        raise AssertionError(client)

    async with serving(handler, begin=False, uid_of=lambda _: os.getuid() + 1) as client:
        assert text_of(await client.expect(FrameType.REFUSED))["code"] == "other-user"
        assert await client.next() is None


async def test_a_process_of_unknown_user_is_refused(serving):
    async def handler(client):
        raise AssertionError(client)

    async with serving(handler, begin=False, uid_of=lambda _: None) as client:
        assert text_of(await client.expect(FrameType.REFUSED))["code"] == "other-user"


@pytest.mark.parametrize(
    ("busy", "code"), [(True, "version-mismatch-busy"), (False, "version-mismatch-idle")]
)
async def test_another_version_is_refused_with_what_to_do(serving, busy, code):
    async def handler(client):
        raise AssertionError(client)

    def admit(hello, argv):
        return judge(hello, argv, busy=busy)

    async with serving(handler, begin=False, admit=admit) as client:
        await client.begin(version="0.0.9", argv=["ps", "daemon", "stop"])
        refused = text_of(await client.expect(FrameType.REFUSED))
    assert refused["code"] == code
    assert "0.0.9" in refused["message"]
    assert VERSION in refused["message"]


async def test_another_protocol_of_our_version_is_refused(serving):
    async def handler(client):
        raise AssertionError(client)

    async with serving(handler, begin=False) as client:
        await client.begin(protocol=PROTOCOL + 1)
        refused = text_of(await client.expect(FrameType.REFUSED))
    assert f"protocol {PROTOCOL + 1}" in refused["message"]


async def test_another_version_may_stop_the_daemon(serving):
    async def handler(client):
        return 0 if client.invocation.argv == ("-v", "daemon", "stop") else 1

    async with serving(handler, begin=False) as client:
        await client.begin(version="9.9", protocol=99, argv=["-v", "daemon", "stop"])
        await client.expect(FrameType.HELLO)
        assert await client.expect(FrameType.EXIT) == b'{"status":0}'


async def test_a_refusal_is_escaped(serving):
    async def handler(client):
        raise AssertionError(client)

    async with serving(handler, begin=False, admit=lambda *_: Refusal("no", "\x9b2J")) as client:
        await client.begin()
        assert text_of(await client.expect(FrameType.REFUSED))["message"] == "\\x9b2J"


async def test_a_cancelled_send_leaves_no_half_frame(serving):
    async def handler(client):
        with anyio.move_on_after(0):
            await client.send_stdout(bytes(3 * WINDOW))
        await client.note("after")
        return 5

    async with serving(handler, capacity=0) as client:
        frames = await client.rest()
    assert [f[0] for f in frames if f[0] is not FrameType.STDOUT] == [FrameType.NOTE, FrameType.EXIT]


async def test_a_long_note_is_cut_visibly(serving):
    async def handler(client):
        await client.note("\x1b" * 1_000_000, "error")
        return 0

    async with serving(handler) as client:
        note, _ = await client.rest()
    assert text_of(note[1])["text"].endswith(" … (cut)")


async def test_an_output_that_is_closed_raises_for_its_waiting_sender(serving):
    results = []

    async def handler(client):
        try:
            await client.send_stderr(bytes(2 * WINDOW))
        except OutputClosedError as error:
            results.append(type(error))
        await client.send_stdout(b"the other one goes on")
        return 0

    async with serving(handler) as client:
        received = 0
        while received < WINDOW:
            received += len(await client.expect(FrameType.STDERR))
        await client.send(encode(FrameType.STDERR_CLOSED))
        assert await client.expect(FrameType.STDOUT) == b"the other one goes on"
        await client.expect(FrameType.EXIT)
    assert results == [OutputClosedError]
