"""What is left of a home's sessions beside the VMs that its pool reports as ready.

Three sources that know nothing of each other: the leak check looks at processes and files, the pool's own
listing says how many VMs are meant to be there, and the journal says which VM was given to which session.
"""

import contextlib
import importlib.util
import re
import sqlite3
import time
from collections import Counter
from pathlib import Path

import psutil

from claude_vm.supervisor.core.session import LOST_GUEST
from claude_vm.supervisor.wire.paths import runtime_directory

INSTANCE = re.compile(r"(?:\bi-|/)([0-9a-f]{10})\b")
"""The id of an instance, in a folder's name or in that of its sockets."""
SIMULATED = "CLAUDE_VM_SIM"
"""The variable in the environment of each process of a simulated guest; its value is the guest's folder."""


def _leak_check():
    path = Path(__file__).parents[1] / "e2e" / "leaks.py"
    spec = importlib.util.spec_from_file_location("claude_vm_tests_leaks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.LeakCheck


LeakCheck = _leak_check()


class Survey:
    """One home, from the moment that this is made. `ask` runs the program and returns its JSON."""

    def __init__(self, data, ask):
        self.data = data
        self.ask = ask
        self.check = LeakCheck(data)

    def surplus(self):
        """Return a line for each thing that should not be there. There must be no sessions and no changes."""
        status = self.ask("pool", "status")
        ready = sum(pool["warm"] + pool["paused"] for pool in status["pools"])
        lines = [line for line in self.check.leaks() if not self._is_anothers(line)]
        lines += self._guests_processes()
        of_instances = {name for line in lines for name in INSTANCE.findall(line)}
        found = [line for line in lines if not INSTANCE.search(line)]
        if len(of_instances) != ready or status["instances"] != ready:
            found.append(f"{ready} VMs are ready, but there are things of {sorted(of_instances)}")
            found += [line for line in lines if INSTANCE.search(line)]
        return found

    def settle(self, timeout_s=30.0):
        """Wait until no session runs and nothing is being made; return what is there and should not be."""
        deadline = time.monotonic() + timeout_s
        while True:
            sessions = self.ask("ps")
            status = self.ask("pool", "status")
            moving = sum(pool["making"] + pool["in_sessions"] for pool in status["pools"])
            lacking = [p for p in status["pools"] if p["warm"] + p["paused"] < p["wanted"]]
            found = [f"session {row}" for row in sessions]
            if not sessions and not moving and not lacking:
                found = self.surplus()
                if not found:
                    return []
            if time.monotonic() > deadline:
                return found or [f"it does not come to rest: {status}"]
            time.sleep(0.1)

    def claims(self):
        """Return (VM, session, end) of each time that a session got a VM, in order."""
        path = self.data / "supervisors" / "daemon" / "journal.db"
        with contextlib.closing(sqlite3.connect(path, timeout=10)) as journal:
            return journal.execute(
                "SELECT instance_id, session_id, outcome FROM effects WHERE kind='run' ORDER BY seq"
            ).fetchall()

    def double_claims(self):
        """Return the VMs that were given out twice, and the sessions that were given two.

        A session whose VM was out of reach before its command began gets another one, which is no second.
        """
        claims = self.claims()
        vms = Counter(vm for vm, _, _ in claims)
        sessions = Counter(session for _, session, end in claims if end not in LOST_GUEST)
        return [name for count in (vms, sessions) for name, times in count.items() if times > 1]

    def _is_anothers(self, line):
        """Tell whether something in a folder that everybody uses is not of this home."""
        kind, _, path = line.partition(" ")
        return kind == "temporary" and path != runtime_directory(str(self.data))

    def _guests_processes(self):
        """Processes of simulated guests whose argument lists tell nothing."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                folder = process.environ().get(SIMULATED, "")
                if folder.startswith(f"{self.data}/"):
                    found.append(f"process {process.pid} of {folder}")
        return found
