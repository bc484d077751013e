import asyncio
import socket

import anyio
import asyncssh
import msgspec
import pytest

from claude_vm.supervisor.ssh.errors import (
    AuthenticationError,
    ConnectError,
    ConnectTimeoutError,
    HostKeyError,
    LinkLostError,
)
from claude_vm.supervisor.ssh.link import connect

pytestmark = pytest.mark.anyio


async def test_a_lost_connection_ends_everything_with_its_reason(link, server, tmp_path):
    server.hang_up()
    assert "lost" in (await link.wait_closed()).lower()
    assert link.is_closed
    calls = (
        link.open_dialogue(),
        link.open_holder(asyncssh.SSHUNIXSession),
        link.open_tcp(1),
        link.listen_for_agent(str(tmp_path / "agent"), None),
    )
    for call in calls:
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


async def test_nothing_of_this_users_ssh_configuration_or_agent_is_used(server, tmp_path, monkeypatch):
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text("Host *\n  ProxyCommand false\n  User nobody\n  Port 1\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", str(tmp_path / "no-agent"))
    link = await connect(server.access(), timeout_s=20)
    await link.aclose()
    assert "this side" in await link.wait_closed()


async def test_the_handshake_uses_what_is_cheap_in_a_guest(link):
    connection = link._connection
    assert connection.get_extra_info("send_cipher") == "aes128-gcm@openssh.com"
    assert connection.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
