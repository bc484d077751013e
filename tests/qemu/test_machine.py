"""The start of a QEMU that never gets so far as to run a guest."""

import sys

import anyio
import pytest

from claude_vm.drivers.errors import BootError
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.vm.machine import Files, attached
from claude_vm.drivers.vm.spawn import end, listen, spawn

pytestmark = pytest.mark.anyio

DIES = """
import os, signal, socket
child = os.fork()
if child == 0:
    signal.pause()
print("child", child, flush=True)
socket.socket(fileno=10).accept()
print("Cannot allocate memory", flush=True)
"""


async def test_a_qemu_that_ends_before_it_greets_is_noticed_though_its_socket_stays_open(short):
    files = Files(short, short / "m", short / "h")
    with listen(files.monitor) as server:
        process = spawn([sys.executable, "-c", DIES], files.log, [(server.fileno(), 10)])
    try:
        with anyio.fail_after(10):
            with pytest.raises(BootError, match="ended at: the start of QEMU") as caught:
                async with attached(process, files):
                    pass
        assert "Cannot allocate memory" in caught.value.detail
    finally:
        await end(process)
        await end(ProcessIdentity.of(int(files.log.read_text().split()[1])))
