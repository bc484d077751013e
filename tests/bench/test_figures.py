"""What each figure says of canned samples. How they are measured is tested elsewhere."""

import subprocess

import pytest

from claude_vm.bench.figures import (
    claims,
    crowd,
    endings,
    guests,
    idle,
    projects,
    ready,
    registry,
    streams,
    waits,
)
from claude_vm.bench.lab import POOL
from claude_vm.bench.plan import BURST
from claude_vm.bench.records import EXITED
from claude_vm.bench.site import Site


def verdicts(lines):
    return {line.key: line.verdict for line in lines}


def by_key(lines):
    return {line.key: line for line in lines}


def test_every_figure_that_shall_be_in_the_table_is_known():
    assert (
        *("F1", "F2", "F3", "F4", "F5", "F6", "F7", "F8", "F10", "F11", "F12", "F14", "F15", "F20", "F21"),
    ) == registry.TARGETS
    assert set(registry.ORDER) == {*waits.UNITS, *registry.ALONE}


def test_claims_that_were_not_warm_do_not_count_as_warm_ones(sample):
    samples = [
        sample("warm", 20.0, source="warm"),
        sample("warm", 2000.0, source="made"),
        sample("ssh", 20.0),
    ]
    line = by_key(waits.lines_of(samples, ["F1"], {}))["F1.p50"]
    assert line.value == pytest.approx(1.0)
    assert line.note == "1 of 2 claims were not warm"


def test_the_clients_own_part_is_shown_beside_a_ratio(sample):
    marks = {"requested": 0.012, "start": 0.015}
    samples = [
        sample("warm", 20.0, source="warm", instants=marks),
        sample("ssh", 20.0),
        sample("python", 10.0),
    ]
    lines = by_key(waits.lines_of(samples, ["F1"], {}))
    assert lines["F1.cli"].value == pytest.approx(1.2)
    assert "client 12.0 ms" in lines["F1.p50"].note
    assert "guest 3.0 ms" in lines["F1.p50"].note


def test_limas_sessions_are_held_against_the_same_steps_by_hand(sample):
    samples = [
        sample("warm", 300.0, source="warm"),
        sample("warm", 9000.0, source="made"),
        sample("clone", 2500.0),
        sample("cold", 20_000.0),
        sample("lima-by-hand", 36_000.0),
    ]
    lines = by_key(waits.lines_of(samples, ["F4"], {}))
    assert verdicts(lines.values()) == {"F4.warm": "ok", "F4.clone": "miss", "F4.cold": "ok"}
    assert lines["F4.warm"].value == pytest.approx(1 / 120)
    assert "1 of 2 claims were not warm" in lines["F4.warm"].note
    (missing,) = {line.note for line in waits.lines_of([], ["F4"], {"lima-by-hand": "no limactl"})}
    assert missing == "no limactl"


def test_clones_are_held_against_the_stock_boot_and_the_restore_by_hand(sample):
    samples = [
        sample("clone", 100.0),
        sample("by-hand", 90.0),
        sample("cold", 900.0),
        sample("stock", 1400.0),
    ]
    lines = by_key(waits.lines_of(samples, ["F3"], {}))
    assert verdicts(lines.values()) == {"F3.stock": "miss", "F3.cold": "-", "F3.hand": "ok"}
    assert lines["F3.stock"].value == pytest.approx(1 / 14)
    slow = [sample("clone", 100.0), sample("stock", 1500.0)]
    assert by_key(waits.lines_of(slow, ["F3"], {}))["F3.stock"].verdict == "ok"


def test_commands_are_held_against_the_bare_interpreter(sample):
    samples = [sample("python", 10.0), sample("version", 29.0), sample("ps", 31.0)]
    found = verdicts(waits.lines_of(samples, ["F10"], {}))
    assert found == {"F10.version": "ok", "F10.ps": "miss", "F10.claim": "-"}


def pairs(sample, names, values):
    return [
        sample(name, ms, round=n)
        for n, both in enumerate(values)
        for name, ms in zip(names, both, strict=True)
    ]


def test_what_the_supervisor_adds_is_the_difference_of_pairs(sample):
    names = ("sim warm", "bare warm")
    lines = by_key(claims.warm_lines(pairs(sample, names, [(9, 5), (109, 105), (10, 5)]), names))
    assert lines["F2.p50"].value == pytest.approx(4)
    assert verdicts(lines.values()) == {"F2.p50": "ok", "F2.p95": "ok", "F2.ratio": "-"}


def test_a_round_where_one_side_failed_is_no_pair(sample):
    names = ("sim warm", "bare warm")
    samples = [sample(names[0], ok=False, round=0), sample(names[1], 5, round=0)]
    samples += pairs(sample, names, [])
    assert claims.pairs_ms(samples, names) == ([], [])
    assert set(verdicts(claims.warm_lines(samples, names)).values()) == {"-"}


def test_a_burst_has_its_warm_ones_the_rest_and_its_success(sample):
    warm = [sample("warm", 30.0, pattern="burst", source="warm") for _ in range(POOL)]
    rest = [sample("warm", 3900.0, pattern="burst", source="made") for _ in range(BURST - POOL)]
    others = [sample("ssh", 25.0, pattern="burst"), sample("clone", 1000.0)]
    lines = by_key(endings.burst_lines([*warm, *rest, *others], 2))
    assert lines["F5.warm"].value == pytest.approx(1.2)
    assert lines["F5.rest"].value == pytest.approx(3900 / 4000)
    assert set(verdicts(lines.values()).values()) == {"ok"}
    broken = [*warm, sample("warm", ok=False, pattern="burst"), *others]
    assert by_key(endings.burst_lines(broken, 2))["F5.success"].verdict == "miss"


