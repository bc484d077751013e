"""F1, F3, F4 and F10: what a user waits for, each mode beside its baseline in one interleaved run."""

from collections.abc import Sequence

from msgspec.structs import replace

from claude_vm.bench.errors import BenchError
from claude_vm.bench.figures.targets import ratio_line
from claude_vm.bench.lab import Lab
from claude_vm.bench.modes import measure
from claude_vm.bench.plan import Unit, plan
from claude_vm.bench.records import Figures, Line, Sample, counted, shown_ms
from claude_vm.bench.stats import percentile

SLOW = frozenset({"cold", "stock", "lima-by-hand"})
UNITS = {
    "F1": (("warm", "prompt"), ("ssh", "prompt"), ("python", "exit")),
    "F3": (("clone", "prompt"), ("by-hand", "prompt"), ("cold", "prompt"), ("stock", "prompt")),
    "F4": (("warm", "prompt"), ("clone", "prompt"), ("cold", "prompt"), ("lima-by-hand", "prompt")),
    "F10": (("python", "exit"), ("version", "exit"), ("ps", "exit"), ("simulated", "output")),
}
"""What each figure needs: modes, and until when each is measured."""


def units_of(figures: Sequence[str]) -> list[Unit]:
    """Return the units that some figures need, each once."""
    wanted = dict.fromkeys(pair for figure in figures for pair in UNITS[figure])
    return [Unit(mode, kind=kind, slow=mode in SLOW) for mode, kind in wanted]


def run_units(lab: Lab, units: Sequence[Unit], *, rounds: int) -> tuple[list[Sample], dict[str, str]]:
    """Measure units in turns; return the samples, and why modes could not be measured."""
    missing: dict[str, str] = {}
    for unit in units:
        try:
            lab.mode(unit.mode)
        except BenchError as error:
            missing[unit.mode] = str(error)
    samples: list[Sample] = []
    told = None
    for turn in plan([u for u in units if u.mode not in missing], rounds=rounds):
        if turn.unit.mode in missing:
            continue
        if turn.round != told:
            told = turn.round
            lab.tell("warming up" if told < 0 else f"round {told + 1} of {rounds}")
        try:
            samples += measure(turn, lab.mode(turn.unit.mode))
        except BenchError as error:
            missing[turn.unit.mode] = str(error)
    return samples, missing


def waits(lab: Lab, figures: Sequence[str], rounds: int) -> Figures:
    """Measure the figures of this module that are wanted."""
    samples, missing = run_units(lab, units_of(figures), rounds=rounds)
    return samples, lines_of(samples, figures, missing)


def lines_of(samples: Sequence[Sample], figures: Sequence[str], missing: dict[str, str]) -> list[Line]:
    """Return the lines of these figures from the samples of a run."""
    makers = {"F1": _f1, "F3": _f3, "F4": _f4, "F10": _f10}
    lines = [line for figure in figures for line in makers[figure](samples)]
    reason = "; ".join(dict.fromkeys(missing.values()))
    return [replace(line, note=reason) if line.value is None and not line.note else line for line in lines]


def warm_only(samples: Sequence[Sample]) -> tuple[list[Sample], str]:
    """Return the samples that did get a warm VM, and a note on the others."""
    good = [sample for sample in samples if sample.source in {"warm", ""}]
    others = len(samples) - len(good)
    return good, f"{others} of {len(samples)} claims were not warm" if others else ""


def cli_ms(samples: Sequence[Sample]) -> list[float]:
    """Return how long each client took until its claim was with the daemon, where the daemon tells."""
    return [s.instants["requested"] * 1000 for s in samples if s.ok and "requested" in s.instants]


def _own_part(samples: Sequence[Sample]) -> str:
    """Say how much of a wait is the client's and the supervisor's own: emulation slows guests, not Python."""
    client = cli_ms(samples)
    own = [
        (s.instants["start"] - s.instants["requested"]) * 1000
        for s in samples
        if s.ok and {"start", "requested"} <= s.instants.keys()
    ]
    if not client or not own:
        return ""
    a, b = percentile(client, 50), percentile(own, 50)
    return (
        f"of it the client {a:.1f} ms, the daemon from the claim to the start in the guest {b:.1f} ms (p50)"
    )


def _f1(samples: Sequence[Sample]) -> list[Line]:
    found, note = warm_only(counted(samples, "warm", "sequential", "prompt"))
    warm = [sample.shown_ms for sample in found if sample.ok]
    ssh = shown_ms(samples, "ssh", "sequential", "prompt")
    note = note or _own_part(found)
    python = shown_ms(samples, "python")
    return [
        ratio_line("F1.p50", warm, ssh, note),
        ratio_line("F1.p95", warm, ssh, note),
        ratio_line("F1.cli", cli_ms(found), python),
    ]


def _f3(samples: Sequence[Sample]) -> list[Line]:
    clone = shown_ms(samples, "clone", "sequential", "prompt")
    hand, cold, stock = (shown_ms(samples, mode) for mode in ("by-hand", "cold", "stock"))
    note = _own_part(counted(samples, "clone", "sequential", "prompt"))
    return [
        ratio_line("F3.stock", clone, stock, note),
        ratio_line("F3.cold", clone, cold),
        ratio_line("F3.hand", clone, hand, note),
    ]


def _f4(samples: Sequence[Sample]) -> list[Line]:
    hand = shown_ms(samples, "lima-by-hand")
    found, note = warm_only(counted(samples, "warm", "sequential", "prompt"))
    warm = [sample.shown_ms for sample in found if sample.ok]
    clone = shown_ms(samples, "clone", "sequential", "prompt")
    cold = shown_ms(samples, "cold", "sequential", "prompt")
    return [
        ratio_line("F4.warm", warm, hand, note),
        ratio_line("F4.clone", clone, hand),
        ratio_line("F4.cold", cold, hand),
    ]


def _f10(samples: Sequence[Sample]) -> list[Line]:
    python = shown_ms(samples, "python")
    clients = cli_ms(counted(samples, "simulated"))
    note = "" if clients else "the daemon tells no instants"
    return [
        *(ratio_line(f"F10.{name}", shown_ms(samples, name), python) for name in ("version", "ps")),
        ratio_line("F10.claim", clients, python, note),
    ]
