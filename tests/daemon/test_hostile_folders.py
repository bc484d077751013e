"""What a guest leaves in a project, and what the next command makes of it: on simulated guests.

A simulated guest's session runs on the host with the project's files: it can do to them what a real one can.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest
from claude_vm_tests_user import sleeper

from claude_vm.drivers.lima.home import lima_home
from claude_vm.supervisor.wire import paths

pytestmark = pytest.mark.timeout(180)

GIT = ("git", "-c", "user.name=n", "-c", "user.email=e@example.invalid", "-c", "init.defaultBranch=main")


def git(folder, *words):
    subprocess.run([*GIT, "-C", folder, *words], check=True, capture_output=True)


@pytest.fixture
def area(user):
    """A bare repository in .git, and a worktree beside it."""
    area = user.project.parent / "area"
    area.mkdir()
    subprocess.run([*GIT, "init", "-q", "--bare", area / ".git"], check=True)
    git(user.project, "init", "-q")
    git(user.project, "commit", "-q", "--allow-empty", "-m", "x")
    git(user.project, "push", "-q", area / ".git", "HEAD:main")
    git(area / ".git", "worktree", "add", "-q", area / "main", "main")
    return area


@pytest.fixture
def inner(ready):
    """A repository in the project, which is one, too."""
    git(ready.project, "init", "-q")
    folder = ready.project / "inner"
    git(ready.project, "init", "-q", folder)
    assert ready.run("setup", "--no-agent", cwd=folder).returncode == 0
    return folder


def lines(done):
    """Return what was said, but for what a simulated guest always says."""
    return [line for line in done.stderr.decode().splitlines() if "NOTHING IS ISOLATED" not in line]


def mounts(user, cwd):
    return json.loads(user.run("info", "--json", cwd=cwd).stdout)["mounts"]


def test_a_guest_that_makes_its_repository_not_bare_gets_no_more_until_the_user_says_so(user, area):
    main = area / "main"
    assert user.run("setup", "--no-agent", cwd=main).returncode == 0
    done = user.run("shell", "git config -f ../.git/config core.bare false", cwd=main)
    assert done.returncode == 0
    for command in (
        ("shell", "true"),
        ("agent",),
        ("pool", "fill"),
        ("setup", "--no-agent"),
        ("clean", "--yes"),
    ):
        done = user.run(*command, cwd=main)
        assert done.returncode == (125 if command[0] in {"shell", "agent"} else 1), command
        assert "[project-grew]" in lines(done)[0]
        for path in (f"{area}/.git", f"{main}", f"belong to {area}: "):
            assert path in lines(done)[0]
        assert "--accept-growth" in lines(done)[1]
    shown = user.json_in(main, "info")
    assert (shown["project"], shown["mounts"]) == (str(main), [])
    assert str(area) in shown["problem"]
    assert "Problem:" in user.run("info", cwd=main).stdout.decode()
    done = user.run("--accept-growth", "--auto-setup", "shell", "pwd", cwd=main)
    assert done.returncode in {0, 125}, done.stderr
    assert "[project-grew]" not in done.stderr.decode()
    assert mounts(user, main) == [f"{area}:{area}:rw"]


def test_a_guest_that_breaks_its_repository_does_not_get_the_one_around_it(ready, inner):
    assert ready.run("shell", "mv .git/HEAD .git/HEAD.x", cwd=inner).returncode == 0
    for command in (
        ("shell", "true"),
        ("pool", "fill"),
        ("setup", "--no-agent"),
        ("pool", "drain"),
        ("clean",),
    ):
        done = ready.run(*command, cwd=inner)
        assert done.returncode == (125 if command[0] == "shell" else 1), command
        assert "[broken-repository]" in lines(done)[0]
        assert f"{inner}/.git is broken: HEAD" in lines(done)[0]
    shown = ready.json_in(inner, "info")
    assert (shown["project"], shown["mounts"], shown["status"]) == (str(inner), [], "stopped")
    assert "HEAD" in shown["problem"]
    shutil.rmtree(inner / ".git")
    done = ready.run("shell", "true", cwd=inner)
    assert (done.returncode, "[project-grew]" in lines(done)[0]) == (125, True)
    assert ready.run("shell", "true").returncode == 0


def test_a_project_is_remembered_without_a_daemon_and_for_all_of_them(ready, inner):
    ready.run("daemon", "stop")
    assert ready.run("--no-daemon", "shell", "rm -r .git", cwd=inner).returncode == 0
    for flags in ((), ("--no-daemon",)):
        done = ready.run(*flags, "shell", "true", cwd=inner)
        assert (done.returncode, "[project-grew]" in lines(done)[0]) == (125, True)


def test_a_project_is_remembered_as_soon_as_a_ready_vm_has_it(ready, inner):
    assert ready.run("pool", "fill", "1", "--no-wait", cwd=inner).returncode == 0
    shutil.rmtree(inner / ".git")
    done = ready.run("shell", "true", cwd=inner)
    assert (done.returncode, "[project-grew]" in lines(done)[0]) == (125, True)


def test_links_of_a_guest_redirect_neither_mounts_nor_files_of_the_next_command(ready):
    other = ready.home / "other"
    other.mkdir()
    (other / "id").write_text("KEY=secret\n")
    (ready.project / "data").mkdir()
    (ready.project / ".env").write_text("A=1\n")
    command = ("--mount", f"{ready.project}/data:/data", "--env-file", ".env", "shell")
    plant = f"rmdir data && ln -s {other} data && ln -sf {other}/id .env && echo $A"
    assert ready.run(*command, plant).stdout == b"1\n"
    for flags, leads in (
        (("--mount", f"{ready.project}/data:/data"), other),
        (("--mount", f"{ready.project}/data:/data:ro"), other),
        (("--env-file", ".env"), other / "id"),
        (("--env-file", f"{ready.home}/../project/.env"), other / "id"),
    ):
        done = ready.run(*flags, "shell", "env")
        assert (done.returncode, done.stdout) == (125, b""), flags
        assert "[link-leaves]" in lines(done)[0]
        assert str(leads) in lines(done)[0]
        assert str(ready.project) in lines(done)[0]
    # also from elsewhere, where that folder is of no concern otherwise
    elsewhere = ready.home / "elsewhere"
    elsewhere.mkdir()
    assert ready.run("setup", "--no-agent", cwd=elsewhere).returncode == 0
    done = ready.run("--env-file", f"{ready.project}/.env", "shell", "env", cwd=elsewhere)
    assert "[link-leaves]" in lines(done)[0]
    # the user says what was meant
    assert ready.run("--env-file", f"{other}/id", "shell", "echo $KEY").stdout == b"secret\n"


def test_the_configuration_is_not_read_where_a_guests_link_leads(ready):
    """A configuration that lies, by the user's own link, in a project."""
    own = ready.home / ".claude-vm.toml"
    kept = ready.project / "claude-vm.toml"
    own.rename(kept)
    own.symlink_to(kept)
    outside = ready.home / "of-another.toml"
    outside.write_text("[pool]\nsize = 0\n")
    assert ready.run("shell", f"ln -sf {outside} claude-vm.toml").returncode == 0
    done = ready.run("shell", "true")
    assert (done.returncode, "[link-leaves]" in lines(done)[0]) == (125, True)
    told = f"{own} leads through the link {kept} to {outside}, out of {ready.project}"
    assert told in lines(done)[0]
    ready.stop_daemon()
    log = ready.data / "logs" / "daemon.log"
    before = log.read_text()
    assert ready.run("ps").returncode == 0  # what a daemon reads before there is a command
    assert told in log.read_text().removeprefix(before)


