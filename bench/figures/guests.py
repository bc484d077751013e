"""F6 and F12: the memory of clones, and Claude Code's own start."""

import contextlib
import http.server
import subprocess
import threading
from collections.abc import Iterator, Sequence
from functools import partial

from claude_vm.bench import children
from claude_vm.bench.children import TerminalStep
from claude_vm.bench.errors import UnavailableError
from claude_vm.bench.figures.targets import CLONES, line, ratio_line
from claude_vm.bench.guests import pss_mib
from claude_vm.bench.lab import Lab
from claude_vm.bench.records import SHOWN, Figures, Line, Sample, shown_ms
from claude_vm.bench.site import Site, program
from claude_vm.bench.ssh import Login
from claude_vm.bench.stock import boots_only

AGENT_STARTS = 5
AGENT_S = 300.0

BOX = "\N{HEAVY RIGHT-POINTING ANGLE QUOTATION MARK ORNAMENT}".encode()
"""What stands in front of Claude Code's input."""

_KEY = "sk-ant-api03-" + "k" * 80 + "-bench"
_TYPED = (TerminalStep("prompt", children.is_prompt, b"claude --dangerously-skip-permissions\r"),)


def memory(lab: Lab, rounds: int) -> Figures:  # noqa: ARG001 - memory is no wait
    """F6: four clones side by side, and one that booted, after the same commands."""
    if lab.facts.record.claude_version is None:
        raise UnavailableError("the template has no Claude Code")
    guests = lab.guests()
    with contextlib.ExitStack() as stack:
        lab.tell(f"F6: {CLONES} clones")
        pids = []
        for _ in range(CLONES):
            login, instance_id = stack.enter_context(guests.logged_in_at())
            stack.enter_context(_used(login))
            pids.append(guests.pid(instance_id))
        clones = [pss_mib(pid) for pid in pids]
    with contextlib.ExitStack() as stack:
        lab.tell("F6: a booted twin")
        with boots_only():
            login, instance_id = stack.enter_context(guests.logged_in_at())
        stack.enter_context(_used(login))
        twin = pss_mib(guests.pid(instance_id))
    return [], [memory_line(clones, twin)]


def memory_line(clones: Sequence[float], twin: float) -> Line:
    """Return F6's line, from MiB."""
    each = sum(clones) / len(clones)
    return line("F6.memory", each / twin, f"{each:.0f} MiB : {twin:.0f} MiB")


@contextlib.contextmanager
def _used(login: Login) -> Iterator[None]:
    """Run Claude Code once, then leave a shell on a terminal and one on pipes waiting, as in a warm VM."""
    login.run("claude", "--version")
    shells = [
        subprocess.Popen(
            login.argv(terminal=terminal),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=login.env,
            start_new_session=True,
        )
        for terminal in (True, False)
    ]
    try:
        for shell in shells:
            assert shell.stdin is not None  # noqa: S101 - it was asked for
            assert shell.stdout is not None  # noqa: S101 - likewise
            shell.stdin.write(b"echo up\n")
            shell.stdin.flush()
            while b"up" not in shell.stdout.readline():
                pass
        yield
    finally:
        for shell in shells:
            shell.kill()
            shell.communicate()


class _Nothing(http.server.BaseHTTPRequestHandler):
    """An API that knows nothing: to show its input, Claude Code needs no answer."""

    def do_GET(self) -> None:
        self.send_error(404)

    do_POST = do_HEAD = do_GET  # noqa: N815 - the base class wants these names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class names it so
        """Say nothing."""


@contextlib.contextmanager
def _api() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Nothing)
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.05), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def is_box(seen: bytes) -> bool:
    """Tell whether Claude Code's input is there."""
    return BOX in seen


def agent(lab: Lab, rounds: int) -> Figures:
    """F12: ``claude-vm`` until Claude Code's input, against ``claude`` typed into an open shell."""
    if lab.facts.record.claude_version is None:
        raise UnavailableError("the template has no Claude Code")
    name, mode, note = lab.warm_mode()
    site = mode.site
    samples: list[Sample] = []
    with _api() as url:
        env = site.env | {"ANTHROPIC_API_KEY": _KEY, "ANTHROPIC_BASE_URL": url}
        for index in range(min(rounds, AGENT_STARTS)):
            lab.tell(f"F12: Claude Code ({name}), {index + 1}")
            mode.prepare(1)
            samples.append(_until_box(site, env, "claude-vm", index))
            mode.prepare(1)
            samples.append(_until_box(site, env, "typed", index, "shell", first=_TYPED))
    sides = (shown_ms(samples, "claude-vm"), shown_ms(samples, "typed"))
    return samples, [ratio_line("F12.box", *sides, note)]


def _until_box(
    site: Site, env: dict[str, str], mode: str, index: int, *words: str, first: Sequence[TerminalStep] = ()
) -> Sample:
    """Run a command until Claude Code's input is there, timed from the end of the `first` steps."""
    timing = children.run(
        [program(), *words],
        env=env,
        cwd=site.project,
        steps=(*first, TerminalStep(SHOWN, is_box)),
        terminal=True,
        hang_up=True,
        timeout_s=AGENT_S,
    )
    instants = {}
    if SHOWN in timing.instants:
        begun = timing.instants[first[-1].name] if first else 0.0
        instants = {SHOWN: timing.instants[SHOWN] - begun}
    return Sample(mode=mode, kind="input", round=index, ok=timing.ok, error=timing.error, instants=instants)
