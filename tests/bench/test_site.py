"""Homes of the bench's own, which leave nothing."""

import os

import pytest

from claude_vm.bench import site as module
from claude_vm.bench import surroundings
from claude_vm.bench.site import Site
from claude_vm.drivers.lima import home


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    monkeypatch.setattr(home, "ELSEWHERE", folder)
    return folder


def test_limas_folder_goes_with_its_home_also_where_it_lies_elsewhere(tmp_path, elsewhere, monkeypatch):
    root = tmp_path / ("x" * 120)
    (root / "project").mkdir(parents=True)
    site = Site(root, root / "project")
    monkeypatch.setattr(module.Site, "words", lambda *_args, **_options: "")
    made = home.make(site.home)
    assert made.parent == elsewhere
    site.close()
    assert list(elsewhere.iterdir()) == []
    assert not root.exists()


def test_the_bench_starts_nothing_that_a_guest_could_have_put_into_the_path(tmp_path, monkeypatch):
    folder = tmp_path / "project" / ".venv" / "bin"
    folder.mkdir(parents=True)
    monkeypatch.setenv("PATH", f".:{folder}::/usr/bin")
    surroundings.leave_out_of_path(tmp_path / "project")
    entries = os.environ["PATH"].split(":")
    assert entries[0] == os.path.realpath("/usr/bin")
    assert all(entry.startswith("/") and str(tmp_path) not in entry for entry in entries)
