"""What an image is made from, and its name."""

import gzip
import io
import lzma
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import msgspec
import pytest

from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.images import bootstrap, initrd
from claude_vm.drivers.images.bootstrap import build_variables, command, hint_for, scratch_root
from claude_vm.drivers.images.rootfs import ImageSpec, TreeFile, guest_tree, image_key, tree_archive
from claude_vm.drivers.programs import BuildEnvironment, guarding, search

SPEC = ImageSpec(uid=1001, gid=1002)
TREE = (TreeFile("etc/a", 0o644, b"one"), TreeFile("usr/lib/x/b", 0o755, b"two"))


@pytest.mark.parametrize(
    "changes",
    [
        {"uid": 0},
        {"gid": 1},
        {"suite": "bookworm"},
        {"architecture": "arm64"},
        {"packages": ("git",)},
        {"disk_gib": 7},
    ],
)
def test_every_field_of_the_specification_changes_the_key(changes):
    assert image_key(msgspec.structs.replace(SPEC, **changes), TREE) != image_key(SPEC, TREE)


@pytest.mark.parametrize("changes", [{"path": "etc/b"}, {"mode": 0o600}, {"data": b"onf"}])
def test_everything_of_a_file_changes_the_key(changes):
    changed = (msgspec.structs.replace(TREE[0], **changes), TREE[1])
    assert image_key(SPEC, changed) != image_key(SPEC, TREE)


def test_the_key_is_the_same_in_another_process():
    program = (
        "from claude_vm.drivers.images.rootfs import *\n"
        "print(image_key(ImageSpec(uid=1001, gid=1002), guest_tree()))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == image_key(SPEC, guest_tree())


def test_the_guest_tree_has_its_files_with_their_modes():
    modes = {file.path: file.mode for file in guest_tree()}
    assert modes["usr/lib/claude-vm/image/customize"] == 0o755
    assert modes["usr/lib/claude-vm/image/init"] == 0o755
    assert modes["usr/lib/claude-vm/helper/serving.py"] == 0o644
    assert modes["usr/lib/claude-vm/session"] == 0o755
    assert modes["etc/gitconfig"] == 0o644
    assert modes["etc/ssh/sshd_config"] == 0o644
    assert modes["etc/systemd/system/claude-vm-helper.service"] == 0o644


def test_a_guest_file_that_does_not_exist_is_left_out(tmp_path):
    (tmp_path / "session").write_bytes(b"launcher")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "x.pyc").write_bytes(b"x")
    paths = [file.path for file in guest_tree(rootfs=tmp_path / "__pycache__", guest=tmp_path)]
    assert paths == ["usr/lib/claude-vm/image/initrd.py", "usr/lib/claude-vm/session"]


def test_the_archive_is_the_same_each_time_and_belongs_to_root():
    assert tree_archive(TREE) == tree_archive(TREE)
    with tarfile.open(fileobj=io.BytesIO(tree_archive(TREE))) as tar:
        members = {member.name: member for member in tar}
        assert tar.extractfile("usr/lib/x/b").read() == b"two"
    assert {(member.uid, member.gid, member.mtime) for member in members.values()} == {(0, 0, 0)}
    assert members["etc/a"].mode == 0o644
    assert members["usr/lib"].mode == 0o755


def test_no_shell_script_of_the_guest_has_a_syntax_error():
    for file in guest_tree():
        if file.path.endswith(("customize", "/init", "claude-vm.sh")):
            subprocess.run(["sh", "-n"], input=file.data, check=True)


def test_hooks_are_constant_and_data_goes_by_the_environment(tmp_path):
    hostile = msgspec.structs.replace(SPEC, uid=4242)
    hooks = [word for word in command(hostile, tmp_path, root=False) if word.startswith("--customize-hook=")]
    assert hooks == [
        word for word in command(SPEC, Path("/x"), root=True) if word.startswith("--customize-hook=")
    ]


def test_the_command_bears_the_mark_and_the_kernel_of_the_architecture(tmp_path):
    argv = command(
        msgspec.structs.replace(SPEC, architecture="arm64", suite="bookworm"), tmp_path, root=False
    )
    assert argv[-2:] == ["bookworm", f"{tmp_path}/nothing"]
    assert "--mode=unshare" in argv
    assert "--architectures=arm64" in argv
    assert any(word.startswith("--include=") and word.endswith(",linux-image-arm64") for word in argv)
    assert "--mode=root" in command(SPEC, tmp_path, root=True)


def test_root_mounts_where_nobody_sees_it(tmp_path):
    argv = command(SPEC, tmp_path, root=True, unshare="/bin/unshare")
    assert argv[: argv.index("mmdebstrap")] == ["/bin/unshare", "--mount", "--propagation", "private", "--"]
    assert command(SPEC, tmp_path, root=True)[0] == "mmdebstrap"


def test_no_mirror_is_named(tmp_path):
    everything = " ".join(command(SPEC, tmp_path, root=False)).encode() + b"".join(
        file.data for file in guest_tree() if file.path.startswith("etc/")
    )
    assert b"http:" not in everything
    assert b"https:" not in everything


def test_the_build_gets_proxies_and_nothing_secret_and_no_folder_of_a_project(tmp_path, monkeypatch):
    monkeypatch.setattr("os.path.realpath", lambda path: path)  # /sbin may be a link
    environ = {
        "http_proxy": "http://p:1",
        "HTTPS_PROXY": "x",
        "ANTHROPIC_API_KEY": "k",
        "TMPDIR": "/t",
    }
    (tmp_path / "own").mkdir()
    around = BuildEnvironment(search(f"{tmp_path}/own:.::bin"), environ)
    assert "p:1" not in repr(around)
    assert build_variables(around) == {
        "PATH": f"{tmp_path}/own:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin",
        "http_proxy": "http://p:1",
        "HTTPS_PROXY": "x",
        "HOME": "/nonexistent",
        "LC_ALL": "C.UTF-8",
    }


