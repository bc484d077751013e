"""``stop`` and ``delete``, gently or by force."""

import os
import shutil
import signal
import time
from pathlib import Path

from . import disks, faults, names, networks, watching
from .errors import LimaError, NotFoundError, os_error_text
from .instance import RUNNING, STOPPED, Instance, inspect
from .log import LOG, quoted

_TEMPORARY = (".pid", ".sock", ".tmp")

_HOST_AGENT_TIMEOUT_S = 190.0
_SHUTDOWN_TIMEOUT_S = 180.0
_SHUTDOWN_STEP_S = 0.5


def stop(name: str, *, force: bool) -> None:
    """End an instance's VM.

    Raises:
        LimaError: it is not running, or does not end.
    """
    found = inspect(name)
    if force:
        stop_forcibly(found)
    else:
        _stop_gracefully(found)
    networks.reconcile()


def delete(wanted: list[str], *, force: bool) -> None:
    """Remove instances; unknown ones are fine.

    Raises:
        LimaError: one is protected, or running and not forced, or can't be removed.
    """
    problems = []
    for name in wanted:
        try:
            found = inspect(name)
        except NotFoundError:
            folder = names.instance_dir(name)
            if folder.exists():
                problems.append(
                    f"instance {quoted(name)} directory {quoted(folder)} exists but its `lima.yaml` "
                    "could not be read; it was NOT deleted, in case it is currently being cloned into. "
                    "If no `limactl` operation is using it, remove it manually"
                )
            else:
                LOG.warning(f"Ignoring non-existent instance {quoted(name)}")
            continue
        try:
            _delete(found, force=force)
        except LimaError as error:
            raise LimaError(f"failed to delete instance {quoted(name)}: {error}") from None
        LOG.info(f"Deleted {quoted(name)} ({quoted(found.folder)})")
    networks.reconcile()
    if problems:
        raise LimaError("\n".join(problems))


def stop_forcibly(found: Instance) -> None:
    """Kill an instance's processes and remove their traces. Nothing here fails."""
    if found.driver_pid:
        LOG.info(f"Sending SIGKILL to the qemu driver process {found.driver_pid}")
        _kill(found.driver_pid)
    else:
        LOG.info(f"The {'qemu' if found.config else ''} driver process seems already stopped")
    disks.release(found)
    if found.host_agent_pid:
        LOG.info(f"Sending SIGKILL to the host agent process {found.host_agent_pid}")
        _kill(found.host_agent_pid)
    else:
        LOG.info("The host agent process seems already stopped")
    patterns = " ".join(f"*{suffix}" for suffix in _TEMPORARY)
    LOG.info(f"Removing {patterns} under {quoted(found.folder)}")
    for path in sorted(found.folder.iterdir()):
        if path.name.endswith(_TEMPORARY):
            LOG.info(f"Removing {quoted(path)}")
            path.unlink(missing_ok=True)


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except OSError as error:
        LOG.error((error.strerror or "").lower())


def _stop_gracefully(found: Instance) -> None:
    if found.status != RUNNING:
        raise LimaError(
            f"expected status {quoted(RUNNING)}, got {quoted(found.status)} (maybe use `limactl stop -f`?)"
        )
    begin = time.time()
    LOG.info(f"Sending SIGINT to hostagent process {found.host_agent_pid}")
    try:
        os.kill(found.host_agent_pid, signal.SIGINT)
    except OSError as error:
        LOG.error((error.strerror or "").lower())
    LOG.info("Waiting for the host agent and the driver processes to shut down")
    exiting = False
    for status in watching.statuses(found.folder, begin, _HOST_AGENT_TIMEOUT_S):
        watching.tell_errors(status)
        if status.get("exiting"):
            exiting = True
            break
    if not exiting:
        raise LimaError("did not receive an event with the `exiting` status")
    LOG.info("Waiting for the instance to shut down")
    deadline = time.monotonic() + _SHUTDOWN_TIMEOUT_S
    while time.monotonic() < deadline:
        time.sleep(_SHUTDOWN_STEP_S)
        if inspect(found.name).status == STOPPED:
            LOG.info(f"The instance {found.name} has shut down")
            return
    raise LimaError("timed out waiting for instance to shut down after 3 minutes")


def _delete(found: Instance, *, force: bool) -> None:
    if found.protected:
        raise LimaError(
            "instance is protected to prohibit accidental removal (Hint: use `limactl unprotect`)"
        )
    if not force and found.status != STOPPED:
        raise LimaError(f"expected status {quoted(STOPPED)}, got {quoted(found.status)}")
    stop_forcibly(found)
    try:
        faults.strike_delete(found.folder)
        _remove(found.folder)
    except OSError as error:
        raise LimaError(
            f"failed to remove {quoted(found.folder)}: {os_error_text(error, 'unlinkat')}"
        ) from None


def _remove(folder: Path) -> None:
    """Remove a folder in which others may still write, or remove."""
    for path in folder.iterdir():
        try:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        except FileNotFoundError:
            continue
    folder.rmdir()
