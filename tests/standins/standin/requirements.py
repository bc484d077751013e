"""Waiting for a guest: by running commands in it over SSH, again three seconds after each failure.

Nothing else tells the host agent that a guest is there; so one that is ready at once is still called ready
late.
"""

import shutil
import subprocess
import threading
from typing import Final, NamedTuple

from . import sshkeys
from .instance import Instance
from .log import LOG, quoted

_TRIES: Final = 200
_PAUSE_S: Final = 3.0

# Gives each script the instance's parameters, as it expects them.
_INTERPRETER: Final = (
    '/bin/bash -c \'while read -r line; do if [ -n "$line" ]; then export "$line"; fi; done '
    "< <(sudo cat /mnt/lima-cidata/param.env); exec {interpreter}'"
)


class Requirement(NamedTuple):
    """A script that must succeed in the guest. Without `master` it gets a connection of its own."""

    description: str
    script: str
    hint: str
    master: bool = True


def essential() -> list[Requirement]:
    nothing = "#!/bin/sh\ntrue\n"
    return [
        Requirement(
            "ssh",
            nothing,
            "The guest can't be reached by SSH.\nIs `ssh.localPort` used by another program on the host?\n",
            master=False,
        ),
        Requirement("Explicitly start ssh ControlMaster", nothing, "The ControlMaster should start at once."),
    ]


def optional(found: Instance) -> list[Requirement]:
    probes = found.settings()["probes"]
    return [Requirement(p["description"], p["script"], p.get("hint") or "") for p in probes]


def final(instance_id: str) -> list[Requirement]:
    script = f'#!/bin/sh\n[ "$(cat /run/lima-boot-done 2>/dev/null)" = "{instance_id}" ]\n'
    hint = (
        "All boot scripts, provisioning scripts and probes must end before the instance is ready.\n"
        'See "/var/log/cloud-init-output.log in the guest".\n'
    )
    return [Requirement("boot scripts must have finished", script, hint)]


class Waiter:
    """Waits for requirements of one guest until it is told to stop."""

    def __init__(self, options: list[str], port: int) -> None:
        self._options = options
        self._port = port
        self._stopped = threading.Event()

    @property
    def stopped(self) -> bool:
        return self._stopped.is_set()

    def stop(self) -> None:
        self._stopped.set()

    def wait(self, label: str, wanted: list[Requirement]) -> list[str]:
        """Wait for each in turn; return what went wrong."""
        problems = []
        for number, requirement in enumerate(wanted, 1):
            if self.stopped:
                break
            which = f"The {label} requirement {number} of {len(wanted)}"
            LOG.info(f"Waiting for {which[0].lower()}{which[1:]}: {quoted(requirement.description)}")
            problem = self._wait(requirement)
            if problem is None:
                LOG.info(f"{which} is satisfied")
            else:
                what = f"the {label} requirement {number} of {len(wanted)} {quoted(requirement.description)}"
                problems.append(f"failed to satisfy {what}: {requirement.hint}: {problem}")
        return problems

    def _wait(self, requirement: Requirement) -> str | None:
        problem: str | None = "stopped"
        for _ in range(_TRIES):
            if self._stopped.is_set():
                break
            LOG.debug(f"executing script {quoted(requirement.description)}")
            problem = self._run(requirement)
            if problem is None:
                return None
            self._stopped.wait(_PAUSE_S)
        return problem

    def _run(self, requirement: Requirement) -> str | None:
        interpreter = requirement.script.partition("\n")[0].removeprefix("#!").strip()
        words = sshkeys.arguments(self._options, master=requirement.master)
        words += ["-p", str(self._port), sshkeys.ADDRESS, "--", _INTERPRETER.format(interpreter=interpreter)]
        what = f'"{requirement.description}": {shutil.which("ssh")} [ssh {" ".join(words)}]'
        LOG.debug(f"executing ssh for script {what}")
        done = subprocess.run(
            ["ssh", *words], input=requirement.script.encode(), capture_output=True, check=False
        )
        said = [output.decode(errors="replace") for output in (done.stdout, done.stderr)]
        outputs = f"stdout={quoted(said[0])}, stderr={quoted(said[1])}"
        problem = f"exit status {done.returncode}" if done.returncode else None
        LOG.debug(f"{outputs}, err={problem or '<nil>'}")
        return f"{outputs}: {problem}" if problem else None


def exit_master(options: list[str], port: int) -> None:
    """End the connection that stays open for others."""
    words = [*sshkeys.arguments(options), "-O", "exit", "-p", str(port), sshkeys.ADDRESS]
    done = subprocess.run(["ssh", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        reason = f"out={done.stderr!r}: exit status {done.returncode}"
        LOG.warning("failed to exit SSH master", error=reason)
