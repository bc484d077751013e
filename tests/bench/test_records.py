import csv
import io
import json

import pytest

from claude_vm.bench import phases
from claude_vm.bench.compare import change, compare_lines
from claude_vm.bench.errors import BenchError
from claude_vm.bench.records import counted, read, shown_ms, success, write
from claude_vm.bench.table import columns, lines_table, report_lines, samples_table

MARKS = {"requested": 0.030, "claimed": 0.031, "files": 0.032, "start": 0.034, "first-output": 0.040}


def test_a_report_comes_back_from_its_file_as_it_was(report, sample, line, tmp_path):
    made = report([sample(instants=MARKS), sample(ok=False, error="ended")], [line(), line("F2.p50", None)])
    write(made, tmp_path / "r.json")
    assert read(tmp_path / "r.json") == made
    assert json.loads((tmp_path / "r.json").read_text())["schema"] == 1


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 1}', "[]"])
def test_a_file_that_is_no_report_is_an_error(tmp_path, text):
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(BenchError, match="not a report"):
        read(path)


def test_a_report_of_another_schema_is_an_error(report, tmp_path):
    write(report(schema=2), tmp_path / "r.json")
    with pytest.raises(BenchError, match="schema 2"):
        read(tmp_path / "r.json")
    with pytest.raises(BenchError, match="can't be read"):
        read(tmp_path / "none.json")
    with pytest.raises(BenchError, match="can't be written"):
        write(report(), tmp_path / "no" / "r.json")


def test_warm_up_and_failures_are_told_apart(sample):
    samples = [sample(ms=5, round=-1), sample(ms=10), sample(ok=False), sample("ssh", 7)]
    assert shown_ms(samples, "warm") == [10]
    assert len(counted(samples, "warm")) == 2
    assert success(counted(samples, "warm")) == 0.5
    assert success([]) == 1.0


def test_phases_add_up_to_the_whole(sample):
    found = phases.phases_ms(sample(ms=41, instants=MARKS))
    assert sum(found.values()) == pytest.approx(541)
    assert found["cli"] == pytest.approx(30)
    assert found["claim"] == pytest.approx(2)
    assert found["first output"] == pytest.approx(6)
    assert found["relay"] == pytest.approx(1)
    until = phases.phases_ms(sample(ms=41, instants=MARKS), until="shown")
    assert sum(until.values()) == pytest.approx(41)


def test_without_marks_nothing_is_known_but_the_whole(sample):
    assert phases.phases_ms(sample(ms=41), until="shown") == {"whole": pytest.approx(41)}
    by_hand = phases.phases_ms(sample(ms=41, instants={"login": 0.02}), until="shown")
    assert by_hand == {"restore": pytest.approx(20), "login": pytest.approx(21)}


def test_phases_are_ordered_as_a_session_passes_them():
    assert phases.ordered({"relay", "odd", "cli", "clone"}) == ["cli", "clone", "relay", "odd"]


def test_the_csv_has_a_row_for_each_phase_and_the_totals(sample):
    file = io.StringIO()
    phases.write_csv([sample(ms=41, instants=MARKS, source="warm")], file)
    rows = list(csv.DictReader(io.StringIO(file.getvalue())))
    taken = {row["phase"]: float(row["milliseconds"]) for row in rows}
    assert taken["total-shown"] == 41
    assert taken["cli"] == 30
    assert {row["source"] for row in rows} == {"warm"}
    assert {row["mode"] for row in rows} == {"warm"}


def test_columns_line_up():
    rows = [("a", "1.0", "x"), ("longer", "100.0", "")]
    assert columns(("name", "ms", ""), rows) == ["name       ms", "a         1.0  x", "longer  100.0"]


def test_the_table_of_samples_has_the_figures_and_the_success_rate(sample):
    rows = [sample(ms=float(n)) for n in range(1, 100)] + [sample(ok=False, error="it broke")]
    lines = samples_table(rows)
    assert lines[0].split() == (
        ["mode", "pattern", "until", "n", "success", "p50", "p95", "p99", "min", "max", "ms"]
    )
    assert lines[1].split()[:10] == (
        ["warm", "sequential", "prompt", "100", "99%", "50.0", "94.1", "98.0", "1.0", "99.0"]
    )
    assert "it broke" in lines[1]


def test_a_mode_without_a_single_success_is_still_in_the_table(sample):
    assert "0%" in samples_table([sample(ok=False, error="it broke")])[1]


def test_the_table_of_figures_says_ok_miss_or_why_not(line):
    shown = lines_table(
        [
            line(measured="9 ms : 10 ms"),
            line("F1.p95", 2.0, note="busy"),
            line("F2.p50", 3.0, 5.0, unit="ms"),
            line("F8.rate", 0.95, 0.9, at_least=True),
            line("F5", None, note="no pool"),
            line("F7", 5.0, judged=False),
        ]
    )
    verdicts = {row.split()[0]: row for row in shown}
    assert verdicts["F1.p50"].endswith("0.90  ok")
    assert verdicts["F1.p95"].endswith("2.00  miss [1]")
    assert verdicts["F2.p50"].endswith("0.60  ok")
    assert verdicts["F8.rate"].endswith("ok")
    assert verdicts["F5"].endswith("not measured      -  - [2]")
    assert verdicts["F7"].endswith("-")
    assert shown[-2:] == ["[1] busy", "[2] no pool"]


def test_a_report_says_where_it_was_made(report, sample, line):
    text = "\n".join(report_lines(report([sample()], [line()])))
    assert "2 x Some processor" in text
    assert "load 0.5 before, 1.5 after" in text
    assert "claude-vm 1.2" in text


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [(100, 105, "same"), (100, 95, "same"), (100, 150, "slower"), (100, 60, "faster"), (0, 1, "-")],
)
def test_a_change_within_the_noise_is_none(before, after, word):
    assert change(before, after) == word


def test_a_comparison_pairs_modes_and_figures(report, sample, line, environment):
    before = report([sample(ms=10), sample("cold", 1)], [line(value=1.0), line("F9", 1.0)])
    after = report([sample(ms=15), sample(ok=False), sample("ssh", 1)], [line(value=1.5)])
    text = "\n".join(compare_lines(before, after))
    assert "1.50" in text
    assert "slower" in text
    assert "50%" in text
    assert "cold" not in text
    assert "F9" not in text
    assert "Different" not in text


def test_a_comparison_says_when_the_machines_differ(report, environment, sample):
    import msgspec

    other = msgspec.structs.replace(environment, accelerator="kvm")
    shown = compare_lines(report([sample()]), report([sample(ok=False)], environment=other))
    assert shown[0].startswith("Different machines")
    assert compare_lines(report(), report()) == ["The two runs have nothing in common."]
