"""F8: what the supervisor costs a terminal's bytes: throughput, and the echo of a key.

The same loopback sshd on both sides. One goes through the real client and the supervisor's own streams, the
other through asyncssh alone. Keys take turns between the two: what is added is a difference of neighbours.
"""

import contextlib
import os
import random
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from claude_vm.bench.children import open_terminal
from claude_vm.bench.errors import BenchError, UnavailableError
from claude_vm.bench.figures.targets import added_line, line
from claude_vm.bench.lab import Lab
from claude_vm.bench.records import SHOWN, Figures, Line, Sample
from claude_vm.bench.sims.access import write_access
from claude_vm.bench.sims.programs import running
from claude_vm.bench.sims.sshd import open_sshd
from claude_vm.bench.site import Site, program
from claude_vm.bench.stats import percentile

KEYS = 500
BYTES = 24 * 1024 * 1024
MOST_STREAMS = 15
"""Pairs of streams that are compared, at most; half a second each."""
PAUSE_S = 0.002
PATIENCE_S = 120.0
OURS, BARE = "through the supervisor", "bare asyncssh"

_FLOOD = "exec yes"
_ECHO = "stty -echo raw; printf ready; exec cat"
_STREAM = (
    "stty raw -echo; printf ready; head -c 1 >/dev/null;"
    f" head -c {BYTES} /dev/zero | tr '\\0' x; printf '\\n'"
)


class Talk:
    """A program on a terminal of ours."""

    def __init__(self, child: subprocess.Popen[bytes], terminal: int) -> None:
        self._child = child
        self._terminal = terminal

    def send(self, data: bytes) -> None:
        """Type something."""
        os.write(self._terminal, data)

    def read(self, limit: int = 1 << 20) -> bytes:
        """Return what comes next.

        Raises:
            BenchError: Nothing does.
        """
        ready, _, _ = select.select([self._terminal], [], [], PATIENCE_S)
        with contextlib.suppress(OSError):
            if ready and (data := os.read(self._terminal, limit)):
                return data
        raise BenchError("a terminal of the bench is silent")

    def wait_for(self, text: bytes) -> None:
        """Wait until something has come."""
        seen = b""
        while text not in seen:
            seen = (seen + self.read())[-4096:]

    def close(self) -> None:
        """End the program."""
        self._child.kill()
        self._child.wait()
        os.close(self._terminal)


def _started(argv: Sequence[str | Path], site: Site, way: int) -> subprocess.Popen[bytes]:
    """Start a program whose input and output go the same `way`: a descriptor, or `subprocess.DEVNULL`."""
    return subprocess.Popen(
        argv,
        stdin=way,
        stdout=way,
        stderr=subprocess.DEVNULL,
        env=site.env,
        cwd=site.project,
        start_new_session=True,
    )


@contextlib.contextmanager
def talking(argv: Sequence[str | Path], site: Site) -> Iterator[Talk]:
    """Give a program on a terminal, until the block's end."""
    ours, theirs = open_terminal()
    child = _started(argv, site, theirs)
    os.close(theirs)
    talk = Talk(child, ours)
    try:
        yield talk
    finally:
        talk.close()


def echo_s(talk: Talk) -> float:
    """Return the seconds from a key to its echo."""
    begun = time.monotonic()
    talk.send(b"k")
    talk.read()
    return time.monotonic() - begun


def throughput(talk: Talk) -> float:
    """Return the bytes per second of one stream, from its first byte to its last."""
    talk.wait_for(b"ready")
    talk.send(b"g")
    count = len(talk.read())
    begun = time.monotonic()
    while True:
        data = talk.read()
        count += len(data)
        if data.endswith(b"\n"):
            return count / (time.monotonic() - begun)


def _check_terminal(talk: Talk) -> None:
    """Raise UnavailableError where sshd gives no terminal to somebody who is not root."""
    try:
        talk.wait_for(b"ready")
    except BenchError as error:
        raise UnavailableError(
            "an sshd without privileges gives no terminal here: devpts is not mounted with the group tty"
        ) from error


def streams(lab: Lab, rounds: int) -> Figures:
    """F8: throughput in turns, then keys in turns, alone and beside a flood."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cvb-")))
        access = stack.enter_context(open_sshd(folder))
        root = folder / "site"
        project = root / "project"
        project.mkdir(parents=True)
        site = Site(root, project)
        write_access(access, site.home / "access.json")
        stack.enter_context(running("relayed", str(site.home)))

        def ours(command: str) -> list[str | Path]:
            return [program(), "shell", command]

        def bare(command: str) -> list[str | Path]:
            told = str(site.home / "access.json")
            return [sys.executable, "-P", "-m", "claude_vm.bench.sims.plainssh", told, command]

        with talking(bare(_ECHO), site) as talk:
            _check_terminal(talk)
        lab.tell("F8: throughput")
        rates: dict[str, list[float]] = {OURS: [], BARE: []}
        sides = [(OURS, ours), (BARE, bare)]
        for index in range(max(5, min(rounds, MOST_STREAMS))):
            for name, argv in sides if index % 2 else reversed(sides):
                with talking(argv(_STREAM), site) as talk:
                    rates[name].append(throughput(talk))
        samples = []
        for name, flooded in (("alone", False), ("beside a flood", True)):
            lab.tell(f"F8: keys {name}")
            with contextlib.ExitStack() as talks:
                if flooded:
                    _flood(talks, ours, site)
                a = talks.enter_context(talking(ours(_ECHO), site))
                b = talks.enter_context(talking(bare(_ECHO), site))
                samples += keys(a, b, name)
    return samples, stream_lines(rates, samples)


def _flood(stack: contextlib.ExitStack, ours: Callable[[str], list[str | Path]], site: Site) -> None:
    """Let another session of the same supervisor flood; its client's output goes nowhere."""
    flood = _started(ours(_FLOOD), site, subprocess.DEVNULL)
    stack.callback(flood.wait)
    stack.callback(flood.kill)


def keys(ours: Talk, bare: Talk, pattern: str) -> list[Sample]:
    """Type keys in turns and return the time of each echo; the order within a turn changes."""
    for talk in (ours, bare):
        talk.wait_for(b"ready")
    chance = random.Random(1)  # noqa: S311 - an order, no secret
    samples = []
    sides = [(OURS, ours), (BARE, bare)]
    for index in range(-20, KEYS):
        chance.shuffle(sides)
        for name, talk in sides:
            taken = echo_s(talk)
            samples.append(
                Sample(mode=name, pattern=pattern, kind="echo", round=index, instants={SHOWN: taken})
            )
            time.sleep(PAUSE_S)
    return samples


def stream_lines(rates: dict[str, list[float]], samples: Sequence[Sample]) -> list[Line]:
    """Return F8's lines, from bytes per second and echoes; a stream is compared with its neighbour."""
    lines = [line("F8.rate")]
    if rates[OURS] and rates[BARE]:
        a, b = (percentile(rates[name], 50) / 1e6 for name in (OURS, BARE))
        ratios = [ours / bare for ours, bare in zip(rates[OURS], rates[BARE], strict=True)]
        measured = f"{a:.1f} MB/s : {b:.1f} MB/s (n={len(ratios)})"
        lines = [line("F8.rate", percentile(ratios, 50), measured)]
    for key, pattern in (("echo", "alone"), ("flood", "beside a flood")):
        ours, bare = (
            [s.shown_ms for s in samples if s.mode == name and s.pattern == pattern and s.round >= 0]
            for name in (OURS, BARE)
        )
        lines += [added_line(f"F8.{key}.{which}", ours, bare, digits=2) for which in ("p50", "p95")]
    return lines