def test_an_end_is_timed_by_the_daemon_or_else_by_the_client(sample):
    told = [sample(f"warm {w}", 20, instants={"ended": 1.0, "deleted": 1.05}) for w in ("alone", "after")]
    lines = by_key(endings.end_lines(told, "warm", ""))
    assert lines["F11.free"].value == pytest.approx(50)
    silent = [sample("warm alone", 20), sample("warm after", 30)]
    lines = by_key(endings.end_lines(silent, "warm", "why"))
    assert lines["F11.free"].value == pytest.approx(500)
    assert lines["F11.next"].value == pytest.approx(1.5)
    assert lines["F11.next"].verdict == "miss"


def test_a_start_without_a_daemon_is_timed_to_the_request(sample):
    samples = [sample("start", 900, instants={"requested": 0.4}), sample("start ps", 450)]
    (line,) = endings.start_lines(samples)
    assert (line.value, line.verdict) == (pytest.approx(400), "ok")
    (line,) = endings.start_lines([sample("start", 900), sample("start ps", 550)])
    assert (line.value, line.verdict) == (pytest.approx(550), "miss")
    assert endings.start_lines([])[0].verdict == "-"


def test_a_session_in_a_full_project_is_timed_to_its_exit_status(sample, tmp_path):
    found = [sample("full", 20, instants={EXITED: 0.5}), sample("empty", 30, instants={EXITED: 0.4})]
    (line,) = projects.size_lines(found)
    assert (line.key, line.value, line.verdict) == ("F15.exit", pytest.approx(1.25), "miss")
    projects.fill(tmp_path, 400)
    assert sum(1 for path in tmp_path.rglob("*") if path.is_file()) == 400


def test_memory_is_that_of_each_clone():
    assert guests.memory_line([100, 200, 300, 400], 500).value == 0.5
    assert guests.memory_line([100, 200, 300, 404], 500).verdict == "miss"


def test_claudes_box_is_known():
    assert guests.is_box("text \u276f ".encode())
    assert not guests.is_box(b"> claude")


def test_streams_have_a_rate_and_what_is_added_to_a_key(sample):
    samples = [
        sample(name, ms, pattern=pattern, round=n, kind="echo")
        for pattern in ("alone", "beside a flood")
        for n in range(10)
        for name, ms in ((streams.OURS, 3.0), (streams.BARE, 1.5))
    ]
    rates = {streams.OURS: [9e6], streams.BARE: [1e7]}
    lines = by_key(streams.stream_lines(rates, samples))
    assert lines["F8.rate"].value == pytest.approx(0.9)
    assert lines["F8.echo.p50"].value == pytest.approx(1.5)
    assert set(verdicts(lines.values()).values()) == {"ok"}


def test_the_core_lives_the_lives_that_are_timed(monkeypatch):
    monkeypatch.setattr(crowd, "LIVES", 3)
    assert crowd.event_us(2) > 0


def test_a_figure_that_cannot_be_measured_is_a_line_that_says_why(monkeypatch):
    from claude_vm.bench.errors import BenchError, UnavailableError

    def unavailable(lab, rounds):
        raise UnavailableError("no such thing here")

    monkeypatch.setattr(registry, "ALONE", {"F6": unavailable})
    samples, lines = registry.measure(None, ["F6"], 1)
    assert samples == []
    assert [(line.key, line.value, line.note) for line in lines] == [("F6", None, "no such thing here")]
    with pytest.raises(BenchError, match="no figure F99"):
        registry.measure(None, ["F99"], 1)


@pytest.mark.parametrize(
    ("kept", "sources", "verdicts"),
    [
        (10, ["warm"] * 16, ["ok", "ok", "-"]),
        (7, ["warm"] * 15 + ["made"], ["miss", "miss", "-"]),
        (8, [], ["ok", "miss", "-"]),
    ],
)
def test_f20_wants_eight_ready_vms_and_only_warm_claims(monkeypatch, kept, sources, verdicts):
    monkeypatch.setattr(ready, "host_memory_mib", lambda: 24105)
    assert [line.verdict for line in ready.lines(kept, sources, 150.0)] == verdicts
    monkeypatch.setattr(ready, "host_memory_mib", lambda: 16050)
    assert {line.verdict for line in ready.lines(kept, sources, 150.0)} == {"-"}


def test_a_ready_vm_is_judged_by_all_its_processes_and_the_daemon_is_shown():
    lines = by_key(idle.idle_lines(1.2, 0.01, 270.0))
    assert verdicts(lines.values()) == {"F21.vm": "miss", "F21.memory": "-"}
    assert lines["F21.vm"].measured == "1.20 % of a core (the daemon: 0.01 %)"
    assert idle.idle_lines(0.9, 0.01, 270.0)[0].verdict == "ok"


def test_a_process_that_works_is_seen_to_and_one_that_sleeps_is_not(tmp_path):
    site = Site(tmp_path, tmp_path)
    with (
        subprocess.Popen(["sleep", "1000"], env={"CLAUDE_VM_HOME": str(site.home)}) as idler,
        subprocess.Popen(["sh", "-c", "while :; do :; done"], env={"CLAUDE_VM_HOME": str(site.home)}) as busy,
    ):
        try:
            begun = idle.scheduled(site)
            while idle.scheduled(site)[busy.pid][1] < begun[busy.pid][1] + 0.05:
                pass
            ended = idle.scheduled(site)
        finally:
            idler.kill()
            busy.kill()
    assert ended[idler.pid][1] - begun[idler.pid][1] < 0.01
    assert ended.keys() == {idler.pid, busy.pid}
