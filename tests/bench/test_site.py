"""Homes of the bench's own, which leave nothing."""

import os

import pytest

from claude_vm.bench import environment
from claude_vm.bench import site as module
from claude_vm.bench.errors import BenchError
from claude_vm.bench.site import Site
from claude_vm.context.folders import Folder
from claude_vm.drivers.lima import home
from claude_vm.supervisor.daemon.state.known_folders import KnownFolders


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
    folders = [tmp_path / name / "bin" for name in ("project", "former", "former/broken", "own")]
    for folder in folders:
        folder.mkdir(parents=True)
    (tmp_path / "former/broken/.git").mkdir()
    home = tmp_path / "data"
    home.mkdir()
    status = (tmp_path / "former").stat()
    former = Folder(
        path=tmp_path / "former",
        reach=(tmp_path / "former",),
        template_root=tmp_path / "former",
        writable=True,
        identity=(status.st_dev, status.st_ino),
    )
    places = KnownFolders(home)
    places.remember([former])
    places.close()
    monkeypatch.setenv("CLAUDE_VM_HOME", str(home))
    for cwd in ("project", "former/broken"):
        monkeypatch.setenv("PATH", ":".join((".", *map(str, folders), "", "/usr/bin")))
        environment.leave_out_of_path(tmp_path / cwd)
        entries = os.environ["PATH"].split(":")
        own = [entry for entry in entries if entry.startswith(str(tmp_path))]
        expected = {"project": [folders[3]], "former/broken": [folders[0], folders[3]]}[cwd]
        assert own == [str(folder) for folder in expected]
        assert os.path.realpath("/usr/bin") in entries
        assert all(entry.startswith("/") for entry in entries)


def test_the_bench_does_not_start_where_it_is_not_known_what_guests_could_write(tmp_path, monkeypatch):
    (tmp_path / "places.db").write_text("no database")
    monkeypatch.setenv("CLAUDE_VM_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin")
    with pytest.raises(BenchError, match="the record of your folders"):
        environment.leave_out_of_path(tmp_path)