@pytest.mark.parametrize(
    ("detail", "hint"),
    [
        ("W: GPG error: … NO_PUBKEY 6ED0E7B82643E131", "debian-archive-keyring"),
        ("E: newuidmap is missing", "uidmap"),
        ("E: invalid idmap: /etc/subuid has no entry", "usermod --add-subuids"),
        ("E: unshare() failed: Operation not permitted", "user namespaces"),
        ("mke2fs: No space left on device", "make room"),
        ("Err: Temporary failure resolving 'mirror'", "network"),
        ("E: Failed to fetch http://mirror/package.deb  Remote end closed connection", "network"),
        ("something else", ""),
    ],
)
def test_what_went_wrong_comes_with_what_to_do(detail, hint):
    assert hint in hint_for(detail)
    assert bool(hint) == bool(hint_for(detail))


@pytest.mark.parametrize(
    ("text", "free"),
    [
        ("", "100000-165535"),
        ("somebody:100000:65536\n", "165536-231071"),
        ("a:100000:65536\nb:500000:1000\n# c:900000:1000\nbroken\nd:x:y\n", "901000-966535"),
        ("low:1:2\n", "100000-165535"),
    ],
)
def test_the_ids_that_a_hint_offers_are_nobodys(tmp_path, text, free):
    (tmp_path / "subuid").write_text(text)
    assert bootstrap._free_ids("uid", tmp_path) == free
    assert bootstrap._free_ids("gid", tmp_path) == "100000-165535"  # there is no such file


def test_what_is_removed_by_hand_is_without_what_may_be_mounted_there():
    hint = bootstrap._removal(Path("/var/tmp/a b"))
    assert hint == "sudo rm -rf --one-file-system '/var/tmp/a b'"


def test_the_scratch_folder_is_one_that_strangers_can_get_through(tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o755)
    (tmp_path / "closed" / "inner").mkdir(parents=True)
    (tmp_path / "closed").chmod(0o700)
    for temporary in (tmp_path / "closed" / "inner", tmp_path / "gone"):
        assert scratch_root(BuildEnvironment(search(""), {"TMPDIR": str(temporary)})) == Path("/var/tmp")
    assert scratch_root(BuildEnvironment(search(""), {})) == Path("/var/tmp")


def test_the_scratch_folder_is_none_that_guests_can_write_to():
    def among(*folders):
        return BuildEnvironment(search("", lambda: guarding(map(Path, folders))), {})

    assert scratch_root(among("/var/tmp/other")) == Path("/var/tmp")
    assert scratch_root(among("/var/tmp")) == Path("/tmp")
    with pytest.raises(DriverError, match="guests can write to /var/tmp and /tmp"):
        scratch_root(among("/var/tmp", "/tmp"))


def test_without_any_folder_for_temporary_files_the_error_says_so(monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    with pytest.raises(DriverError, match="no folder for temporary files"):
        scratch_root(BuildEnvironment(search(""), {}))


@pytest.fixture
def modules(tmp_path):
    """A kernel's module folder: 9pnet_virtio needs 9pnet and virtio; two are compressed."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "virtio.ko").write_bytes(b"virtio")
    (tmp_path / "net" / "9pnet.ko.xz").write_bytes(lzma.compress(b"9pnet"))
    (tmp_path / "net" / "9pnet_virtio.ko.gz").write_bytes(gzip.compress(b"9pnet_virtio"))
    (tmp_path / "net" / "virtio_pci.ko").write_bytes(b"virtio_pci")
    (tmp_path / "net" / "unwanted.ko").write_bytes(b"unwanted")
    (tmp_path / "modules.dep").write_text(
        "net/virtio.ko:\n"
        "net/9pnet.ko.xz:\n"
        "net/unwanted.ko:\n"
        "net/9pnet_virtio.ko.gz: net/9pnet.ko.xz net/virtio.ko\n"
        "net/virtio_pci.ko: net/virtio.ko\n"
    )
    return tmp_path


def test_modules_come_after_those_that_they_need_and_once(modules):
    assert initrd.load_order(modules) == [
        "net/virtio.ko",
        "net/virtio_pci.ko",
        "net/9pnet.ko.xz",
        "net/9pnet_virtio.ko.gz",
    ]


def test_modules_are_unpacked_whatever_packed_them(modules):
    assert [initrd.unpacked(modules / path) for path in initrd.load_order(modules)] == [
        b"virtio",
        b"virtio_pci",
        b"9pnet",
        b"9pnet_virtio",
    ]
    (modules / "x.ko.zst").write_bytes(b"")
    with pytest.raises(SystemExit, match=r"\.zst are not supported"):
        initrd.unpacked(modules / "x.ko.zst")


def test_the_initrd_is_an_archive_that_cpio_can_read(tmp_path):
    # cpio isn't everywhere; bsdtar and Python can't read this format, so its fields are checked by hand.
    data = initrd.entry(1, "abc", 0o100644, b"12345") + initrd.entry(2, "TRAILER!!!", 0)
    assert data[:6] == b"070701"
    fields = [int(data[6 + 8 * index : 14 + 8 * index], 16) for index in range(13)]
    assert fields == [1, 0o100644, 0, 0, 1, 0, 5, 0, 0, 0, 0, 4, 0]
    assert data[110:114] == b"abc\0"
    assert data[116:121] == b"12345"
    assert data[124:130] == b"070701"
    assert len(data) % 4 == 0
