import math
from pathlib import Path

import pytest
from msgspec.structs import replace

from claude_vm.bench.errors import BenchError
from claude_vm.bench.figures import claims, registry, waits
from claude_vm.bench.gate import (
    Bound,
    Gate,
    GateRun,
    Verdict,
    broken_figures,
    gate_lines,
    judge,
    read_gate,
    retried,
)

OURS = Path(__file__).parents[2] / "bench" / "gate.toml"


def gate_of(*bounds):
    return Gate(GateRun(("F1",)), bounds)


def judged(bound, *lines):
    (verdict,) = judge(gate_of(bound), lines)
    return verdict


AT_MOST = Bound("F1.p50", "it got slow", max=1.0)
AT_LEAST = Bound("F1.p50", "it got slow", min=1.0)


@pytest.mark.parametrize(
    ("bound", "value", "kept"),
    [
        (AT_MOST, 0.99, True),
        (AT_MOST, 1.0, True),
        (AT_MOST, 1.01, False),
        (AT_LEAST, 1.01, True),
        (AT_LEAST, 0.99, False),
        (AT_MOST, math.nan, False),
        (AT_LEAST, math.nan, False),
    ],
)
def test_a_bound_is_kept_or_broken(line, bound, value, kept):
    verdict = judged(bound, line(value=value))
    assert verdict.kept is kept
    assert verdict.text.startswith("ok " if kept else "FAILED ")
    assert ("it got slow" in verdict.text) is not kept


def test_a_missing_figure_breaks_its_bound(line):
    assert not judged(AT_MOST).kept
    assert not judged(AT_MOST, line("F1.p95")).kept
    verdict = judged(AT_MOST, line(value=None, note="no pool here"))
    assert not verdict.kept
    assert "no pool here" in verdict.text


def test_a_figure_that_may_be_missing_is_skipped_but_not_excused_when_it_is_there(line):
    may = replace(AT_MOST, may_be_missing=True)
    assert judged(may).kept
    assert judged(may).text.startswith("skipped")
    assert not judged(may, line(value=2.0)).kept


def test_the_text_names_what_is_out_of_bounds(line):
    verdicts = judge(gate_of(AT_MOST, Bound("F2.p50", "w", max=5)), [line(value=2.0), line("F2.p50", 4.0)])
    assert gate_lines(verdicts)[-1].endswith("out of bounds: F1.p50")
    assert gate_lines(verdicts[1:])[-1].endswith("all 1 bounds are kept")


@pytest.mark.parametrize(
    "text",
    [
        "not toml",
        "[run]\nfigures = []\n",
        "[run]\nfigures = []\n[[bound]]\nfigure = 'F1'\nwhy = ''\n",
        "[run]\nfigures = []\n[[bound]]\nfigure = 'F1'\nwhy = ''\nmax = 1\nmin = 1\n",
        "[run]\nfigures = []\n[[bound]]\nfigure = 'F1'\nwhy = ''\nmaximum = 1\n",
    ],
)
def test_a_file_that_is_no_gate_is_an_error_that_names_it(tmp_path, text):
    path = tmp_path / "gate.toml"
    path.write_text(text)
    with pytest.raises(BenchError, match=r"gate\.toml"):
        read_gate(path)
    with pytest.raises(BenchError, match="can't be read"):
        read_gate(tmp_path / "nothing")


def test_our_own_gate_can_be_read_and_measures_what_it_bounds():
    gate = read_gate(OURS)
    assert set(gate.run.figures) <= set(registry.ORDER)
    for bound in gate.bound:
        assert bound.figure.partition(".")[0] in gate.run.figures


SESSION_MS, FLOOR_MS, SLEEP_MS = 50.0, 24.0, 100.0


def made(session_ms, sample):
    names = ("sim made", "bare made")
    samples = [
        sample(mode, ms, round=n, kind="output")
        for n in range(30)
        for mode, ms in zip(names, (session_ms, FLOOR_MS), strict=True)
    ]
    return claims.made_lines(samples, names)


def test_our_own_gate_passes_what_was_measured_and_breaks_at_half_as_much_again(sample):
    gate = read_gate(OURS)
    bounds = [bound for bound in gate.bound if bound.figure == "S1.p50"]
    assert all(v.kept for v in judge(Gate(gate.run, tuple(bounds)), made(SESSION_MS, sample)))
    assert not any(v.kept for v in judge(Gate(gate.run, tuple(bounds)), made(SESSION_MS * 1.5, sample)))


def test_our_own_gate_breaks_at_a_sleep_of_100_ms_in_the_claim(sample):
    gate = read_gate(OURS)
    broken = {v.figure: v.text for v in judge(gate, made(SESSION_MS + SLEEP_MS, sample)) if not v.kept}
    assert "at most" in broken["S1.p50"]
    assert "150.0 ms : 24.0 ms" in broken["S1.p50"]


def test_only_what_is_broken_is_measured_again_and_one_attempt_that_keeps_it_is_enough():
    before = [
        Verdict("S1.p50", kept=False, text="a"),
        Verdict("F2.ratio", kept=True, text="b"),
        Verdict("F10.ps", kept=False, text="c"),
    ]
    assert broken_figures(before) == ("S1", "F10")
    again = [
        Verdict("S1.p50", kept=True, text="d"),
        Verdict("F2.ratio", kept=False, text="e"),
        Verdict("F10.ps", kept=False, text="f"),
    ]
    assert [v.text for v in retried(before, again)] == ["d", "b", "f"]
    assert broken_figures(retried(before, again)) == ("F10",)


def test_the_ratio_of_a_figure_is_that_of_its_two_sides(sample):
    samples = [sample("warm", 30.0, source="warm"), sample("ssh", 20.0), sample("python", 10.0)]
    (p50, p95, cli) = waits.lines_of(samples, ["F1"], {"x": "no reason"})
    assert p50.value == pytest.approx(1.5)
    assert p50.verdict == "miss"
    assert p95.value == pytest.approx(1.5)
    assert p50.measured == "30.0 ms : 20.0 ms"
    assert (cli.value, cli.verdict, cli.note) == (None, "-", "no reason")
