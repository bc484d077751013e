"""A daemon in this process, and what of a client's secrets its objects refer to after each command.

Run with the path of a file that has the secret, and those of a project and a program. The secret itself comes
into no variable of this program's: it is compared backwards.
"""

import gc
import json
import sys
from functools import partial
from pathlib import Path

import anyio

from claude_vm.supervisor.daemon.process.main import run_daemon
from claude_vm.supervisor.wire import paths

BACKWARDS = Path(sys.argv[1]).read_bytes()[::-1]
PROJECT, PROGRAM = sys.argv[2:4]

COMMANDS = {
    "session": r'"$0" shell "test -n "\$ANTHROPIC_API_KEY" && test -n "\$https_proxy""',
    "flags": '"$0" --env "MINE=$ANTHROPIC_API_KEY" shell "exit 3"',
    "failed": '"$0" --env "UID=$ANTHROPIC_API_KEY" shell true',
    "info": '"$0" info',
    "unknown": '"$0" --mount "/nowhere/$ANTHROPIC_API_KEY" shell true',
    "running": '"$0" shell -- sh -c "touch up; exec sleep 600"',
}
EXPORT = 'export ANTHROPIC_API_KEY="$(cat "$1")" https_proxy="http://user:$(cat "$1")@proxy.example:1"; '


def holders():
    """Return what kinds of objects refer to a text with the secret."""
    gc.collect()
    found = {}
    needle = BACKWARDS[::-1]
    left = gc.get_objects()
    # The collector lists nothing that can be in no circle, such as a dict of texts: others lead to that.
    seen = {id(each) for each in left} | {id(left)}
    while left:
        holder = left.pop()
        for each in gc.get_referents(holder):
            if isinstance(each, str | bytes | bytearray):
                if each is not needle and _has(needle, each):
                    kind = f"{type(holder).__module__}.{type(holder).__qualname__}"
                    found[kind] = found.get(kind, 0) + 1
            elif id(each) not in seen:
                seen.add(id(each))
                left.append(each)
    return found


def _has(needle, text):
    data = text.encode("utf-8", "surrogateescape") if isinstance(text, str) else bytes(text)
    return needle in data


async def told(line):
    """Run a client to its end; return its status, and what is held after it."""
    argv = ["sh", "-c", EXPORT + line, PROGRAM, sys.argv[1]]
    status = (await anyio.run_process(argv, cwd=PROJECT, check=False)).returncode
    await anyio.sleep(0.2)  # its connection's task ends after its last word
    return status, holders()


async def main():
    home = Path(paths.home())
    ready = anyio.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(run_daemon, home, idle_s=1000, ready=ready.set))
        await ready.wait()
        results = {"before": (0, holders())}
        for name, line in COMMANDS.items():
            if name != "running":
                results[name] = await told(line)
        async with await anyio.open_process(
            ["sh", "-c", EXPORT + COMMANDS["running"], PROGRAM, sys.argv[1]], cwd=PROJECT
        ) as client:
            while not Path(PROJECT, "up").exists():  # noqa: ASYNC110 - another process makes it
                await anyio.sleep(0.02)
            await anyio.sleep(0.2)
            results["running"] = (0, holders())
            client.kill()
        sys.stdout.write(json.dumps(results))
        sys.stdout.flush()
        tasks.cancel_scope.cancel()


anyio.run(main)
