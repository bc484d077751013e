"""Another session that can write in the same place is told of, and nothing else is."""

import subprocess
from pathlib import Path

import pytest
from claude_vm_tests_user import sleeper

from claude_vm.context.project import Project, find_project
from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.daemon.sessions.sharing import Writer, shared, warning, writers_elsewhere, writes


def key(*mounts):
    return PoolKey(
        driver="qemu",
        template="t",
        generation="g",
        cpus=1,
        memory_mib=1024,
        disk_gib=10,
        mounts=tuple(MountKey(host=host, guest=host, writable=writable) for host, writable in mounts),
    )


def found(own, *others):
    return [
        (s.session_id, s.folder)
        for s in shared(own, [Writer(str(n), other) for n, other in enumerate(others)])
    ]


@pytest.mark.parametrize(
    ("mine", "theirs", "folder"),
    [
        ("/p", "/p", "/p"),
        ("/p", "/p/inner", "/p/inner"),
        ("/p/inner", "/p", "/p/inner"),
        ("/p", "/p2", None),
        ("/p/a", "/p/b", None),
        ("/", "/p", "/p"),
    ],
)
def test_the_same_directory_and_one_in_the_other_are_shared(mine, theirs, folder):
    assert found((mine,), (theirs,)) == ([] if folder is None else [("0", folder)])


def test_each_other_session_counts_once_and_the_first_is_named():
    assert found(("/p", "/q"), ("/x", "/q"), ("/y",), ("/p", "/q")) == [("0", "/q"), ("2", "/p")]
    line = warning(tuple(shared(("/p",), [Writer("a1", ("/p",)), Writer("b2", ("/p",))])))
    assert "session a1 (and 1 more sessions) can write in /p too" in line
    assert "\n" not in line


def project(root, main=None):
    return Project(
        root=Path(root), cwd=Path(root), main_repository=main and Path(main), template_root=Path(root)
    )


def test_a_session_works_in_its_project_and_its_own_writable_mounts():
    mounts = key(("/main", True), ("/tree", True), ("/data", True), ("/books", False))
    assert writes(mounts, project("/tree", "/main")) == ("/tree", "/data")
    assert writes(key(("/main", True)), project("/main/.trees/a", "/main")) == ("/main/.trees/a",)


def test_other_supervisors_that_left_nothing_have_no_sessions(tmp_path):
    assert list(writers_elsewhere(tmp_path, "daemon", "boot")) == []
    (tmp_path / "supervisors/p1").mkdir(parents=True)
    (tmp_path / "supervisors/p2").mkdir()
    (tmp_path / "supervisors/p2/journal.db").write_text(
        "not a database, but long enough to be read as one" * 9
    )
    assert list(writers_elsewhere(tmp_path, "daemon", "boot")) == []


def told(done):
    assert done.returncode == 0, done.stderr.decode()
    return [line for line in done.stderr.decode().splitlines() if "can write in" in line]


def test_a_second_writer_is_told_once_and_silenced_by_flag_and_setting(ready):
    assert told(ready.run("shell", "true")) == []
    first = sleeper(ready)
    (session,) = ready.json("ps")
    (line,) = told(ready.run("shell", "true"))
    assert line.startswith(f"claude-vm: the session {session['session']} can write in {ready.project} too")
    (line,) = told(ready.run("--no-daemon", "shell", "true"))
    assert f"the session {session['session']}" in line
    assert told(ready.run("-q", "shell", "true")) == []
    with (ready.home / ".claude-vm.toml").open("a") as settings:
        settings.write("[session]\nnote_second_writer = false\n")
    assert told(ready.run("shell", "true")) == []
    first.kill()


def test_a_session_without_a_daemon_is_a_neighbour_of_the_daemons(ready):
    first = sleeper(ready, "--no-daemon")
    (line,) = told(ready.run("shell", "true"))
    assert f"can write in {ready.project} too" in line
    first.terminate()
    first.wait(60)
    assert told(ready.run("shell", "true")) == []


def test_a_read_only_mount_and_a_worktree_of_the_same_repository_are_no_neighbours(ready):
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", ready.project]
    tree = ready.home / "tree"
    for words in (
        ["init", "-q"],
        ["commit", "-q", "--allow-empty", "-m", "x"],
        ["worktree", "add", "-q", tree],
    ):
        subprocess.run([*git, *words], check=True)
    assert find_project(tree).main_repository == ready.project
    first = sleeper(ready)
    assert told(ready.run("--auto-setup", "shell", "true", cwd=tree)) == []
    (line,) = told(ready.run("--mount", f"{ready.project}:/other", "--auto-setup", "shell", "true", cwd=tree))
    assert f"can write in {ready.project} too" in line
    first.kill()
