"""What a check of the drivers' contract works with."""

import contextlib
import dataclasses
import itertools
import os
import secrets
import shlex
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import asyncssh
import pytest

from claude_vm.drivers import registry
from claude_vm.drivers.api import (
    Driver,
    InstanceSpec,
    Owner,
    TemplateRecord,
)
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.process import find_marked
from claude_vm.supervisor.ssh.launch import AGENTS, LaunchMode, launch_file
from claude_vm.supervisor.ssh.link import connect
from claude_vm.supervisor.ssh.shells import ShellKind, prime

CHECKS: dict[str, Callable[["Case"], Awaitable[None]]] = {}
NEED_ISOLATION: set[str] = set()


def check(function):
    """Make a function part of the contract."""
    CHECKS[function.__name__] = function
    return function


def needs_isolation(function):
    """Make a function part of the contract of drivers whose guests are machines."""
    NEED_ISOLATION.add(function.__name__)
    return check(function)


@dataclasses.dataclass
class Case:
    """What a check works with. `kill` ends a running VM from outside, as a crash would."""

    driver: Driver
    owner: Owner
    template: TemplateRecord
    project: Path
    open_driver: Callable[[Owner], contextlib.AbstractAsyncContextManager[Driver]]
    kill: Callable[[Driver, str], Awaitable[None]]
    build: Callable[[Driver, str], Awaitable[TemplateRecord]]
    patience_s: float = 60.0

    def new_id(self):
        return f"i-{secrets.token_hex(5)}"

    def spec(self, instance_id, **changes):
        sizes = {name: getattr(self.template, name) for name in ("cpus", "memory_mib", "disk_gib")}
        values = {"template": self.template.name, "generation": self.template.generation, **sizes, **changes}
        return InstanceSpec(instance_id, **values)

    @contextlib.asynccontextmanager
    async def cloned(self, **changes):
        instance_id = self.new_id()
        try:
            await self.driver.clone(self.spec(instance_id, **changes))
            yield instance_id
        finally:
            with anyio.CancelScope(shield=True):
                await self.driver.delete(instance_id)

    @contextlib.asynccontextmanager
    async def started(self, **changes):
        async with self.cloned(**changes) as instance_id:
            told = []
            with anyio.fail_after(self.patience_s):
                access = await self.driver.start(instance_id, lambda phase, _: told.append(phase))
            phases = (await self.driver.capabilities()).phases
            known = [phase for phase in dict.fromkeys(told) if phase in phases]
            assert known == sorted(known, key=phases.index)
            yield instance_id, access

    @contextlib.asynccontextmanager
    async def connected(self, **changes):
        async with (
            self.started(**changes) as (instance_id, access),
            open_link(access, timeout_s=self.patience_s) as link,
        ):
            yield instance_id, access, link

    async def listed(self, driver=None):
        records = await (driver or self.driver).list_instances()
        return {record.instance_id: record.status for record in records}

    def traces(self):
        """Return all that this owner has on this host, apart from its templates.

        The folders that all instances share may come and go.
        """
        home = self.owner.home
        places = {home, *registry.folders(home)}
        shared = {
            home / kind / rest for kind in ("instances", "sim") for rest in ("", self.owner.supervisor_id)
        }
        found = {str(path) for path in self.owner.runtime.rglob("*")}
        for folder, folders, names in itertools.chain.from_iterable(map(os.walk, places)):
            if Path(folder) == home:
                folders[:] = [name for name in folders if name not in ("cache", "templates")]
            found |= {f"{folder}/{name}" for name in (*folders, *names) if Path(folder, name) not in shared}
        # Not every process of a VM bears the mark; the others name something in the data folder.
        marks = (self.owner.mark, *map(str, places))
        return found | {f"process {pid}" for mark in marks for pid, _ in find_marked(mark)}

    async def settled_traces(self):
        """Return them when nothing runs and changes any more: of a former case something may be ending."""
        before, now = None, self.traces()
        with anyio.fail_after(20):
            while now != before or any(trace.startswith("process ") for trace in now):
                await anyio.sleep(0.05)
                before, now = now, self.traces()
        return now

    def expect_more(self, before):
        """Expect what was there before, and something else."""
        now = self.traces()
        assert now > before, f"gone: {sorted(before - now)}"

    def expect_traces(self, before):
        """Expect what was there before, and nothing else."""
        now = self.traces()
        assert now == before, f"new: {sorted(now - before)}, gone: {sorted(before - now)}"


def silent(phase, detail):
    """Take progress."""


async def refused(awaitable):
    """Expect one of the driver's own errors."""
    with pytest.raises(DriverError) as caught:
        await awaitable
    assert caught.value.code
    assert caught.value.message


@contextlib.asynccontextmanager
async def open_link(access, *, timeout_s):
    """Connect as the supervisor does, for the length of a block."""
    async with contextlib.aclosing(await connect(access, timeout_s=timeout_s)) as link:
        yield link


async def by_sshd(link, command, data=b"", *, timeout_s=30):
    """Run a small command by a machine's sshd, which no session of ours has a part in.

    A simulated guest has none that would.
    """
    stdin = asyncssh.PIPE if data else asyncssh.DEVNULL
    return await link._connection.run(
        command, input=data or None, stdin=stdin, encoding=None, timeout=timeout_s
    )


async def python(link, script, *args):
    """Run a script by a machine's Python; return what it printed."""
    words = " ".join(map(shlex.quote, ("-", *map(str, args))))
    done = await by_sshd(link, f"PYTHONDONTWRITEBYTECODE=1 python3 {words}", script.encode(), timeout_s=60)
    assert done.exit_status == 0, done.stderr.decode(errors="replace")
    return done.stdout.decode("utf-8", "surrogateescape").strip()


async def output(process):
    data = b""
    while part := await process.read_stdout(65536):
        data += part
    return data


@contextlib.asynccontextmanager
async def session(case, instance_id, link, mode, argv=(), *, env=None, cwd="", pty=None, agent=None):
    """Run something by the launcher, as the supervisor does it."""
    session_id = secrets.token_hex(5)
    shells = await prime(
        link, [ShellKind.PIPES if pty is None else ShellKind.PTY], term="xterm" if pty is None else pty.term
    )
    socket = f"{AGENTS}/{session_id}"
    listener = None if agent is None else await link.listen_for_agent(socket, agent)
    env = dict(env or {})
    if agent is not None:
        env["SSH_AUTH_SOCK"] = socket
    process = None
    try:
        file = launch_file(session_id, mode=mode, argv=argv, env=env, cwd=cwd)
        await case.driver.put_files(instance_id, [file])
        process = await shells.start(session_id, pty=pty)
        yield process
    finally:
        if listener is not None:
            listener.close()
        if process is not None:
            await process.aclose()


async def printed(case, instance_id, link, line):
    """Let a session run a shell's line; return what it printed."""
    async with session(case, instance_id, link, LaunchMode.EVAL, [line]) as process:
        process.write_eof()
        return await output(process)
