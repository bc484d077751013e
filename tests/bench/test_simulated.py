"""The bench itself, on simulated guests: no VM, but the real client, daemon and sshd."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from claude_vm.bench.children import Timing
from claude_vm.bench.errors import UnavailableError
from claude_vm.bench.figures import claims, crowd, endings, ready, streams
from claude_vm.bench.gate import Gate, judge, read_gate
from claude_vm.bench.lab import open_lab
from claude_vm.bench.modes import SessionMode, measure
from claude_vm.bench.plan import Turn, Unit, unit
from claude_vm.bench.records import read
from claude_vm.bench.site import Site, open_folder

PROGRAM = Path(sys.executable).with_name("claude-vm")

GATE = Path(__file__).parents[2] / "bench" / "gate.toml"

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """A lab in a directory without a template: simulations can be measured there."""
    monkeypatch.setenv("CLAUDE_VM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "home").mkdir()
    (tmp_path / "project").mkdir()
    with open_lab(tmp_path / "project", {"CLAUDE_VM_DRIVER": "sim"}, lambda _: None) as opened:
        yield opened


def daemons(home):
    """Return the daemons of all homes beneath a folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("CLAUDE_VM_HOME", "").startswith(str(home)):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found


def test_sessions_are_timed_in_every_pattern_and_on_both_kinds_of_streams(lab):
    mode = SessionMode(lab.simulated("s"))
    for number, turn in enumerate(
        [Turn(0, 0, unit("clone", "burst", kind="output")), Turn(0, 1, unit("clone", "staggered"))]
    ):
        samples = measure(turn, mode)
        assert len(samples) == len(turn.unit.starts)
        assert {s.unit for s in samples} == {number}
        for sample in samples:
            assert sample.ok, sample.error
            assert 0 < sample.instants["shown"] <= sample.instants["exited"]


def test_claims_through_the_supervisor_and_bare_ones_take_turns(lab):
    samples, lines = claims.made(lab, 3)
    assert all(sample.ok for sample in samples), [s.error for s in samples]
    counts = {name: sum(s.mode == name for s in samples) for name in ("sim made", "bare made")}
    assert counts == {"sim made": 3 + claims.WARM_UP, "bare made": 3 + claims.WARM_UP}
    assert lines[0].value > 0
    rounds = [{s.mode for s in samples[at : at + 2]} for at in range(0, len(samples), 2)]
    assert all(len(sides) == 2 for sides in rounds), "each round has both sides"


SLEEP = {"calls": {"put_files": [{"delay_s": 0.1}]}, "repeat": ["put_files"]}


@pytest.mark.timed
def test_a_sleep_of_100_ms_in_the_claim_path_breaks_our_gate_and_without_it_the_gate_is_kept(lab):
    gate = read_gate(GATE)
    bounds = Gate(gate.run, tuple(b for b in gate.bound if b.figure == "S1.p50"))
    assert any(judge(bounds, claims.made(lab, 10)[1])[0].kept for _ in range(3))  # as the gate does
    site = lab.simulated("sim-made")
    endings.stop_daemon(site)
    (site.home / "sim.json").write_text(json.dumps(SLEEP))
    site.do("ps")
    _, lines = claims.made(lab, 10)
    assert not judge(bounds, lines)[0].kept, lines


@pytest.mark.timed
def test_a_crowd_is_held_at_once_and_all_are_served(lab):
    site = lab.simulated("crowd")
    site.do("ps")
    assert crowd.gather(site, 6) == (6, 6, "")


def test_a_crowd_whose_sessions_fail_says_why(lab, monkeypatch):
    site = lab.simulated("crowd")
    site.do("ps")
    monkeypatch.setattr(crowd, "WORDS", ("shell", "exit 3"))
    served, most, _ = crowd.gather(site, 2)
    assert (served, most) == (0, 0)


def test_a_start_without_a_daemon_is_measured_with_none_running(lab, monkeypatch):
    seen = []
    real = SessionMode.run

    def run(self, kind):
        seen.append([pid for pid in daemons(self.site.home) if pid != os.getpid()])
        return real(self, kind)

    monkeypatch.setattr(SessionMode, "run", run)
    samples, (line,) = endings.starts(lab, 1)
    assert all(sample.ok for sample in samples)
    assert seen == [[], []]
    assert line.value > 0


def test_the_echo_of_keys_and_the_throughput_are_measured_on_a_loopback_sshd(lab, monkeypatch):
    monkeypatch.setattr(streams, "KEYS", 10)
    monkeypatch.setattr(streams, "BYTES", 1 << 20)
    try:
        samples, lines = streams.streams(lab, 1)
    except UnavailableError as error:
        pytest.skip(str(error))
    assert len(lines) == 5
    assert all(line.value is not None for line in lines)
    assert sum(s.round >= 0 for s in samples) == 2 * 2 * 10


def test_without_a_pool_warm_claims_are_said_to_be_unavailable(lab, monkeypatch):
    def no_pool(self, count):
        raise UnavailableError("no pool")

    monkeypatch.setattr(Site, "fill", no_pool)
    samples, lines = claims.warm(lab, 1)
    assert samples == []
    assert [(line.value, line.note) for line in lines] == [(None, "no pool")] * 3


class Scripted(Site):
    """A site whose daemon tells what a daemon with a pool would."""

    def __init__(self, rows):
        self.rows = rows
        self.filled = []

    def sessions(self):
        return self.rows

    def fill(self, count):
        self.filled.append(count)


