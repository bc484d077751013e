"""The picture: that it is drawn, from what, and that it says what it shows. How it looks, people judge."""

import builtins
import random

import pytest

from claude_vm.bench import picture
from claude_vm.bench.errors import BenchError

MARKS = {"requested": 0.012, "claimed": 0.013, "files": 0.014, "start": 0.016}


@pytest.fixture
def full(sample, report):
    chance = random.Random(1)
    samples = []
    for n in range(20):
        samples += [
            sample("warm", chance.gauss(25, 3), round=n, source="warm", instants=MARKS),
            sample("warm", chance.gauss(60, 20), round=n, source="warm", pattern="burst", instants=MARKS),
            sample("ssh", chance.gauss(27, 3), round=n),
            sample("cold", ok=False, round=n),
        ]
    return report(samples)


def test_a_picture_has_both_halves_with_labels_and_units(full, tmp_path):
    pytest.importorskip("matplotlib")
    picture.draw(full, tmp_path / "p.svg")
    text = (tmp_path / "p.svg").read_text()
    for said in ("milliseconds", "Waiting time", "Where the time goes", "warm burst", "ssh", "cli", "phase"):
        assert said in text or said.replace(" ", "&#160;") in text, said
    assert "cold" not in text, "nothing succeeded"
    picture.draw(full, tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_a_result_without_samples_and_a_file_that_cannot_be_written_are_errors(
    full, report, sample, tmp_path
):
    with pytest.raises(BenchError, match="no samples"):
        picture.draw(report(), tmp_path / "p.png")
    pytest.importorskip("matplotlib")
    with pytest.raises(BenchError, match="can't be drawn"):
        picture.draw(full, tmp_path / "no" / "p.png")
    with pytest.raises(BenchError, match="can't be drawn"):
        picture.draw(full, tmp_path / "p.text")


def test_without_the_library_the_message_says_what_to_install(full, tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *rest):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(BenchError, match="matplotlib") as caught:
        picture.draw(full, tmp_path / "p.png")
    assert "claude-vm[bench]" in caught.value.hint
