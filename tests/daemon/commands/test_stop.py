"""`stop`: which sessions end, and what is told of it."""

from types import SimpleNamespace

import anyio
import pytest

from claude_vm.supervisor.daemon.commands.stop import stop_sessions
from claude_vm.supervisor.wire.errors import OutputClosedError

pytestmark = pytest.mark.anyio


async def test_all_sessions_end_when_nobody_reads_which_ones_and_the_error_comes_alone():
    sessions = {name: SimpleNamespace(session_id=name, over=anyio.Event()) for name in ("a1", "a2", "a3")}
    gate = anyio.Event()

    async def end_last():
        await gate.wait()
        sessions["a3"].over.set()

    def stop(session_id, reason, status):
        del reason, status
        if session_id != "a3":
            sessions[session_id].over.set()

    async def out(line):
        gate.set()  # one of them ends only after the reader is known to be gone
        raise OutputClosedError(line)

    dispatcher = SimpleNamespace(stop=stop)
    command = SimpleNamespace(supervisor=SimpleNamespace(dispatcher=dispatcher), out=out)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(end_last)
        with anyio.fail_after(10), pytest.raises(OutputClosedError):
            await stop_sessions(command, list(sessions.values()))
        assert all(session.over.is_set() for session in sessions.values())