def test_the_daemons_marks_become_instants_of_the_sample(monkeypatch):
    marks = [("requested", 100.01), ("claimed", 100.011), ("start", 100.02), ("ended", 100.5)]
    row = {"session": "x", "source": "warm", "marks": [{"name": n, "at": at} for n, at in marks]}
    site = Scripted([row])
    mode = SessionMode.__new__(SessionMode)
    mode.site, mode._warm = site, 4
    mode.run = lambda kind: Timing(100.0, {"shown": 0.03, "exited": 0.6}, 0)
    (sample,) = measure(Turn(2, 5, Unit("warm")), mode)
    assert site.filled == [4]
    assert sample.source == "warm"
    assert sample.instants["requested"] == pytest.approx(0.01)
    assert sample.instants["shown"] == 0.03
    assert (sample.round, sample.unit) == (2, 5)


def test_nothing_is_left_of_a_lab(tmp_path, monkeypatch):
    monkeypatch.setenv("CLAUDE_VM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "home").mkdir()
    with open_lab(tmp_path, {"CLAUDE_VM_DRIVER": "sim"}, lambda _: None) as lab:
        lab.simulated("s").do("shell", "true")
        assert daemons(tmp_path / "home" / "bench")
    gone = [psutil.Process(pid) for pid in daemons(tmp_path / "home" / "bench")]
    psutil.wait_procs(gone, timeout=20)
    assert not daemons(tmp_path / "home" / "bench")
    assert not (tmp_path / "home" / "bench").exists()


KILLED = """
import os, sys
from pathlib import Path
from claude_vm.bench.gate import Gate, judge, read_gate
from claude_vm.bench.lab import open_lab
with open_lab(Path(sys.argv[1]), {"CLAUDE_VM_DRIVER": "sim"}, lambda _: None) as lab:
    lab.simulated("s").do("shell", "true")
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_bench_left_is_removed_by_the_next_one(tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    env = os.environ | {"CLAUDE_VM_HOME": str(home), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=env, check=False)
    assert done.returncode == -9
    (left,) = (home / "bench").iterdir()
    assert daemons(left)
    with open_folder(home) as folder:
        assert not left.exists()
        assert [*(home / "bench").iterdir()] == [folder]
        with open_folder(home) as second:
            assert folder.exists(), "a run that is alive is left alone"
            assert second != folder
    psutil.wait_procs([psutil.Process(pid) for pid in daemons(left) if psutil.pid_exists(pid)], timeout=20)
    assert not daemons(left)


def bench(tmp_path, *words):
    env = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CLAUDE_VM_DRIVER": "sim"}
    env["CLAUDE_VM_VALIDATE"] = "1"
    return subprocess.run(
        [PROGRAM, "bench", *words],
        cwd=tmp_path,
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_one_command_measures_prints_writes_compares_judges_and_draws(tmp_path):
    done = bench(tmp_path, "targets", "S1", "--rounds", "3", "--json", "r.json", "--csv", "r.csv")
    assert done.returncode == 0, done.stderr
    assert "S1.p50" in done.stdout
    report = read(tmp_path / "r.json")
    assert {line.key for line in report.lines} == {"S1.p50", "S1.p95"}
    assert (tmp_path / "r.csv").read_text().startswith("mode,pattern,kind,")
    compared = bench(tmp_path, "compare", "r.json", "r.json")
    assert "same" in compared.stdout
    (tmp_path / "gate.toml").write_text(
        "[run]\nfigures = ['S1']\n[[bound]]\nfigure = 'S1.p50'\nmax = 0.001\nwhy = 'nothing is so quick'\n"
    )
    judged = bench(tmp_path, "gate", "gate.toml", "--result", "r.json")
    assert judged.returncode == 1
    assert "out of bounds: S1.p50" in judged.stdout
    drawn = bench(tmp_path, "picture", "r.json", "p.png")
    if "matplotlib" not in drawn.stderr:
        assert drawn.returncode == 0, drawn.stderr
        assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (("targets", "F99"), 2, "no figure F99"),
        (("run", "--modes", "hot"), 2, "no mode 'hot'"),
        (("run", "--patterns", "flood"), 2, "no pattern 'flood'"),
        (("compare", "a", "b"), 1, "a can't be read"),
        (("gate", "none.toml"), 1, "none.toml can't be read"),
        (("targets", "F10", "--json", "no/folder/r.json"), 1, "r.json can't be written"),
        (("run", "--picture", "p.bmp"), 1, "p.bmp is not the name of a picture"),
    ],
)
def test_a_wrong_request_is_an_error_before_anything_is_measured(tmp_path, words, status, said):
    done = bench(tmp_path, *words)
    assert done.returncode == status
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_commands_are_measured_without_a_template_and_waits_for_vms_say_what_they_need(tmp_path):
    done = bench(tmp_path, "targets", "F3", "F10", "--rounds", "1", "--json", "r.json")
    assert done.returncode == 1, done.stderr  # not all of it was measured
    assert "claude-vm setup" in done.stdout
    lines = {line["key"]: line["value"] for line in json.loads((tmp_path / "r.json").read_text())["lines"]}
    assert lines["F10.version"] > 0
    assert lines["F10.ps"] > 0
    assert lines["F3.hand"] is None


def test_a_lent_template_is_the_new_projects_own_and_ready_by_default(lab):
    origin = lab.simulated("origin")
    (row,) = json.loads(origin.do("list", "--json"))
    record = SimpleNamespace(name=row["name"], driver="sim", generation=row["generation"])
    lab._facts = SimpleNamespace(project=origin.project, home=origin.home, record=record)
    site = lab.defaults()
    for name in ("one", "two"):
        ready.lend(lab, site, site.root / name).fill(1)
    assert ready.count_ready(site) == 2
    ready.settle(site)
    assert {row["making"] for row in ready._rows(site)} == {0}
