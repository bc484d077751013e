"""The bench in short, with real VMs: what it measures adds up, and it leaves nothing."""

import csv
import json

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


def test_warm_claims_and_clones_are_measured_phase_by_phase(claude_vm, folder):
    paths = {kind: folder / f"result.{kind}" for kind in ("json", "csv", "png")}
    done = claude_vm.run(
        *("bench", "run", "--modes", "warm,clone", "--patterns", "sequential", "--rounds", "1"),
        *("--json", paths["json"], "--csv", paths["csv"], "--picture", paths["png"]),
        timeout=500,
    )
    assert done.returncode == 0, done.stderr.decode()
    samples = [s for s in json.loads(paths["json"].read_text())["samples"] if s["round"] >= 0]
    assert all(s["ok"] for s in samples), samples
    shown = {
        mode: [s["instants"]["shown"] for s in samples if s["mode"] == mode] for mode in ("warm", "clone")
    }
    assert [len(seconds) for seconds in shown.values()] == [1, 1]
    assert max(shown["warm"]) < min(shown["clone"])
    assert {s["source"] for s in samples if s["mode"] == "warm"} == {"warm"}
    table = done.stdout.decode()
    assert all(text in table for text in ("warm", "clone", "p50", "p95", "100%"))
    with paths["csv"].open() as rows:
        phases = {(row["mode"], row["phase"]) for row in csv.DictReader(rows)}
    assert {("clone", "restore"), ("clone", "connect"), ("warm", "claim")} <= phases
    assert paths["png"].read_bytes().startswith(b"\x89PNG")
