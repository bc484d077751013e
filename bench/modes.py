"""How each mode and each baseline runs one command, and what must be so before it does."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import msgspec

from claude_vm.bench import children, marks
from claude_vm.bench.byhand import ByHand
from claude_vm.bench.limahand import LimaByHand
from claude_vm.bench.plan import Turn
from claude_vm.bench.records import EXITED, SHOWN, Sample
from claude_vm.bench.site import Site, program
from claude_vm.bench.ssh import Login

MODES = ("cold", "clone", "restore", "warm")
"""How a session comes by its VM: a boot, a clone of a saved memory, one started ahead, a ready one."""

PROMPT_WORDS = ("shell",)
OUTPUT_WORDS = ("shell", "echo", "ready")


class Mode(Protocol):
    """Something whose waiting time is measured."""

    def prepare(self, count: int) -> None:
        """Get ready for so many commands. Not measured.

        Raises:
            UnavailableError: It can't be measured here.
        """
        ...

    def run(self, kind: str) -> children.Timing:
        """Run one command to its end. Called from several threads."""
        ...

    def finish(self, timings: Sequence[children.Timing]) -> list[tuple[str, dict[str, float]]]:
        """Return what else is known of each command: how its VM came, and more instants."""
        ...


class SessionMode:
    """Sessions of ``claude-vm`` in a site's home. `warm` is how many VMs shall be ready before each turn."""

    def __init__(self, site: Site, *, warm: int = 0) -> None:
        self.site = site
        self._warm = warm

    def prepare(self, count: int) -> None:  # noqa: ARG002 - a pool has its own size
        """Let the pool fill."""
        if self._warm:
            self.site.fill(self._warm)

    def run(self, kind: str) -> children.Timing:
        """Run a shell to its prompt, or a command to its first output."""
        words, steps = (
            (PROMPT_WORDS, children.PROMPT) if kind == "prompt" else (OUTPUT_WORDS, children.OUTPUT)
        )
        return children.run(
            [program(), *words],
            env=self.site.env,
            cwd=self.site.project,
            steps=steps,
            terminal=kind == "prompt",
        )

    def finish(self, timings: Sequence[children.Timing]) -> list[tuple[str, dict[str, float]]]:
        """Ask the daemon where the time went."""
        rows = marks.join(timings, self.site.sessions())
        return [
            ("", {}) if row is None else (str(row.get("source") or ""), marks.relative(row, timing.begun_at))
            for row, timing in zip(rows, timings, strict=True)
        ]


class _PlainMode:
    """A mode that needs no preparation and knows no more than its timings."""

    def prepare(self, count: int) -> None:
        """Nothing is needed."""

    def finish(self, timings: Sequence[children.Timing]) -> list[tuple[str, dict[str, float]]]:
        """Nothing more is known."""
        return [("", {})] * len(timings)


class SshMode(_PlainMode):
    """``ssh`` over an open master connection: the baseline of a warm claim."""

    def __init__(self, login: Login) -> None:
        self._login = login

    def run(self, kind: str) -> children.Timing:
        """Log in to a prompt, or run a command."""
        prompt = kind == "prompt"
        words = () if prompt else ("echo", "ready")
        return children.run(
            self._login.argv(*words, terminal=prompt),
            env=self._login.env,
            cwd=Path("/"),
            steps=children.PROMPT if prompt else children.OUTPUT,
            terminal=prompt,
        )


class ByHandMode(_PlainMode):
    """What somebody would type: the baseline of a RAM clone, and of all that the driver `lima` does."""

    def __init__(self, by_hand: ByHand | LimaByHand) -> None:
        self._by_hand = by_hand

    def run(self, kind: str) -> children.Timing:  # noqa: ARG002 - there is one way only
        """Bring a VM up, log in."""
        return self._by_hand.run()


class CommandMode(_PlainMode):
    """A whole command, from its start to its end: both instants of its samples are that."""

    def __init__(self, argv: Sequence[str | Path], *, env: Mapping[str, str], cwd: Path) -> None:
        self._argv = argv
        self._env = env
        self._cwd = cwd

    @classmethod
    def interpreter(cls, site: Site) -> "CommandMode":
        """Return the bare interpreter: the floor of every command of ours."""
        return cls([sys.executable, "-c", "pass"], env=site.env, cwd=site.project)

    @classmethod
    def ours(cls, site: Site, *words: str) -> "CommandMode":
        """Return a command of ours."""
        return cls([program(), *words], env=site.env, cwd=site.project)

    def run(self, kind: str) -> children.Timing:  # noqa: ARG002 - there is one way only
        """Run it to its end."""
        timing = children.run(self._argv, env=self._env, cwd=self._cwd, steps=())
        ended = timing.instants[EXITED]
        return msgspec.structs.replace(timing, instants={SHOWN: ended, EXITED: ended})


def measure(turn: Turn, mode: Mode) -> list[Sample]:
    """Run one turn and return its samples.

    Raises:
        UnavailableError: The mode can't be measured here.
    """
    unit = turn.unit
    mode.prepare(len(unit.starts))
    timings = children.together(unit.starts, lambda _: mode.run(unit.kind))
    known = mode.finish(timings)
    return [
        Sample(
            mode=unit.mode,
            pattern=unit.pattern,
            kind=unit.kind,
            round=turn.round,
            unit=turn.number,
            ok=timing.ok,
            error=timing.error,
            source=source,
            instants={**instants, **timing.instants},
        )
        for timing, (source, instants) in zip(timings, known, strict=True)
    ]


Tell = Callable[[str], None]
"""Called with a line of progress."""
