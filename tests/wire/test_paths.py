import os
import shutil
import tempfile
from pathlib import Path

import pytest

from claude_vm.supervisor.wire import paths
from claude_vm.supervisor.wire.errors import UnsafePathError


def test_the_usual_home_is_in_the_home_directory():
    assert paths.home({"CLAUDE_VM_HOME": ""}) == str(Path.home() / ".claude-vm")


def test_a_relative_home_becomes_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert paths.home({"CLAUDE_VM_HOME": "data"}) == str(tmp_path / "data")
    assert paths.home({"CLAUDE_VM_HOME": "~/x"}) == str(Path.home() / "x")


def test_a_short_home_has_its_socket_inside():
    assert paths.socket_path("/home/me/.claude-vm") == "/home/me/.claude-vm/run/daemon.sock"


@pytest.mark.parametrize("name", ["x" * 200, "日本" * 20])
def test_a_long_home_has_a_short_socket_of_its_own(name):
    one, other = f"/home/{name}/one", f"/home/{name}/other"
    assert len(os.fsencode(paths.socket_path(one))) <= paths.LONGEST_SOCKET_PATH
    assert paths.socket_path(one) != paths.socket_path(other)
    assert paths.socket_path(one) == paths.socket_path(one + "/")
    assert paths.socket_path(one).startswith(f"/tmp/claude-vm-{os.getuid()}-")


def test_the_limit_is_in_bytes():
    fits = "/" + "x" * (paths.LONGEST_SOCKET_PATH - len("/run/daemon.sock") - 1)
    assert paths.runtime_directory(fits) == fits + "/run"
    assert not paths.runtime_directory(fits + "x").startswith(fits)
    assert not paths.runtime_directory("/" + "é" * 50).startswith("/é")


def test_a_private_directory_is_made_with_its_parent_and_closed(tmp_path):
    directory = tmp_path / "home" / "run"
    before = os.umask(0)
    try:
        paths.make_private(str(directory))
    finally:
        os.umask(before)
    assert directory.stat().st_mode & 0o777 == 0o700
    assert directory.parent.stat().st_mode & 0o777 == 0o700
    directory.chmod(0o755)
    with pytest.raises(UnsafePathError, match="lets others in"):
        paths.check_private(str(directory))
    paths.make_private(str(directory))
    assert directory.stat().st_mode & 0o777 == 0o700


def test_a_symbolic_link_is_no_private_directory(tmp_path):
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "run").symlink_to(tmp_path / "real")
    with pytest.raises(UnsafePathError, match=r"symbolic link.*; move it away, or set CLAUDE_VM_HOME"):
        paths.make_private(str(tmp_path / "run"))


def test_a_file_is_no_private_directory(tmp_path):
    (tmp_path / "run").touch()
    with pytest.raises(UnsafePathError, match="no directory"):
        paths.make_private(str(tmp_path / "run"))


def test_another_users_directory_is_not_trusted(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir(mode=0o700)
    monkeypatch.setattr(os, "getuid", lambda: (tmp_path / "run").stat().st_uid + 1)
    with pytest.raises(UnsafePathError, match="belongs to user"):
        paths.check_private(str(tmp_path / "run"))


@pytest.mark.parametrize("kind", ["directory", "file", "link"])
@pytest.mark.skipif(os.geteuid() == 0, reason="root may do everything")
def test_nobody_is_told_to_do_what_the_owner_alone_may(tmp_path, monkeypatch, kind):
    """In a folder such as /tmp, where somebody else was there before."""
    parent, path = tmp_path / "tmp", tmp_path / "tmp" / "run"
    parent.mkdir()
    parent.chmod(0o1777)
    {"directory": path.mkdir, "file": path.touch, "link": lambda: path.symlink_to("/")}[kind]()
    monkeypatch.setattr(os, "getuid", lambda: path.lstat().st_uid + 1)
    with pytest.raises(UnsafePathError) as caught:
        paths.check_private(str(path))
    assert str(caught.value).endswith("; set CLAUDE_VM_HOME to a folder of your own with a short path")
    assert not {"remove", "move", "chmod"}.intersection(str(caught.value).replace(";", " ").split())


def test_a_folder_of_the_systems_is_not_to_be_closed_by_a_user(tmp_path, monkeypatch):
    tmp_path.chmod(0o777)
    found = tmp_path.stat()
    owner = os.stat_result((found.st_mode, *found[1:4], 0, 0, *found[6:]))
    monkeypatch.setattr(os, "stat", lambda *_, **__: owner)
    with pytest.raises(UnsafePathError, match=r"everybody may write to .*; set CLAUDE_VM_HOME"):
        paths._check_parent(str(tmp_path))


def test_a_parent_that_everybody_may_write_to_is_not_trusted():
    parent = tempfile.mkdtemp()
    try:
        Path(parent).chmod(0o777)
        with pytest.raises(UnsafePathError, match="everybody may write"):
            paths.make_private(parent + "/run")
        Path(parent).chmod(0o1777)
        paths.make_private(parent + "/run")
    finally:
        shutil.rmtree(parent)
