"""The host's side against a guest whose root has taken over the helper."""

import asyncio
import json
from contextlib import suppress

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from claude_vm.drivers.api import GuestFile, Owner
from claude_vm.drivers.errors import GuestError
from claude_vm.drivers.qemu.driver import open_driver
from claude_vm.drivers.vm import channel as channels
from claude_vm.drivers.vm import driver as drivers
from claude_vm.drivers.vm.channel import Channel, printable

pytestmark = pytest.mark.anyio


class HostileGuest:
    """A server in the helper's place; `reply` makes an answer's bytes from a request."""

    def __init__(self, path, reply):
        self.path = path
        self.reply = reply
        self.requests = []
        self.connections = 0

    async def serve(self, reader, writer):
        self.connections += 1
        with suppress(ConnectionError):
            while line := await reader.readline():
                if line != b"\n":
                    self.requests.append(json.loads(line))
                    writer.write(self.reply(self.requests[-1]))
        writer.close()


async def against(path, reply, work):
    guest = HostileGuest(path, reply)
    server = await asyncio.start_unix_server(guest.serve, path, limit=1 << 21)
    channel = Channel(path)
    async with server:
        try:
            await work(channel)
        finally:
            await channel.aclose()
    path.unlink()
    return guest


def good(request):
    return json.dumps({"id": request["id"], "ok": True}).encode() + b"\n"


async def test_an_answer_to_another_request_is_not_taken(short):
    def reply(request):
        stale = {"id": "0123456789abcdef", "ok": False, "error": "stale"}
        return json.dumps(stale).encode() + b"\n" + good(request)

    async def work(channel):
        assert (await channel.request("ping", timeout_s=5)).ok

    await against(short / "s", reply, work)


@pytest.mark.parametrize(
    "junk",
    [
        b"\xff\xfe\n",
        b"{}\n",
        b"null\n",
        b"[" * 100_000 + b"\n",
        b'{"id": 5, "ok": true}\n',
        b'{"id": "x", "ok": "yes"}\n',
        b"\n\n\n",
    ],
)
async def test_noise_before_an_answer_is_passed_over(short, junk):
    async def work(channel):
        assert (await channel.request("ping", timeout_s=5)).ok

    await against(short / "s", lambda request: junk + good(request), work)


async def test_noise_without_end_is_an_error(short):
    async def work(channel):
        with pytest.raises(GuestError, match="invalid answer"):
            await channel.request("ping", timeout_s=20)

    await against(short / "s", lambda _: (b"x" * 1000 + b"\n") * 2000, work)


async def test_a_line_without_end_is_an_error(short):
    async def work(channel):
        with pytest.raises(GuestError, match="does not end"):
            await channel.request("ping", timeout_s=20)

    await against(short / "s", lambda _: b"x" * (channels.ANSWER_LIMIT + 100_000), work)


async def test_a_silent_guest_is_an_error_and_its_late_answer_is_not_taken(short):
    answers = iter([b"", None])

    def reply(request):
        answer = next(answers)
        return good(request) if answer is None else answer

    async def work(channel):
        with pytest.raises(GuestError, match="does not answer"):
            await channel.request("ping", timeout_s=0.05)
        assert (await channel.request("ping", timeout_s=5)).ok

    guest = await against(short / "s", reply, work)
    assert guest.connections == 2
    assert guest.requests[0]["id"] != guest.requests[1]["id"]


async def test_a_cancelled_request_leaves_no_answer_for_the_next_one(short):
    seen = anyio.Event()

    def reply(request):
        seen.set()
        return good(request) if request["op"] == "clock" else b""

    async def work(channel):
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: channel.request("ping", timeout_s=60))
            await seen.wait()
            group.cancel_scope.cancel()
        assert (await channel.request("clock", timeout_s=5)).ok

    assert (await against(short / "s", reply, work)).connections == 2


async def test_a_refusal_has_the_guests_words_without_its_control_characters(short):
    def reply(request):
        return json.dumps({"id": request["id"], "ok": False, "error": "\x1b[31mno\x07"}).encode() + b"\n"

    async def work(channel):
        with pytest.raises(GuestError) as caught:
            await channel.request("ping", timeout_s=5)
        assert caught.value.detail == "\ufffd[31mno\ufffd"

    await against(short / "s", reply, work)


async def test_nobody_there_is_an_error_of_the_guest(short):
    with pytest.raises(GuestError, match="channel is gone"):
        await Channel(short / "nothing").request("ping", timeout_s=5)


async def test_large_files_travel_in_pieces_and_in_order(short):
    async def work(channel):
        data = bytes(range(256)) * 4096
        await channel.put_files([GuestFile("a", data), GuestFile("b", b"", append=True)], timeout_s=20)

    guest = await against(short / "s", good, work)
    pieces = [piece for request in guest.requests for piece in request["files"]]
    assert [(piece["path"], piece["append"]) for piece in pieces] == [
        *[("a", number > 0) for number in range(4)],
        ("b", True),
    ]
    assert max(len(json.dumps(request)) for request in guest.requests) < 1 << 20


async def test_too_much_is_refused_before_anything_is_sent(short):
    async def work(channel):
        with pytest.raises(GuestError, match="8 MiB"):
            await channel.put_files([GuestFile("a", bytes(channels.FILES_LIMIT + 1))], timeout_s=5)

    assert (await against(short / "s", good, work)).requests == []


@given(st.binary(max_size=300))
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_bytes_of_the_guest_make_more_than_a_guest_error(short, data):
    async def work(channel):
        with pytest.raises(GuestError):
            await channel.request("ping", timeout_s=0.02)

    anyio.run(against, short / "s", lambda _: data, work)


@given(st.text())
def test_printable_text_has_no_control_characters(text):
    assert all(char.isprintable() or char in "\n\t" for char in printable(text))


async def test_a_guest_that_never_says_that_its_clock_is_set_is_an_error_of_that_guest(short, monkeypatch):
    """Also when each single answer would have been in time."""
    monkeypatch.setattr(drivers, "HELPER_S", 0.2)

    async def work(channel):
        async with open_driver(Owner(short / "home", "sv-test", short)) as driver:
            monkeypatch.setattr(driver, "_channel", lambda _: channel)
            with pytest.raises(GuestError, match="clock"):
                await driver.set_clock("i-00000000aa")

    await against(short / "s", lambda _: b"", work)
