"""Mount specifications and the plan made of them."""

import os
import pwd
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.context.errors import MountError
from claude_vm.context.mount_specs import MountSpec, parse_spec
from claude_vm.context.mounts import plan_mounts
from claude_vm.context.project import find_project
from claude_vm.drivers.api import Mount
from claude_vm.drivers.programs import nobody_writes


@pytest.mark.parametrize(
    ("text", "host", "guest", "writable"),
    [
        ("/h", "/h", "", True),
        ("/h:ro", "/h", "", False),
        ("/h:rw", "/h", "", True),
        ("/h:/v", "/h", "/v", True),
        ("/h:/v:ro", "/h", "/v", False),
        ("/h:/v:rw", "/h", "/v", True),
        ("~/a:~/b", "~/a", "~/b", True),
        ("/a b:/c d", "/a b", "/c d", True),
        (r"/a\:b:/c\:ro:ro", "/a:b", "/c:ro", False),
        (r"/a\\:/b", "/a\\", "/b", True),
        (r"/a\b\\\:c", "/a\\b\\:c", "", True),
        ("/a\\", "/a\\", "", True),
        ("/new\nline:ro", "/new\nline", "", False),
        ("ro", "ro", "", True),
    ],
)
def test_specification_is_taken_apart(text, host, guest, writable):
    assert parse_spec(text) == MountSpec(host, guest, writable)


@pytest.mark.parametrize(
    "text", ["", ":", "/a:", ":/b", "/a:/b:/c", "/a:/b:ro:rw", "/a:b", "/a:RO", "/a\0b", "/a::ro"]
)
def test_wrong_specification_is_an_error_that_shows_the_forms(text):
    with pytest.raises(MountError) as caught:
        parse_spec(text, source="me")
    assert caught.value.message.startswith(f"me '{text}': ")
    assert "/host:/guest:ro" in caught.value.hint
    assert caught.value.code == "bad-mount"


paths = st.text(st.characters(blacklist_characters="\0"), max_size=20).map(lambda text: "/" + text)


@given(paths, paths, st.sampled_from(["", ":ro", ":rw"]))
def test_any_two_paths_can_be_said_with_escapes(host, guest, mode):
    def escaped(path):
        return path.replace("\\", "\\\\").replace(":", "\\:")

    spec = parse_spec(f"{escaped(host)}:{escaped(guest)}{mode}")
    assert (spec.host, spec.guest, spec.writable) == (host, guest, mode != ":ro")


@pytest.fixture
def plan(home, repository):
    """Plan the mounts of the repository's project with these specifications."""

    def made(*specs, project=None, max_mounts=8, guard=nobody_writes):
        found = plan_mounts(
            project or find_project(repository),
            specs,
            guest_home="/home/claude",
            home=home,
            max_mounts=max_mounts,
            guard=guard,
        )
        for mount in found:
            status = Path(mount.host).stat()
            assert (mount.device, mount.inode) == (status.st_dev, status.st_ino)
        return tuple(msgspec.structs.replace(mount, device=0, inode=0) for mount in found)

    return made


@pytest.fixture
def data(home):
    folder = home / "data"
    folder.mkdir()
    return folder


def same(folder, *, writable=True):
    return Mount(host=str(folder), guest=str(folder), writable=writable)


def test_project_is_mounted_writable_at_its_own_path(plan, repository):
    assert plan() == (same(repository),)


def test_linked_worktree_adds_the_main_repository(plan, repository, home, git):
    git(repository, "worktree", "add", "-q", str(home / "tree"))
    assert plan(project=find_project(home / "tree")) == (same(repository), same(home / "tree"))


def test_worktree_inside_its_main_repository_needs_one_mount(plan, repository, git):
    git(repository, "worktree", "add", "-q", str(repository / "trees/a"))
    assert plan(project=find_project(repository / "trees/a")) == (same(repository),)


def test_worktree_of_a_bare_repository_adds_the_repository_and_not_its_parent(plan, repository, home, git):
    git(home, "clone", "-q", "--bare", str(repository), "store/code.git")
    git(home / "store/code.git", "worktree", "add", "-q", str(home / "tree"), "main")
    assert plan(project=find_project(home / "tree")) == (same(home / "tree"), same(home / "store/code.git"))


def test_submodule_adds_its_data_only(plan, repository, home, git):
    git(home, "init", "-q", "outer")
    git(home / "outer", "submodule", "--quiet", "add", str(repository), "inner")
    assert plan(project=find_project(home / "outer/inner")) == (
        same(home / "outer/inner"),
        same(home / "outer/.git/modules/inner"),
    )


def test_mode_and_guest_path_are_kept(plan, repository, data):
    assert plan(f"{data}:/v:ro", f"{data}:ro") == (
        Mount(host=str(data), guest="/v", writable=False),
        *sorted((same(repository), same(data, writable=False)), key=lambda mount: mount.guest),
    )


def test_same_mount_twice_is_made_once(plan, repository, data):
    assert plan(f"{data}:/v", f"{data}/:/v/", f"{data}/../data:/v/.", str(repository)) == (
        Mount(host=str(data), guest="/v"),
        same(repository),
    )


def test_same_host_path_at_two_guest_paths_is_both(plan, data):
    assert len(plan(f"{data}:/v", f"{data}:/w")) == 3


def test_tildes_are_the_users_home_on_the_host_and_the_guests_in_the_guest(plan, data):
    assert Mount(host=str(data), guest="/home/claude/d") in plan("~/data:~/d")
    assert same(data) in plan("~/data")


