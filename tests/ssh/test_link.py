import asyncio
import os
import socket
import stat
import sys

import anyio
import msgspec
import pytest

from claude_vm.supervisor.ssh.errors import (
    AuthenticationError,
    ChannelRefusedError,
    CommandTimeoutError,
    ConnectError,
    ConnectTimeoutError,
    HostKeyError,
    InputClosedError,
    LinkLostError,
    StatusLostError,
    UploadError,
)
from claude_vm.supervisor.ssh.link import RUN_LIMIT, connect, open_link
from claude_vm.supervisor.ssh.process import Pty, signal_status

pytestmark = pytest.mark.anyio


async def read_all(read):
    data = bytearray()
    while part := await read(65536):
        data += part
    return bytes(data)


async def read_until(process, text):
    data = b""
    while text not in data:
        part = await process.read_stdout(65536)
        assert part, data
        data += part
    return data


async def test_outputs_and_status_of_a_small_command(link):
    done = await link.run("cat; echo problem >&2; exit 37", b"in\0put\xff")
    assert (done.status, done.stdout, done.stderr) == (37, b"in\0put\xff", b"problem\n")
    assert not done.truncated


async def test_output_beyond_the_limit_is_dropped_and_said(link):
    done = await link.run(f"head -c {RUN_LIMIT + 70_000} /dev/zero")
    assert (done.status, len(done.stdout), done.truncated) == (0, RUN_LIMIT, True)


async def test_a_command_that_does_not_read_its_input_is_no_failure(link):
    assert (await link.run("exit 4", b"x" * 10_000_000)).status == 4


async def test_a_command_that_does_not_end_is_given_up(link):
    with pytest.raises(CommandTimeoutError, match="cat"):
        await link.run("cat >/dev/null; sleep 100", timeout_s=0.5)
    assert (await link.run("echo still there")).stdout == b"still there\n"


@pytest.mark.parametrize("name", ["HUP", "INT", "KILL", "TERM", "USR1", "SEGV", "PIPE"])
async def test_death_by_signal_is_128_and_its_number(link, name):
    done = await link.run(f"ulimit -c 0; kill -s {name} $$")
    assert done.status == signal_status(name)


def test_signal_numbers_are_those_of_linux():
    numbers = {name: signal_status(name) for name in ("HUP", "BUS", "USR1", "USR2", "TERM", "SYS", "SIGINT")}
    assert numbers == {
        "HUP": 129,
        "BUS": 135,
        "USR1": 138,
        "USR2": 140,
        "TERM": 143,
        "SYS": 159,
        "SIGINT": 130,
    }
    assert signal_status("SIG@openssh.com") == 128


async def test_terminal_has_its_size_before_the_first_output_and_follows(link, pty_allowed):
    watch = (
        "import os, signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGWINCH]); "
        "print('ready', flush=True); signal.sigwait([signal.SIGWINCH]); os.system('stty size'); os._exit(3)"
    )
    script = f'stty size; echo $TERM; exec {sys.executable} -c "{watch}"'
    process = await link.open_process(script, pty=Pty("xterm-256color", 33, 99))
    assert (await read_until(process, b"ready\r\n")).startswith(b"33 99\r\nxterm-256color\r\n")
    process.resize(50, 132)
    assert b"50 132\r\n" in await read_until(process, b"132")
    assert await process.wait() == 3


async def test_terminal_modes_are_set(link, pty_allowed):
    no_echo = (53, 0)
    process = await link.open_process("stty -a", pty=Pty("dumb", 24, 80, modes=(no_echo,)))
    assert b" -echo " in await read_all(process.read_stdout)


async def test_control_c_reaches_a_program_on_a_terminal(link, pty_allowed):
    process = await link.open_process("echo ready; exec cat", pty=Pty("dumb", 24, 80))
    await read_until(process, b"ready")
    await process.write(b"\x03")
    assert await process.wait() == 130


