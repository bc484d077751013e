"""QEMU's monitor: one connection at a time, asyncio only, foreign exceptions mapped here."""

import asyncio
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

import anyio
from qemu.qmp import QMPClient, QMPError

from claude_vm.drivers.errors import BootError, DriverError

_CLOSE_S: Final = 5.0


class Monitor:
    """An open monitor connection. Commands come one after another."""

    def __init__(self, client: QMPClient) -> None:
        self._client = client

    async def execute(self, command: str, **arguments: Any) -> Any:
        """Run a command (``_`` in its argument names means ``-``) and return its value.

        Raises:
            DriverError: QEMU refuses, or is gone.
        """
        words = {name.replace("_", "-"): value for name, value in arguments.items()}
        try:
            return await self._client.execute(command, words)
        except (QMPError, OSError, EOFError, asyncio.IncompleteReadError) as error:
            raise DriverError(f"QEMU can't do {command}", detail=str(error)) from error

    async def ssh_port(self) -> int:
        """Return the loopback port that QEMU has picked for the guest's SSH.

        Raises:
            DriverError: It has none.
        """
        return forwarded_port(str(await self.execute("human-monitor-command", command_line="info usernet")))

    async def save(self, state: Path) -> None:
        """Stop the guest and write its state, without its memory, which is in a file already.

        Raises:
            DriverError: A device can't be saved.
        """
        await self.execute("stop")
        descriptor = os.open(state, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            await self._migrate("migrate", descriptor)
        finally:
            os.close(descriptor)

    async def load(self, state: Path) -> None:
        """Read a saved state into a QEMU that waits for it, and let the guest go on.

        Raises:
            DriverError: The state does not fit this QEMU.
        """
        descriptor = os.open(state, os.O_RDONLY)
        try:
            await self._migrate("migrate-incoming", descriptor)
        finally:
            os.close(descriptor)
        await self.execute("cont")

    async def bound_console(self, device: str) -> None:
        """Let a console's log grow no more: its last 64 KiB stay in memory, whatever the guest writes.

        Where the console can't be switched (on Arm), it stays a file.
        """
        with suppress(DriverError):
            backend = {"type": "ringbuf", "data": {"size": 65536}}
            await self.execute("chardev-change", id=device, backend=backend)

    async def quit(self) -> None:
        """Ask QEMU to end; its end is seen elsewhere."""
        with suppress(DriverError):
            await self.execute("quit")

    async def _migrate(self, command: str, descriptor: int) -> None:
        """Move the state through a file descriptor; a program of QEMU's own would need leave to start one."""
        capabilities = [
            {"capability": "x-ignore-shared", "state": True},
            {"capability": "events", "state": True},
        ]
        await self.execute("migrate-set-capabilities", capabilities=capabilities)
        with self._client.listener(("MIGRATION",)) as events:
            self._client.send_fd_scm(descriptor)
            await self.execute("getfd", fdname="state")
            await self.execute(command, uri="fd:state")
            async for event in events:
                status = cast("dict[str, str]", event["data"])["status"]
                if status == "completed":
                    return
                if status in {"failed", "cancelled"}:
                    break
        told = await self.execute("query-migrate")
        raise DriverError("QEMU can't move the guest's state", detail=str(told.get("error-desc", "")))


def forwarded_port(text: str) -> int:
    """Return the loopback port of the guest's SSH, from what the monitor's ``info usernet`` says.

    Raises:
        DriverError: There is none.
    """
    found = re.search(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+22\s", text)
    if found is None:
        raise DriverError("QEMU forwards no port to the guest's SSH", detail=text[:2000])
    return int(found[1])


@asynccontextmanager
async def open_monitor(path: Path) -> AsyncIterator[Monitor]:
    """Connect to the monitor at a unix socket; return when QEMU has greeted.

    Raises:
        BootError: There is no QEMU, or it ends instead of greeting.
    """
    client = QMPClient("claude-vm")
    client.logger.disabled = True
    try:
        try:
            await client.connect(str(path))
        except (QMPError, OSError, EOFError) as error:
            raise BootError("QEMU does not answer on its monitor", detail=str(error)) from error
        yield Monitor(client)
    finally:
        with anyio.move_on_after(_CLOSE_S, shield=True), suppress(Exception):
            await client.disconnect()