def test_tilde_with_a_name_is_that_users_home(plan):
    user = pwd.getpwuid(os.getuid())
    folder = Path(user.pw_dir).resolve()
    assert Mount(host=str(folder), guest="/v") in plan(f"~{user.pw_name}:/v")
    with pytest.raises(MountError, match="no user 'nobody-has-this-name'"):
        plan("~nobody-has-this-name/x")


def test_symlink_on_the_host_is_resolved_and_kept_in_the_guest(plan, data, home):
    (home / "link").symlink_to(data)
    assert Mount(host=str(data), guest=str(home / "link")) in plan(str(home / "link"))


def test_parents_come_before_what_lies_in_them(plan, data, repository):
    mounts = plan(f"{data}:/v/a/b", f"{data}:/v/a", f"{data}:/v", f"{data}:{repository}/sub")
    guests = [mount.guest for mount in mounts]
    for index, guest in enumerate(guests):
        assert not any(guest.startswith(f"{other}/") for other in guests[index + 1 :])
    assert str(repository / "sub") in guests


@pytest.mark.parametrize(
    ("specs", "says"),
    [
        (("{data}:/v", "{home}/code:/v"), "would be both"),
        (("{data}:/v", "{data}:/v:ro"), "both read-only and writable"),
        (("{data}:{home}/code",), "the project"),
        (("{home}/code:ro",), "both read-only and writable"),
        (("{home}/nothing",), "does not exist"),
        (("{home}/code/sub/file",), "is not a directory"),
        (("data",), "is not absolute"),
        (("~x:/v",), "no user"),
        (("{data}:~x/y",), "is not absolute"),
        (("{data}:/v/../etc/x",), "system directory"),
        (("{data}://",), "system directory"),
        (("a:b:c:d",), "too many parts"),
    ],
)
def test_conflicts_and_wrong_paths_are_errors(plan, data, home, specs, says):
    with pytest.raises(MountError, match=says):
        plan(*(spec.format(data=data, home=home) for spec in specs))


@pytest.mark.parametrize(
    "guest",
    [
        *(
            "/",
            "/etc",
            "/etc/x",
            "/usr",
            "/usr/bin",
            "/bin/x",
            "/proc/1",
            "/sys",
            "/dev",
            "/run/x",
            "/boot",
            "/lib64/x",
        ),
        *("/home", "/tmp", "/var", "/var/lib", "/opt", "/srv", "/usr/local", "/dev/shm", "/usr/src"),
        *("/home/claude", "/home/claude/", "/home/claude/.ssh", "/home/claude/.ssh/x", "~", "~/.ssh"),
    ],
)
def test_guests_own_directories_are_refused(plan, data, guest):
    with pytest.raises(MountError, match=r"directory|SSH keys"):
        plan(f"{data}:{guest}")


@pytest.mark.parametrize(
    "guest",
    [
        "/v",
        "/home/x",
        "/home/claudette",
        "/tmp/x",
        "/var/www/x",
        "/opt/x",
        "/usr/src/x",
        "/usr/local/src/x",
        "/etcetera",
        "~/x",
        "/Users/x",
    ],
)
def test_other_guest_paths_are_fine(plan, data, guest):
    assert len(plan(f"{data}:{guest}")) == 2


def test_project_in_a_system_directory_of_the_guest_is_an_error(plan, monkeypatch):
    with pytest.raises(MountError, match="the project: '/' is a system directory"):
        plan(project=find_project(Path("/")))


def test_more_mounts_than_the_driver_has_are_an_error(plan, data):
    with pytest.raises(MountError, match="3 directories would be mounted, and this driver can mount 2"):
        plan(f"{data}:/v", f"{data}:/w", max_mounts=2)


def test_every_problem_is_reported_at_once_with_its_source(plan, home):
    with pytest.raises(MountError) as caught:
        plan("x", "/a:/b:/c", MountSpec(f"{home}/gone", source="~/.claude-vm.toml:3"), f"{home}:/etc")
    assert caught.value.message == "4 problems with the mounts"
    assert len(caught.value.lines) == 4
    assert any("~/.claude-vm.toml:3: " in line for line in caught.value.lines)


def test_hostile_names_are_mounted_as_they_are(plan, home):
    for name in (
        "a b",
        "quote'\"",
        "new\nline",
        "$(x)",
        "-rf",
        "é",
        "y" * 200,
        "colon:comma,",
        os.fsdecode(b"\xff"),
    ):
        folder = home / name
        folder.mkdir()
        spec = str(folder).replace("\\", "\\\\").replace(":", "\\:")
        assert same(folder, writable=False) in plan(f"{spec}:ro")


@pytest.mark.parametrize("guest", ["/users/x", "/users", "~"])
def test_directory_above_the_guests_home_is_refused_wherever_that_is(data, repository, home, guest):
    with pytest.raises(MountError, match="home directory, or contains it"):
        plan_mounts(
            find_project(repository),
            [f"{data}:{guest}"],
            guest_home="/users/x/claude",
            home=home,
            max_mounts=8,
        )


def test_more_or_longer_mounts_than_can_be_are_refused_before_they_are_looked_at(plan, data):
    with pytest.raises(MountError, match="101 mounts are too many: at most 100"):
        plan(*[f"{data}"] * 101)
    assert plan(*[f"{data}"] * 100)
    with pytest.raises(MountError, match="longer than two paths") as caught:
        parse_spec("/a" * 10_000)
    assert len(caught.value.message) < 200