async def test_stderr_stays_apart_without_a_terminal(link):
    process = await link.open_process("echo out; echo err >&2")
    assert await read_all(process.read_stdout) == b"out\n"
    assert await read_all(process.read_stderr) == b"err\n"


async def test_every_byte_passes_both_ways(link):
    data = bytes(range(256)) * 4096
    process = await link.open_process("cat")
    async with anyio.create_task_group() as tasks:

        async def feed():
            await process.write(data)
            process.write_eof()
            process.write_eof()

        tasks.start_soon(feed)
        assert await read_all(process.read_stdout) == data
    assert await process.wait() == 0


async def test_a_reader_that_stops_stops_the_guests_writer(link, tmp_path):
    fifo = tmp_path / "progress"
    script = f"for i in $(seq 400); do head -c 100000 /dev/zero; echo $i >{fifo}; done"
    fifo.write_text("")
    process = await link.open_process(script)
    first = await process.read_stdout(1)
    last = ""
    while not last or last != fifo.read_text():  # until it shows no progress any more
        last = fifo.read_text()
        await link.run("sleep 0.5")
    assert 0 < int(last) < 100  # of 400: what the window, the buffers and the pipe hold is less than 10 MB
    assert len(first) + len(await read_all(process.read_stdout)) == 40_000_000


async def test_a_guest_that_does_not_read_stops_the_writer(link):
    process = await link.open_process("exec sleep 1000")
    written = 0
    stuck = False
    while not stuck:
        with anyio.move_on_after(1) as scope:
            await process.write(b"x" * 65536)
            written += 65536
        stuck = scope.cancelled_caught
        assert written < 20_000_000
    await process.aclose()


async def test_input_to_a_process_that_ended_is_refused(link):
    process = await link.open_process("exit 3")
    assert await process.wait() == 3
    await read_all(process.read_stdout)
    with pytest.raises(InputClosedError):
        await _write_for_ever(process)
    process.write_eof()
    process.resize(1, 1)
    process.send_signal("TERM")


async def test_status_comes_while_a_background_process_holds_the_pipes(link):
    process = await link.open_process("sleep 1000 & echo $!; exit 6")
    pid = int(await process.read_stdout(100))
    assert await process.wait() == 6
    os.kill(pid, 9)
    assert await read_all(process.read_stdout) == b""


async def test_closing_a_process_ends_all_who_wait_for_it(link):
    process = await link.open_process("sleep 1000")
    async with anyio.create_task_group() as tasks:
        ended = []

        async def wait():
            with pytest.raises(StatusLostError):
                await process.wait()
            ended.append("wait")

        async def read():
            ended.append(await process.read_stdout(10))

        tasks.start_soon(wait)
        tasks.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        await process.aclose()
        await process.aclose()
    assert sorted(map(str, ended)) == ["b''", "wait"]


async def test_a_lost_connection_ends_everything_with_its_reason(link, server):
    process = await link.open_process("echo ready; sleep 1000")
    await read_until(process, b"ready")
    server.hang_up()
    assert await read_all(process.read_stdout) == b""
    with pytest.raises(LinkLostError, match="lost"):
        await process.wait()
    assert "lost" in (await link.wait_closed()).lower()
    for call in (link.run("true"), link.open_process("true"), link.upload(__file__, "x")):
        with pytest.raises(LinkLostError):
            await call


async def test_closing_the_link_says_so_and_can_be_repeated(server):
    link = await connect(server.access(), timeout_s=20)
    await link.aclose()
    await link.aclose()
    assert "this side" in await link.wait_closed()


async def test_another_host_key_is_refused(server):
    with pytest.raises(HostKeyError) as caught:
        await connect(server.access(host_key="other"), timeout_s=20)
    assert caught.value.code == "ssh-host-key"


async def test_a_key_that_the_guest_does_not_know_is_refused(server):
    with pytest.raises(AuthenticationError):
        await connect(server.access(client_key="stranger"), timeout_s=20)


