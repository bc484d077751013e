"""A daemon without VMs, for tests of the real client: what it does stands in the client's words."""

import hashlib
import json
import os
import sys
from pathlib import Path

import anyio

from claude_vm.context.errors import ContextError
from claude_vm.supervisor.wire.connected_client import Signal
from claude_vm.supervisor.wire.paths import make_private, runtime_directory, socket_path
from claude_vm.supervisor.wire.records import Refusal
from claude_vm.supervisor.wire.server import serve

PATTERN = bytes(range(256)) * 256


async def handler(client):
    name, *words = client.invocation.argv
    return await COMMANDS[name](client, *words)


async def status(client, number):
    await client.note(f"leaving with {number}")
    return int(number)


async def echo(client):
    client.started_nowait(pty=False)
    while data := await client.receive_stdin():
        await client.send_stdout(data)
    await client.send_stderr(b"end of input\n")
    return 0


async def outputs(client):
    client.started_nowait(pty=False)
    await client.send_stdout(b"to stdout\n")
    await client.send_stderr(b"to stderr\n")
    return 0


async def yes(client):
    client.started_nowait(pty=False)
    while True:
        await client.send_stdout(b"y\n" * 1000)


async def produce(client, count):
    client.started_nowait(pty=False)
    rest = int(count)
    while rest:
        piece = PATTERN[: min(rest, len(PATTERN))]
        await client.send_stdout(piece)
        rest -= len(piece)
    return 0


async def consume(client):
    client.started_nowait(pty=False)
    digest, count = hashlib.sha256(), 0
    while data := await client.receive_stdin():
        digest.update(data)
        count += len(data)
    await client.send_stdout(f"{count} {digest.hexdigest()}\n".encode())
    return 0


async def flood(client):
    """Send without end; tell at each interrupt how much was taken."""
    sent = 0

    async def send():
        nonlocal sent
        while True:
            await client.send_stdout(PATTERN)
            sent += len(PATTERN)

    client.started_nowait(pty=False)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        while True:
            await client.next_control()
            await client.send_stderr(f"{sent}\n".encode())


async def ignore_input(client):
    client.started_nowait(pty=False)
    await client.send_stdout(b"ready\n")
    while (await client.next_control()) != Signal("INT"):
        pass
    return 9


async def controls(client, pty):
    client.started_nowait(pty=pty == "pty")
    await client.send_stdout(b"ready\r\n")
    while True:
        control = await client.next_control()
        await client.send_stdout(f"{control}\r\n".encode())
        if control == Signal("TERM"):
            return 0


async def keys(client):
    """Echo what is typed as hexadecimal numbers until q, in raw mode."""
    client.started_nowait(pty=True)
    await client.send_stdout(b"ready\r\n")
    while data := await client.receive_stdin():
        await client.send_stdout(data.hex().encode() + b"\r\n")
        if b"q" in data:
            return 3
    return 4


async def full_screen(client, end):
    client.started_nowait(pty=True)
    await client.send_stdout(b"\x1b[?1049h\x1b[?1003;1006h\x1b[?2004h\x1b[>1u\x1b[?25lfull screen")
    while data := await client.receive_stdin():
        if data == b"x":
            break
    if end == "die":
        os._exit(1)
    return 5


async def die(client):
    client.started_nowait(pty=False)
    await client.send_stdout(b"before\n")
    await client.receive_stdin()
    os._exit(1)


async def boot(client):
    """A long boot that Ctrl-C does not end."""
    await client.note("booting")
    while True:
        await client.note(f"got {(await client.next_control())}")


async def ask(client):
    answer = await client.prompt("Delete everything? [y/N] ")
    await client.send_stdout(f"answer: {answer!r}\n".encode())
    return 0


async def progress(client):
    for number in range(3):
        await client.note(f"phase {number}", "progress")
    await client.note("done")
    client.started_nowait(pty=False)
    return 0


async def crash(client):
    """A full-screen program, over which the VM dies."""
    client.started_nowait(pty=True)
    await client.send_stdout(b"\x1b[?1049hfull screen")
    await client.note("rewritten line", "progress")
    await client.note("the VM died", "error", ["because"])
    return 125


async def describe(client, *words):
    invocation = client.invocation
    told = {
        "argv": [w.encode("utf-8", "surrogateescape").hex() for w in words],
        "cwd": invocation.cwd.encode("utf-8", "surrogateescape").hex(),
        "odd": invocation.env.get("ODD", "").encode("utf-8", "surrogateescape").hex(),
        "tty": [
            invocation.terminal.stdin_tty,
            invocation.terminal.stdout_tty,
            invocation.terminal.stderr_tty,
        ],
        "size": [invocation.terminal.rows, invocation.terminal.columns],
        "term": invocation.terminal.term,
        "terminfo": None if invocation.terminfo is None else len(invocation.terminfo),
    }
    await client.send_stdout(json.dumps(told).encode() + b"\n")
    return 0


async def agent(client):
    async with await client.open_agent() as channel:
        try:
            await channel.send(b"hello agent")
            answer = await channel.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            answer = b"no agent"
    await client.send_stdout(answer + b"\n")
    return 0


async def say(client, *lines):
    """Tell what strangers may have said: a note with lines beneath it, progress, an error."""
    await client.note(f"claude-vm: note {lines[0]}", "info", lines[1:])
    await client.note(f"claude-vm: progress {lines[0]}", "progress")
    raise ContextError(f"error {lines[0]}", lines=lines[1:], hint=f"hint {lines[0]}")


async def fail(client):
    raise KeyError("secret place")


COMMANDS = {
    "status": status,
    "echo": echo,
    "outputs": outputs,
    "yes": yes,
    "produce": produce,
    "consume": consume,
    "flood": flood,
    "ignore-input": ignore_input,
    "controls": controls,
    "keys": keys,
    "full-screen": full_screen,
    "die": die,
    "boot": boot,
    "ask": ask,
    "progress": progress,
    "describe": describe,
    "crash": crash,
    "agent": agent,
    "fail": fail,
    "say": say,
}


async def main(home):
    path = socket_path(home)
    make_private(runtime_directory(home))
    refusal = json.loads(os.environ.get("REFUSAL", "null"))

    def admit(hello, argv):
        del hello, argv
        if refusal is None:
            return None
        if refusal["code"] == "version-mismatch-idle":
            Path(path).unlink()
        return Refusal(**refusal)

    listener = await anyio.create_unix_listener(path)
    os.write(1, b"ready\n")
    await serve(listener, handler, admit=admit)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1])
