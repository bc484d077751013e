"""Worktrees that a session can't see are locked while it runs."""

import fcntl
import os

import pytest

from claude_vm.context.worktree_locks import LIMIT, MARK, lock_siblings, release_stale


@pytest.fixture
def trees(repository, home, git):
    """Two linked worktrees of the repository, ``a`` and ``b``."""
    for name in ("a", "b"):
        git(repository, "worktree", "add", "-q", str(home / name))
    return home


def lock(repository, name):
    return repository / ".git/worktrees" / name / "locked"


def test_prune_in_a_guest_loses_unmounted_worktrees_unless_they_are_locked(repository, trees, git):
    assert lock_siblings(repository / ".git", [repository, trees / "a"], "one") == ("b",)
    (trees / "a").rename(trees / "a-unseen")
    (trees / "b").rename(trees / "b-unseen")  # as a guest sees it
    git(repository, "worktree", "prune", "--expire=now")
    (trees / "b-unseen").rename(trees / "b")
    assert git(trees / "b", "status", "--short") == ""
    assert not (repository / ".git/worktrees/a").exists()


def test_git_shows_our_reason(repository, trees, git):
    lock_siblings(repository / ".git", [repository], "one")
    listed = git(repository, "worktree", "list", "--porcelain")
    assert listed.count("locked ") == 2
    assert MARK in listed
    assert "one" in lock(repository, "a").read_text()


def test_release_unlocks_and_twice_is_once(repository, trees):
    assert lock_siblings(repository / ".git", [repository], "one") == ("a", "b")
    assert lock_siblings(repository / ".git", [repository], "one") == ("a", "b")
    assert release_stale(repository / ".git", "one") == ("a", "b")
    assert release_stale(repository / ".git", "one") == ()
    assert not lock(repository, "a").exists()


def test_worktree_beneath_a_mount_is_not_locked(repository, home, git):
    git(repository, "worktree", "add", "-q", str(repository / "trees/a"))
    git(repository, "worktree", "add", "-q", str(home / "code-b"))  # no prefix of a path by text
    assert lock_siblings(repository / ".git", [repository], "one") == ("code-b",)


def test_lock_stays_until_the_last_supervisor_releases_it(repository, trees):
    lock_siblings(repository / ".git", [repository], "one")
    lock_siblings(repository / ".git", [repository], "two")
    assert release_stale(repository / ".git", "one") == ()
    assert lock(repository, "a").exists()
    assert "one" not in lock(repository, "a").read_text()
    assert release_stale(repository / ".git", "two") == ("a", "b")


def test_lock_of_somebody_else_is_left_alone(repository, trees, git):
    git(repository, "worktree", "lock", "--reason", "on a stick", str(trees / "a"))
    assert lock_siblings(repository / ".git", [repository], "one") == ("b",)
    assert lock(repository, "a").read_text() == "on a stick\n"
    assert release_stale(repository / ".git", "one") == ("b",)
    assert lock(repository, "a").read_text() == "on a stick\n"


def test_a_lock_does_not_tell_a_guest_what_there_is_on_the_host(repository, trees, monkeypatch):
    """A guest writes what is named, and sees the lock: the same one, whether that is there or not."""
    gitdir = repository / ".git/worktrees/a/gitdir"
    (trees / "there").mkdir()
    (trees / "there/.git").write_text("x")
    looked = []
    monkeypatch.setattr(os, "lstat", lambda path, **_: looked.append(path))
    for path in (trees / "there", trees / "not-there"):
        gitdir.write_text(f"{path}/.git\n")
        assert lock_siblings(repository / ".git", [repository], "one") == ("a", "b")
        release_stale(repository / ".git", "one")
    assert looked == []


def test_metadata_without_a_path_is_no_worktree(repository, trees):
    for content in (b"", b"\0/.git\0", str(trees / "a").encode()):
        (repository / ".git/worktrees/a/gitdir").write_bytes(content)
        assert lock_siblings(repository / ".git", [repository], "one") == ("b",)


def test_a_worktree_with_a_relative_path_is_seen_to_be_mounted(repository, trees):
    (repository / ".git/worktrees/a/gitdir").write_text("../../../../a/.git\n")
    assert lock_siblings(repository / ".git", [repository, trees / "a"], "one") == ("b",)