async def test_a_port_where_nobody_listens_is_an_error(server):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        access = server.access()
        with pytest.raises(ConnectError, match=str(port)):
            await connect(msgspec.structs.replace(access, port=port), timeout_s=20)


async def test_a_server_that_says_nothing_is_given_up(server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        access = server.access()
        silent_access = msgspec.structs.replace(access, port=silent.getsockname()[1])
        with pytest.raises(ConnectTimeoutError):
            await connect(silent_access, timeout_s=0.3)


async def test_a_server_that_speaks_something_else_is_an_error(server):
    access = server.access()

    async def answer(reader, writer):
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(ConnectError):
            await connect(msgspec.structs.replace(access, port=port), timeout_s=20)


@pytest.mark.parametrize("field", ["host_key", "client_key"])
async def test_a_damaged_key_is_an_error_of_ours(server, tmp_path, field):
    access = server.access()
    (tmp_path / "damaged").write_text("no key\n")
    wrong = {"host_key": "ssh-ed25519 AAAA", "client_key": tmp_path / "damaged"}[field]
    with pytest.raises(ConnectError):
        await connect(msgspec.structs.replace(access, **{field: wrong}), timeout_s=20)


async def test_a_cancelled_connect_leaves_no_connection(server):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        access = server.access()
        silent_access = msgspec.structs.replace(access, port=silent.getsockname()[1])
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: connect(silent_access, timeout_s=60))
            connection, _ = await anyio.to_thread.run_sync(silent.accept)
            tasks.cancel_scope.cancel()
        with connection:
            connection.settimeout(10)
            while await anyio.to_thread.run_sync(connection.recv, 4096):
                pass


async def test_too_many_processes_are_refused_and_the_link_goes_on(openssh):
    async with open_link(openssh.access(), timeout_s=20) as link:
        await _use_up(link)


async def _write_for_ever(process):
    while True:
        await process.write(b"x" * 65536)


async def _open_many(link, processes):
    for _ in range(60):
        processes.append(await link.open_process("cat"))


async def _use_up(link):
    processes = []
    with pytest.raises(ChannelRefusedError):
        await _open_many(link, processes)
    assert len(processes) == 50
    for process in processes:
        process.write_eof()
        assert await process.wait() == 0


async def test_upload_writes_the_bytes_with_the_mode(link, server, tmp_path):
    source = tmp_path / "source file"
    source.write_bytes(os.urandom(9_000_001))
    target = server.scratch / "tar get'\n$(id)"
    await link.upload(source, str(target), mode=0o640)
    assert target.read_bytes() == source.read_bytes()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    source.write_bytes(b"shorter")
    await link.upload(source, str(target))
    assert target.read_bytes() == b"shorter"
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


@pytest.mark.parametrize(("source", "target"), [("missing", "x"), ("there", "no/such/folder/x")])
async def test_upload_that_cannot_be_says_why(link, server, tmp_path, source, target):
    (tmp_path / "there").write_text("data")
    with pytest.raises(UploadError, match=source) as caught:
        await link.upload(tmp_path / source, str(server.scratch / target))
    assert "no such file" in str(caught.value).lower()


async def test_nothing_of_this_processs_environment_or_ssh_configuration_is_used(
    server, tmp_path, monkeypatch
):
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text(
        "Host *\n  SendEnv *\n  ProxyCommand false\n  User nobody\n  Port 1\n"
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary")
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "no-agent"))
    async with open_link(server.access(), timeout_s=20) as link:
        done = await link.run("env")
    assert b"canary" not in done.stdout
    assert b"SSH_AUTH_SOCK" not in done.stdout


async def test_the_handshake_uses_what_is_cheap_in_a_guest(link):
    connection = link._connection
    assert connection.get_extra_info("send_cipher") == "aes128-gcm@openssh.com"
    assert connection.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