def test_a_directory_that_is_replaced_by_a_link_is_not_stood_in(ready):
    """A guest swaps the directory in which somebody's shell stands."""
    other = ready.home / "other"
    other.mkdir()
    (ready.project / "sub").mkdir()
    assert ready.run("shell", "true").returncode == 0
    (ready.project / "sub").rmdir()
    (ready.project / "sub").symlink_to(other)
    done = ready.run("shell", "pwd", cwd=ready.project / "sub")
    # the client says where it really is, so that is another project
    assert done.returncode == 125
    assert "[template-missing]" in lines(done)[0]
    assert str(other) in lines(done)[0]


def test_a_mount_is_remembered_as_writable_before_its_vm_can_write_it(ready):
    data = ready.home / "data"
    data.mkdir()
    other = ready.home / "other"
    other.mkdir()
    (ready.data / "sim.json").write_text(json.dumps({"calls": {"clone": [{"fail": "disk-full"}] * 9}}))
    ready.run("daemon", "stop")
    assert ready.run("--mount", f"{data}:/data", "shell", "true").returncode == 125
    (data / "l").symlink_to(other)
    done = ready.run("--mount", f"{data}/l:/l:ro", "shell", "true")
    assert "[link-leaves]" in lines(done)[0]


@pytest.mark.parametrize("spec", ["{project}/vendor:ro", "{project}:/v:ro", "{alias}:/v:ro", "vendor"])
def test_a_read_only_mount_that_could_be_written_is_refused(ready, spec):
    vendor = ready.project / "vendor"
    vendor.mkdir()
    alias = ready.home / "alias"
    alias.symlink_to(vendor)
    if spec == "vendor":
        (ready.home / ".claude-vm.toml").write_text(
            f"[[mounts]]\nlocation = '{vendor}'\nmount_point = '/v'\nwritable = false\n"
        )
        flags = ()
    else:
        flags = ("--mount", spec.format(project=ready.project, alias=alias))
    done = ready.run(*flags, "shell", "true")
    assert done.returncode == 125
    assert "can't be read-only" in lines(done)[0]
    assert str(ready.project) in lines(done)[0]
    assert ready.run(*flags, "pool", "fill").returncode == 1


def test_a_parent_may_be_read_only_around_a_writable_project(ready):
    (ready.project.parent / "beside").write_text("seen")
    session = sleeper(ready, "--mount", f"{ready.project.parent}:/around:ro")
    ready.run("stop", "--all")
    assert session.wait(30) == 143


def test_nothing_is_started_when_it_can_not_be_remembered(ready):
    if os.geteuid() == 0:
        pytest.skip("root writes everywhere")
    assert ready.run("shell", "true").returncode == 0
    (ready.data / "places.db").write_text("no database")
    done = ready.run("shell", "true")
    assert (done.returncode, "[places-failed]" in lines(done)[0]) == (125, True)
    assert ready.run("ps").returncode == 0


def test_no_guest_gets_what_lies_elsewhere_because_the_data_folder_has_a_long_path(user):
    data = user.home / ("long-" * 20)
    env = {"CLAUDE_VM_HOME": str(data)}
    try:
        assert user.run("setup", "--no-agent", env=env).returncode == 0
        for folder in (paths.runtime_directory(str(data)), lima_home(data), data / "cache"):
            place = Path(folder).parent
            done = user.run("--mount", f"{place}:/x", "shell", "true", env=env)
            assert (done.returncode, "own data" in lines(done)[0]) == (125, True), place
            assert str(place) in lines(done)[0]
            done = user.run("--mount", f"{place}:/x:ro", "shell", "true", env=env)
            assert "own data" not in done.stderr.decode()
    finally:
        user.run("daemon", "stop", "--force", env=env)
