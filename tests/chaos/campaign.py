"""Random kills of real VMs, supervisors, connections and clients, and real claims in bursts; prints figures.

Started by ``make chaos``. CHAOS_KILLS and CHAOS_CLAIMS say how many (200), CHAOS_SEED repeats a run's choices
(what is hit depends also on the machine), CHAOS_ROOT is a folder whose installation is used and kept.
"""

# ruff: noqa: T201 - its output is what it is for

import collections
import concurrent.futures
import contextlib
import importlib.util
import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).parent
BURST = 8
READY = 4
CLIENT_S = 150.0
LONGEST_WAIT_S = 3.5

# What a session tells of its VM. A second session in the same one would find the mark of the first.
SESSION = (
    "test -e /tmp/used && echo DIRTY; touch /tmp/used;"
    ' echo "vm $(cat /etc/machine-id) $(hostname)"; sleep {seconds}; echo end'
)


def _load(name, path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


e2e = _load("claude_vm_tests_e2e", HERE.parent / "e2e" / "conftest.py")
survey = _load("claude_vm_tests_survey", HERE / "survey.py")
killing = _load("claude_vm_tests_killing", HERE / "killing.py")


class Figures:
    """What was found so far."""

    def __init__(self):
        self.kills = collections.Counter()
        self.ends = collections.Counter()
        self.leaks = []
        self.double = []
        self.wrong_ends = []
        self.vms = collections.Counter()

    def took(self, output):
        """Note the VM that a session ran in."""
        lines = output.decode(errors="replace").splitlines()
        if "DIRTY" in lines:
            self.double.append("a VM with the mark of another session")
        for line in lines:
            if line.startswith("vm "):
                self.vms[line] += 1
                if self.vms[line] > 1:
                    self.double.append(line)

    def ended(self, status, output, errors):
        """Judge the end of a client that was not killed itself."""
        said = errors.decode(errors="replace")
        complete = output.endswith(b"end\n")
        code = said.rpartition("[")[2].partition("]")[0] if "[" in said else ""
        told = status == 125 and "claude-vm: " in said and code
        if "Traceback" in said or not ((status == 0 and complete) or told):
            self.wrong_ends.append(f"status {status}, {output!r}, {said!r}")
        self.ends[code or "0"] += 1


class House:
    """An installation, and a look at what is left of its sessions."""

    def __init__(self, installation):
        self.installation = installation
        self.daemon_pid = installation.daemon_pid
        self.vm_pids = installation.vm_pids
        self.run = installation.run
        installation.env.pop("CLAUDE_VM_FAULT", None)
        self.configure(0)
        self.run("shell", "true")
        self.survey = survey.Survey(installation.home, self.ask)

    def ask(self, *words):
        done = self.run(*words, "--json")
        if done.returncode:
            raise RuntimeError(f"{words}: {done.stderr.decode()}")
        return json.loads(done.stdout)

    def configure(self, ready):
        self.installation.configure(f'[pool]\nsize = {ready}\nmemory_budget = "64GB"\nmax_instances = 12\n')

    def session(self, seconds):
        return self.installation.popen(
            "shell",
            "--",
            "sh",
            "-c",
            SESSION.format(seconds=seconds),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )


def kill_once(house, rng, figures):
    """Start some sessions, kill something, and see what becomes of all."""
    if rng.random() < 0.3:  # at a transition that a ready VM would skip
        house.run("pool", "drain")
    clients = [house.session(rng.choice((0, 1, 3))) for _ in range(rng.randrange(3))]
    wait_s = rng.random() * LONGEST_WAIT_S
    time.sleep(wait_s)
    kinds = list(killing.VICTIMS)
    rng.shuffle(kinds)
    for kind in kinds:
        what = killing.strike(kind, house, clients, rng)
        if what:
            figures.kills[kind] += 1
            break
    killed = {c.pid for c in clients if what == f"a client ({c.pid})"}
    for client in clients:
        try:
            output, errors = client.communicate(timeout=CLIENT_S)
        except subprocess.TimeoutExpired:
            client.kill()
            output, errors = client.communicate()
            figures.wrong_ends.append("a client that hangs")
            continue
        figures.took(output)
        if client.pid not in killed:
            figures.ended(client.returncode, output, errors)
    left = house.survey.settle(120)
    figures.leaks += left
    figures.double += [f"journal: {name}" for name in house.survey.double_claims()]
    states = f"{len(clients)} sessions, after {wait_s:.2f} s, killed {what or 'nothing'}"
    print(
        f"  {sum(figures.kills.values())}: {states}{'; LEFT: ' + '; '.join(left) if left else ''}", flush=True
    )


def kills(house, count, seed):
    """Kill so often; return the figures."""
    figures = Figures()
    house.configure(1)
    number = 0
    while sum(figures.kills.values()) < count and number < 3 * count:
        number += 1
        kill_once(house, random.Random(f"{seed} {number}"), figures)
    return figures


def claims(house, count):
    """Have so many sessions in bursts; return the figures."""
    figures = Figures()
    house.configure(READY)
    house.run("pool", "drain")
    with concurrent.futures.ThreadPoolExecutor(BURST) as burst:
        for first in range(0, count, BURST):
            house.run("pool", "fill")
            sessions = [house.session(0) for _ in range(min(BURST, count - first))]
            for client, (output, errors) in zip(
                sessions, burst.map(lambda c: c.communicate(timeout=300), sessions), strict=True
            ):
                figures.took(output)
                figures.ended(client.returncode, output, errors)
            house.installation.end_started()
            print(
                f"  {len(figures.vms)} of {first + len(sessions)} sessions in a VM of their own", flush=True
            )
    figures.double += [f"journal: {name}" for name in house.survey.double_claims()]
    figures.leaks += house.survey.settle(120)
    return figures


@contextlib.contextmanager
def installed():
    """Give an installation with a template."""
    kept = os.environ.get("CHAOS_ROOT")
    root = Path(kept) if kept else Path(tempfile.mkdtemp(prefix="chaos-", dir="/tmp"))
    made = e2e.Installation(root)
    try:
        if not list((made.home / "templates").glob("*/qemu/current")):
            subprocess.run(["git", "init", "-q", "-b", "main", made.project], check=True)
            print("building the template", flush=True)
            done = made.run("setup", timeout=e2e.SETUP_TIMEOUT_S)
            if done.returncode:
                raise RuntimeError(done.stderr.decode())
        yield made
    finally:
        made.end_started()
        made.run("daemon", "stop", "--force")
        if not kept:
            shutil.rmtree(root, ignore_errors=True)


def count_by_kind(leaks):
    """Return what is left by its kind, as text."""
    kinds = collections.Counter()
    for line in leaks:
        if "qemu-system" in line:
            kinds["VMs"] += 1
        elif line.startswith("process"):
            kinds["processes"] += 1
        elif "/run/" in line:
            kinds["sockets"] += 1
        else:
            kinds["disks and other files"] += 1
    return ", ".join(
        f"{name}: {kinds[name]}" for name in ("VMs", "processes", "sockets", "disks and other files")
    )


def main():
    """Run the campaign; return an exit status."""
    seed = os.environ.get("CHAOS_SEED") or str(secrets.randbits(32))
    kill_count = int(os.environ.get("CHAOS_KILLS", "200"))
    claim_count = int(os.environ.get("CHAOS_CLAIMS", "200"))
    begun = time.monotonic()
    print(f"CHAOS_SEED={seed} CHAOS_KILLS={kill_count} CHAOS_CLAIMS={claim_count}", flush=True)
    with installed() as installation:
        house = House(installation)
        killed = kills(house, kill_count, seed)
        claimed = claims(house, claim_count)
        house.configure(0)
        house.run("pool", "drain", "--all")
        rest = house.survey.settle() + installation.vm_pids()
    print(f"\nseed {seed}, {time.monotonic() - begun:.0f} s")
    print(f"kills: {sum(killed.kills.values())} ({dict(killed.kills)}); ends of clients: {dict(killed.ends)}")
    print(f"left over: {count_by_kind(killed.leaks + claimed.leaks)}; after all: {len(rest)}")
    print(f"real claims: {sum(claimed.vms.values())} in bursts of {BURST} on a pool of {READY}")
    print(f"double: {len(killed.double + claimed.double)}")
    wrong = killed.wrong_ends + claimed.wrong_ends
    print(f"clients without status and message: {len(wrong)}")
    found = [*killed.leaks, *claimed.leaks, *rest, *killed.double, *claimed.double, *wrong]
    for line in found:
        print(f"  {line}")
    return 1 if found or sum(claimed.vms.values()) != claim_count else 0


if __name__ == "__main__":
    sys.exit(main())
