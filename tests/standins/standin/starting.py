"""``start``: a host agent in the background that is watched until the guest is ready, or in our own place."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from . import networks, watching
from .creation import prepare
from .errors import LimaError
from .instance import RUNNING, STOPPED, Instance
from .log import LOG, quoted

_AGENT_TIMEOUT_S = 5.0
_AGENT_STEP_S = 0.005


def start(found: Instance, *, foreground: bool, timeout_s: float, prefix: Path) -> None:
    """Start an instance that may run already. In the foreground this process becomes the host agent.

    Raises:
        LimaError: it can't start, or the guest is not ready in time.
    """
    if found.errors:
        raise LimaError(f"errors inspecting instance: [{' '.join(found.errors)}]")
    if found.status == RUNNING:
        LOG.info(
            f"The instance {quoted(found.name)} is already running. "
            f"Run `{_shell(found.name)}` to open the shell."
        )
        return
    if found.status != STOPPED:
        LOG.warning(f"expected status {quoted(STOPPED)}, got {quoted(found.status)}")
    networks.reconcile()
    pid_file = found.folder / "ha.pid"
    if pid_file.exists():
        raise LimaError(
            f"instance {quoted(found.name)} seems running "
            f"(hint: remove {quoted(pid_file)} if the instance is not actually running)"
        )
    LOG.info(f"Starting the instance {quoted(found.name)} with internal VM driver `qemu`")
    prepare(found, prefix)
    words = [sys.executable, "-IB", sys.argv[0], "hostagent"]
    words += ["--pidfile", str(pid_file), "--socket", str(found.folder / "ha.sock"), found.name]
    begin = time.time()
    out, err = (_fresh(found.folder / name) for name in ("ha.stdout.log", "ha.stderr.log"))
    if foreground:
        _become(words, out, err)
    agent = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=err, process_group=0)
    os.close(out)
    os.close(err)
    _wait_for_agent(pid_file, found.folder / "ha.stderr.log")
    _watch(found, agent, begin, timeout_s)


def _fresh(path: Path) -> int:
    """Return a new, empty file's descriptor: a follower of the old one sees no mix."""
    path.unlink(missing_ok=True)
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)


def _become(words: list[str], out: int, err: int) -> None:
    LOG.info("Running the host agent in the foreground")
    if sys.stdin.isatty():
        text = b"This log file is not used: `limactl start --foreground` writes to its terminal."
        os.write(out, text)
        os.write(err, text)
    else:
        os.dup2(out, 1)
        os.dup2(err, 2)
    os.execv(words[0], words)


def _wait_for_agent(pid_file: Path, log: Path) -> None:
    deadline = time.monotonic() + _AGENT_TIMEOUT_S
    while not pid_file.exists():
        if time.monotonic() > deadline:
            raise LimaError(
                f"hostagent ({quoted(pid_file)}) did not start up in 5s (hint: see {quoted(log)})"
            )
        time.sleep(_AGENT_STEP_S)


def _watch(found: Instance, agent: "subprocess.Popen[bytes]", begin: float, timeout_s: float) -> None:
    log = found.folder / "ha.stderr.log"
    port_told = False
    for status in watching.statuses(found.folder, begin, timeout_s, lambda: agent.poll() is not None):
        if not port_told and status.get("sshLocalPort"):
            LOG.info(f"SSH Local Port: {status['sshLocalPort']}")
            port_told = True
        watching.tell_errors(status)
        if status.get("exiting"):
            raise LimaError(f"exiting, status={_go_text(status)} (hint: see {quoted(log)})")
        if status.get("running"):
            _tell_ready(found, status, log)
            return
    if agent.poll() is not None:
        raise LimaError(f"host agent process has exited: exit status {agent.returncode}")
    raise LimaError("did not receive an event with the `running` status")


def _tell_ready(found: Instance, status: dict[str, Any], log: Path) -> None:
    if status.get("degraded"):
        LOG.warning(
            "DEGRADED. The VM seems running, but file sharing and port forwarding may not work. "
            f"(hint: see {quoted(log)})"
        )
        raise LimaError(f"degraded, status={_go_text(status)}")
    command = f"ssh -F {quoted(found.ssh_config_file)} {found.hostname}"
    if not found.settings()["plain"]:
        command = _shell(found.name)
    LOG.info(f"READY. Run `{command}` to open the shell.")


def _shell(name: str) -> str:
    return "lima" if name == "default" else f"limactl shell {name}"


def _go_text(status: dict[str, Any]) -> str:
    flags = " ".join(
        f"{key.title()}:{str(bool(status.get(key))).lower()}" for key in ("running", "degraded", "exiting")
    )
    errors = " ".join(status.get("errors") or ())
    port = status.get("sshLocalPort", 0)
    rest = "CloudInitProgress:<nil> PortForward:<nil> Vsock:<nil>"
    return f"{{{flags} Errors:[{errors}] SSHLocalPort:{port} {rest}}}"