def test_what_a_guest_makes_of_its_repository_moves_no_lock_elsewhere(repository, trees, git):
    """A session's data is what it was when it began, whatever its work tree names at the end."""
    lock_siblings(repository / ".git", [repository], "one")
    git(trees, "init", "-q", "other")
    (repository / ".git").rename(repository / "moved")
    (repository / ".git").write_text(f"gitdir: {trees / 'other/.git'}\n")
    git(trees / "other", "config", "core.worktree", str(repository))
    assert release_stale(repository / ".git", "one") == ()


def test_bare_repository_and_repository_without_worktrees(repository, home, git):
    assert lock_siblings(repository / ".git", [repository], "one") == ()
    git(home, "clone", "-q", "--bare", str(repository), "code.git")
    git(home / "code.git", "worktree", "add", "-q", str(home / "c"), "main")
    assert lock_siblings(home / "code.git", [home / "code.git"], "one") == ("c",)
    assert release_stale(home / "code.git", "one") == ("c",)


def test_repository_that_is_gone_has_nothing_to_release(home):
    assert release_stale(home / "nothing", "one") == ()


@pytest.mark.parametrize("name", ["", "A", "x" * 25, "a b", "a\n", "../x"])
def test_supervisor_ids_are_checked(repository, name):
    with pytest.raises(ValueError, match="no supervisor id"):
        lock_siblings(repository / ".git", [], name)
    with pytest.raises(ValueError, match="no supervisor id"):
        release_stale(repository / ".git", name)


def test_symlinks_of_a_guest_are_not_followed(repository, trees, home):
    outside = home / "outside"
    outside.mkdir()
    target = outside / "locked"
    lock(repository, "a").symlink_to(target)
    lock_siblings(repository / ".git", [repository], "one")
    assert not target.exists()
    target.write_text(f"{MARK}\nclaude-vm supervisor: one\n")
    lock_siblings(repository / ".git", [repository], "two")
    release_stale(repository / ".git", "one")
    assert target.read_text() == f"{MARK}\nclaude-vm supervisor: one\n"


def test_symlinked_metadata_of_a_guest_is_not_followed(repository, trees, home):
    metadata = repository / ".git/worktrees"
    (metadata / "a").rename(home / "moved")
    (metadata / "a").symlink_to(home / "moved")
    assert lock_siblings(repository / ".git", [repository], "one") == ("b",)
    assert not (home / "moved/locked").exists()
    release_stale(repository / ".git", "one")
    metadata.rename(home / "all")
    metadata.symlink_to(home / "all")
    assert lock_siblings(repository / ".git", [repository], "one") == ()
    assert not (home / "all/b/locked").exists()


def test_odd_files_of_a_guest_are_left_alone_and_do_not_hang(repository, trees):
    os.mkfifo(lock(repository, "a"))
    lock(repository, "b").write_text(f"{MARK}\nclaude-vm supervisor: one\n" + "x" * LIMIT)
    assert lock_siblings(repository / ".git", [repository], "one") == ()
    assert release_stale(repository / ".git", "one") == ()
    assert lock(repository, "b").exists()


def test_hard_link_of_a_guest_is_not_written_through(repository, trees):
    text = f"{MARK}\nclaude-vm supervisor: two\n"
    (repository / "x").write_text(text)
    os.link(repository / "x", lock(repository, "a"))
    lock_siblings(repository / ".git", [repository], "one")
    assert (repository / "x").read_text() == text


def test_lock_held_by_a_guest_does_not_hang(repository, trees):
    folder = os.open(repository / ".git/worktrees", os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        assert lock_siblings(repository / ".git", [repository], "one") == ("a", "b")
    finally:
        os.close(folder)


def test_what_can_not_be_locked_is_left_alone(repository, trees):
    lock(repository, "a").mkdir()
    assert lock_siblings(repository / ".git", [repository], "one") == ("b",)
    assert release_stale(repository / ".git", "one") == ("b",)


def test_root_gives_the_lock_to_the_repositorys_owner(repository, trees, monkeypatch):
    given = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda _file, uid, gid: given.append((uid, gid)))
    lock_siblings(repository / ".git", [repository, trees / "b"], "one")
    status = (repository / ".git/worktrees/a").stat()
    assert given == [(status.st_uid, status.st_gid)]


def test_user_who_is_not_root_changes_no_owner(repository, trees, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "fchown", lambda *_: pytest.fail("fchown"))
    assert lock_siblings(repository / ".git", [repository], "one") == ("a", "b")
