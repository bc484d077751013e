"""Read-only mounts that a guest could write through another one of its own."""

from pathlib import Path

import pytest

from claude_vm.context.errors import MountError
from claude_vm.context.mounts import plan_mounts
from claude_vm.context.overlaps import HostMount, read_mount_table, writable_ways
from claude_vm.context.project import find_project
from claude_vm.drivers.api import Mount


def pairs(mounts, table=()):
    given = [Mount(host, guest, writable) for host, guest, writable in mounts]
    return [(ro.host, rw.host) for ro, rw in writable_ways(given, table)]


ROOT = HostMount("8:1", Path("/"), Path("/"))


@pytest.mark.parametrize("table", [(), (ROOT,)])
@pytest.mark.parametrize(
    ("mounts", "found"),
    [
        ([("/p", "/p", True), ("/p/v", "/p/v", False)], [("/p/v", "/p")]),
        ([("/p", "/p", True), ("/p/v/w", "/elsewhere", False)], [("/p/v/w", "/p")]),
        ([("/p", "/p", True), ("/p", "/v", False)], [("/p", "/p")]),
        ([("/p", "/p", True), ("/p/v", "/p/v", False), ("/p/v/w", "/w", True)], [("/p/v", "/p")]),
        ([("/p", "/p", False), ("/p/v", "/p/v", True)], []),
        ([("/p", "/p", True), ("/pv", "/p/v", False)], []),
        ([("/p", "/p", True), ("/p/v", "/p/v", True)], []),
        ([("/p", "/p", False), ("/p/v", "/p/v", False)], []),
        ([], []),
    ],
)
def test_what_lies_in_a_writable_mount_can_be_written(mounts, found, table):
    assert pairs(mounts, table) == found


@pytest.mark.parametrize(
    ("extra", "mounts"),
    [
        # /alias is /p/v under another name
        ([HostMount("8:1", Path("/p/v"), Path("/alias"))], [("/p", "/p", True), ("/alias", "/v", False)]),
        ([HostMount("8:1", Path("/p/v"), Path("/alias"))], [("/p", "/p", True), ("/alias/w", "/v", False)]),
        # /s is brought into /p
        ([HostMount("8:1", Path("/s"), Path("/p/m"))], [("/p", "/p", True), ("/s", "/v", False)]),
        ([HostMount("9:1", Path("/"), Path("/p/m"))], [("/p", "/p", True), ("/p/m/x", "/v", False)]),
        # a disk is at two places
        (
            [HostMount("9:1", Path("/"), Path("/a")), HostMount("9:1", Path("/"), Path("/b"))],
            [("/a/p", "/p", True), ("/b/p/v", "/v", False)],
        ),
        # the later mount hides the earlier one
        (
            [HostMount("9:1", Path("/"), Path("/a")), HostMount("8:1", Path("/p"), Path("/a"))],
            [("/p", "/p", True), ("/a/v", "/v", False)],
        ),
    ],
)
def test_bind_mounts_give_directories_other_names_and_no_other_rights(extra, mounts):
    assert pairs(mounts, [ROOT, *extra]) == [(mounts[1][0], mounts[0][0])]


def test_another_disk_at_a_place_inside_is_not_what_it_covers():
    table = [ROOT, HostMount("9:1", Path("/x"), Path("/alias"))]
    assert pairs([("/x", "/x", True), ("/alias", "/v", False)], table) == []


def test_one_directory_is_known_by_its_identity_where_there_is_no_table(tmp_path):
    status = tmp_path.stat()
    (tmp_path / "v").mkdir()
    writable = Mount("/another/name", "/p", True, status.st_dev, status.st_ino)
    read_only = Mount(str(tmp_path / "v"), "/v", False)
    assert list(writable_ways([writable, read_only], ())) == [(read_only, writable)]


def test_the_table_is_read_with_its_escapes(tmp_path):
    file = tmp_path / "mountinfo"
    file.write_bytes(
        b"36 35 98:0 /a\\040b /mnt\\134x\\012 rw,noatime master:1 - ext3 /dev/root rw\n"
        b"odd line\n"
        b"\xff 1 2:3 / /\xff -\n"
    )
    first, second = read_mount_table(file)
    assert first == HostMount("98:0", Path("/a b"), Path("/mnt\\x\n"))
    assert bytes(second.point) == b"/\xff"
    assert read_mount_table(tmp_path / "nothing") == ()


def test_the_table_of_this_host_has_its_root():
    assert any(mount.point == Path("/") for mount in read_mount_table())


@pytest.mark.parametrize(
    ("spec", "refused"),
    [
        ("{code}/sub:ro", True),
        ("{code}/sub:/elsewhere:ro", True),
        ("{code}:/v:ro", True),
        ("{code}/.git:/v:ro", True),
        ("{link}:/v:ro", True),
        ("{home}:ro", False),
        ("{code}/sub:/elsewhere", False),
    ],
)
def test_a_promise_that_can_not_be_kept_is_refused_and_says_what_to_do(repository, home, spec, refused):
    (home / "link").symlink_to(repository / "sub")
    spec = spec.format(code=repository, link=home / "link", home=home)

    def plan():
        return plan_mounts(
            find_project(repository), [spec], guest_home="/home/claude", home=home, max_mounts=8
        )

    if not refused:
        assert len(plan()) == 2
        return
    with pytest.raises(MountError, match="can't be read-only") as caught:
        plan()
    assert str(repository) in caught.value.message
    assert "leave :ro out" in caught.value.message
