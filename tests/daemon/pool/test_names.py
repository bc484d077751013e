"""Kinds of VMs that would look alike are told apart, by what differs and by nothing else."""

import itertools

import msgspec
import pytest

from claude_vm.supervisor.core.keys import MountKey, PoolKey
from claude_vm.supervisor.daemon.pool.names import full_names, short_names

OWN = MountKey("/p", "/p", writable=True, device=1, inode=10)
KEY = PoolKey("qemu", "t", "g1", cpus=4, memory_mib=8192, disk_gib=20, mounts=(OWN,))
PROJECTS = {("qemu", "t"): "/p"}


def with_mounts(*mounts):
    return msgspec.structs.replace(KEY, mounts=(OWN, *mounts))


def test_a_project_alone_is_called_by_its_path_and_one_whose_template_is_gone_by_that():
    assert short_names([KEY], PROJECTS) == full_names([KEY], PROJECTS) == ["/p"]
    assert short_names([KEY], {}) == ["t (gone) +/p"]


@pytest.mark.parametrize(
    ("mount", "name"),
    [
        (MountKey("/d", "/d", writable=True), "/p +/d"),
        (MountKey("/d", "/d", writable=False), "/p +/d:ro"),
        (MountKey("/d", "/e", writable=True), "/p +/d:/e"),
        (MountKey("/d", "/e", writable=False), "/p +/d:/e:ro"),
        (MountKey("/p", "/p", writable=False), "/p +/p:ro"),
    ],
)
def test_mounts_beside_the_projects_own_are_shown_as_a_user_writes_them(mount, name):
    assert short_names([KEY, with_mounts(mount)], PROJECTS) == ["/p", name]


def test_a_directory_that_was_made_anew_is_told_from_the_one_that_had_its_name():
    one, other = (MountKey("/d", "/d", writable=True, device=1, inode=inode) for inode in (7, 8))
    assert short_names([with_mounts(one), with_mounts(other), KEY], PROJECTS) == [
        "/p +/d (inodes 10, 7)",
        "/p +/d (inodes 10, 8)",
        "/p",
    ]


def test_sizes_and_generations_stand_in_a_rows_columns_and_in_a_line_only_where_they_differ():
    smaller = msgspec.structs.replace(KEY, memory_mib=2048)
    older = msgspec.structs.replace(KEY, generation="g0")
    assert short_names([KEY, smaller], PROJECTS) == ["/p", "/p"]
    told = full_names([KEY, smaller], PROJECTS)
    assert told == ["/p (4 CPUs, 8.0 GB, 20 GB disk)", "/p (4 CPUs, 2.0 GB, 20 GB disk)"]
    assert full_names([KEY, older], PROJECTS) == ["/p (qemu g1)", "/p (qemu g0)"]


def test_no_two_different_kinds_have_one_name():
    mounts = (
        (),
        (MountKey("/d", "/d", writable=True, inode=1),),
        (MountKey("/d", "/d", writable=True, inode=2),),
    )
    choices = itertools.product(mounts, (1, 4), (1024, 8192), ("g0", "g1"))
    keys = [
        msgspec.structs.replace(with_mounts(*more), cpus=cpus, memory_mib=mib, generation=generation)
        for more, cpus, mib, generation in choices
    ]
    assert len(set(full_names(keys, PROJECTS))) == len(keys)
