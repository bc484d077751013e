"""The real daemon, and beside it a task that measures how long each turn of its loop takes.

Turns are measured in processor time of the loop's thread, so that a busy machine makes none longer. Those of
more than `NOTED_S` go into the file of the first argument: the instant of their end (`time.monotonic`), and
how long they took, in seconds.
"""

import gc
import os
import sys
import time
from functools import partial
from pathlib import Path

import anyio

from claude_vm.supervisor.daemon.process import logfile
from claude_vm.supervisor.daemon.process.main import run_daemon
from claude_vm.supervisor.wire import paths

NOTED_S = 0.005


async def watch(file):
    while True:
        before = time.thread_time()
        await anyio.sleep(0.0005)
        took = time.thread_time() - before
        if took > NOTED_S:
            file.write(f"{time.monotonic()} {took}\n")


async def main(home, file):
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch, file)
        await run_daemon(home, idle_s=600, ready=partial(os.write, 1, b"ready\n"))
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    gc.freeze()  # as the daemon does
    data = Path(paths.home())
    paths.make_private(str(data / "logs"))
    logfile.configure(Path(paths.log_path(str(data))))
    with Path(sys.argv[1]).open("w", buffering=1) as turns:
        anyio.run(main, data, turns)
