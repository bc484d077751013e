"""What an instance is right now, read from its folder and from the processes that it names."""

import os
import socket
from pathlib import Path
from typing import Any

from . import document, names
from .defaults import machine
from .errors import LimaError, NotFoundError, os_error_text
from .log import quoted
from .sizes import parse_size

STOPPED, RUNNING, BROKEN = "Stopped", "Running", "Broken"

_ANSWER_TIMEOUT_S = 3.0


class Instance:
    """One instance's state. `config` is None when its YAML can't be used; `errors` say why."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name = name
        self.folder = folder
        self.hostname = names.hostname(name)
        self.status = ""
        self.config: dict[str, Any] | None = None
        self.errors: list[str] = []
        self.error_details: list[dict[str, Any]] = []
        self.ssh_port = 0
        self.host_agent_pid = 0
        self.driver_pid = 0
        self.protected = False
        self.lima_version = ""

    @property
    def ssh_config_file(self) -> Path:
        return self.folder / "ssh.config"

    def settings(self) -> dict[str, Any]:
        """Return the configuration of an instance that is known to have one."""
        if self.config is None:
            raise LimaError(f"instance {quoted(self.name)} has no configuration")
        return self.config

    def listing(self) -> dict[str, Any]:
        """Return what ``list --json`` prints: empty fields and mappings are left out."""
        settings = self.config
        found: dict[str, Any] = {
            "name": self.name,
            "hostname": self.hostname,
            "status": self.status,
            "dir": str(self.folder),
            "vmType": settings["vmType"] if settings else "",
            "arch": settings["arch"] if settings else "",
        }
        if settings:
            found |= {
                "cpus": settings["cpus"],
                "memory": parse_size(settings["memory"]),
                "disk": parse_size(settings["disk"]),
                "message": settings["message"] or None,
                "additionalDisks": settings["additionalDisks"],
                "sshLocalPort": self.ssh_port or None,
                "sshConfigFile": str(self.ssh_config_file),
                "hostAgentPID": self.host_agent_pid or None,
                "driverPID": self.driver_pid or None,
            }
        if settings:
            found |= {"config": settings, "sshAddress": "127.0.0.1"}
        found |= {"protected": self.protected, "limaVersion": self.lima_version}
        if settings:
            found["param"] = settings["param"] or None
        found |= {
            "HostOS": "linux",
            "HostArch": machine(),
            "LimaHome": str(names.home()),
            "IdentityFile": str(names.config_dir() / "user"),
        }
        listed = without_empty(found)
        # Most errors have no text in JSON: an empty list is all that is left of them.
        return _with_errors(listed, self.error_details) if self.errors else listed


def _with_errors(listed: dict[str, Any], details: list[dict[str, Any]]) -> dict[str, Any]:
    """Put errors in their place: before the configuration."""
    late = ("config", "sshAddress", "protected", "limaVersion", "param")
    late += ("HostOS", "HostArch", "LimaHome", "IdentityFile")
    early = {key: value for key, value in listed.items() if key not in late}
    return early | {"errors": details} | {key: listed[key] for key in late if key in listed}


def inspect(name: str) -> Instance:
    """Look at an instance.

    Raises:
        LimaError: the name is none.
        NotFoundError: it has no ``lima.yaml``.
    """
    folder = names.instance_dir(name)
    found = Instance(name, folder)
    path = folder / "lima.yaml"
    try:
        found.config = document.read(path)
    except FileNotFoundError as error:
        error.filename = path
        raise NotFoundError(os_error_text(error, "open")) from None
    except OSError as error:
        found.errors.append(os_error_text(error, "open"))
        return found
    except LimaError as error:
        found.errors.append(str(error))
        return found
    found.ssh_port = found.config["ssh"]["localPort"]
    found.host_agent_pid = _process(found, folder / "ha.pid")
    if found.host_agent_pid:
        _ask_host_agent(found)
    if not found.ssh_port:
        found.ssh_port = _port_in_ssh_config(found)
    found.protected = (folder / "protected").exists()
    _inspect_processes(found)
    version = folder / "lima-version"
    if version.exists():
        found.lima_version = version.read_text(encoding="utf-8").strip()
    return found


def broken(name: str, error: str) -> Instance | None:
    """Return what is listed for a folder that has no ``lima.yaml``; None when the folder is gone, too."""
    folder = names.instance_dir(name)
    if not folder.exists():
        return None
    found = Instance(name, folder)
    found.hostname = ""
    found.status = BROKEN
    found.errors = [error]
    found.error_details = [{"Op": "open", "Path": str(folder / "lima.yaml"), "Err": 2}]
    return found


def read_pid(path: Path) -> int:
    """Return the process that a file names; 0 when there is none, or it has ended. Then the file goes, too.

    Raises:
        OSError: the file can't be read.
        ValueError: there is no number in it.
    """
    try:
        pid = int(path.read_text(encoding="utf-8").strip())
    except FileNotFoundError:
        return 0
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        path.unlink(missing_ok=True)
        return 0
    except PermissionError:
        pass
    return pid


def without_empty(value: Any) -> Any:
    """Return a JSON value without nulls, nor mappings and lists that are empty, in mappings."""
    if isinstance(value, dict):
        kept = {key: without_empty(inner) for key, inner in value.items()}
        return {key: inner for key, inner in kept.items() if inner is not None and inner not in ({}, [])}
    if isinstance(value, list):
        return [without_empty(inner) for inner in value]
    return value


def _process(found: Instance, path: Path) -> int:
    try:
        return read_pid(path)
    except ValueError as error:
        text = str(error).rpartition(": ")[2].strip("'")
        found.errors.append(f'strconv.Atoi: parsing "{text}": invalid syntax')
    except OSError as error:
        found.errors.append(os_error_text(error, "open"))
    found.status = BROKEN
    return 0


def _ask_host_agent(found: Instance) -> None:
    path = found.folder / "ha.sock"
    try:
        if not path.exists():
            raise FileNotFoundError(2, "No such file or directory", str(path))
    except OSError as error:
        found.status = BROKEN
        found.errors.append(f"failed to connect to {quoted(path)}: {os_error_text(error, 'stat')}")
        return
    try:
        found.ssh_port = _info(path).get("sshLocalPort", 0)
    except (OSError, ValueError) as error:
        found.status = BROKEN
        reason = f'Get "http://lima-hostagent/v1/info": dial unix {path}: connect: {_reason(error)}'
        found.errors.append(f"failed to get Info from {quoted(path)}: {reason}")


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _info(path: Path) -> dict[str, Any]:
    """Ask a host agent what it knows that no file says."""
    import json

    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_ANSWER_TIMEOUT_S)
        connection.connect(str(path))
        connection.sendall(b"GET /v1/info HTTP/1.1\r\nHost: lima-hostagent\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := connection.recv(65536):
            answer += data
    found = json.loads(answer.partition(b"\r\n\r\n")[2])
    if not isinstance(found, dict):
        raise TypeError("no object")
    return found


def _port_in_ssh_config(found: Instance) -> int:
    try:
        text = found.ssh_config_file.read_text(encoding="utf-8")
    except OSError:
        return 0
    for line in text.splitlines():
        if line.strip().startswith("Port "):
            return int(line.split()[1])
    return 0


def _inspect_processes(found: Instance) -> None:
    found.driver_pid = _process(found, found.folder / "qemu.pid")
    if found.status:
        return
    if found.host_agent_pid and found.driver_pid:
        found.status = RUNNING
    elif not found.host_agent_pid and not found.driver_pid:
        found.status = STOPPED
    elif found.host_agent_pid:
        found.status = BROKEN
        found.errors.append("host agent is running but driver is not")
    else:
        found.status = BROKEN
        found.errors.append("qemu driver is running but host agent is not")
