"""Somebody else's image as ours: what is taken for one, what Lima is told, what is left of it."""

import json
import stat
from pathlib import Path

import pytest

from claude_vm.drivers.api import Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.drivers.images.lock import hold
from claude_vm.drivers.images.rootfs import ImageSpec, guest_tree, image_key
from claude_vm.drivers.lima import importing
from claude_vm.drivers.lima.hypervisor import Lima
from claude_vm.drivers.lima.importing import Import, check, document
from claude_vm.drivers.programs import BuildEnvironment, own, search

SPEC = ImageSpec(uid=1000, gid=1000, packages=("git", "python3"))
DIGEST = f"sha512:{'0123abcd' * 16}"
ADDRESS = f"https://example.org/a.qcow2#{DIGEST}"

LIMACTL = """\
#!/bin/sh
echo "$*" >>"$LIMA_HOME/said"
env | grep -i 'proxy\\|QEMU' >"$LIMA_HOME/env"
case "$2 $3" in
    "disk create")
        mkdir -p "$LIMA_HOME/_disks/$4"
        qemu-img create -q -f qcow2 "$LIMA_HOME/_disks/$4/datadisk" 1M
        qemu-io -c "write -q -P 7 0 64k" "$LIMA_HOME/_disks/$4/datadisk"
        ;;
    "create --name") mkdir "$LIMA_HOME/$4"; cp "$5" "$LIMA_HOME/told" ;;
    "shell --workdir")
        cat >"$LIMA_HOME/script"
        [ ! -e "$LIMA_HOME/fail" ] || { echo no packages >&2; exit 7; }
        ;;
    "copy import"*) echo copied >"$4" ;;
esac
"""


@pytest.fixture
def limactl(short):
    (short / "lima").mkdir()
    program = short / "limactl"
    program.write_text(LIMACTL)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return program


@pytest.fixture
def work(short):
    folder = short / ".0123abcd.partial"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    "source",
    ["template:debian-13", "template:_images/x", ADDRESS, f"https://x#sha256:{'0' * 64}", __file__],
)
def test_an_image_is_a_file_an_address_with_its_digest_or_a_template(source):
    assert check(source) == source


@pytest.mark.parametrize(
    "source",
    [
        "",
        "image.qcow2",
        "https://example.org/a.qcow2",
        f"ftp://x#sha256:{'0' * 64}",
        f"http://example.org/a.qcow2#{DIGEST}",
        ADDRESS[:-1],
        f"{ADDRESS}0",
        ADDRESS.upper().replace("HTTPS", "https").replace("SHA", "sha"),
        ADDRESS.replace("sha512", "sha256"),
        "template:",
        "template:-x",
        "/no/such",
    ],
)
def test_anything_else_is_refused_with_what_it_may_be(source):
    with pytest.raises(DriverError) as caught:
        check(source)
    assert "[vm] image" in caught.value.hint


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("template:debian-13", {"base": "template:debian-13"}),
        (
            ADDRESS,
            {"images": [{"location": ADDRESS.partition("#")[0], "digest": DIGEST, "arch": "x86_64"}]},
        ),
        ("/a b", {"images": [{"location": "/a b", "arch": "x86_64"}]}),
    ],
)
def test_lima_is_told_where_the_image_is_and_to_do_nothing_else_with_it(source, told):
    found = json.loads(document(source, SPEC, "import.00"))
    assert {key: value for key, value in found.items() if key in {"base", "images"}} == told
    assert found["plain"] is True
    assert found["mounts"] == []
    assert found["additionalDisks"] == [{"name": "import.00", "format": False}]


def test_each_image_has_a_key_of_its_own_and_a_changed_file_too(tmp_path):
    file = tmp_path / "image"
    file.write_bytes(b"1")
    before = Import(str(file), "limactl", tmp_path, BuildEnvironment(own(), {})).identity
    file.write_bytes(b"12")
    keys = {
        image_key(SPEC, guest_tree(), source)
        for source in (
            "",
            "template:debian-13",
            before,
            Import(str(file), "limactl", tmp_path, BuildEnvironment(own(), {})).identity,
        )
    }
    assert len(keys) == 4


@pytest.mark.anyio
async def test_an_import_leaves_the_images_files_and_nothing_of_limas(limactl, work, short):
    home = short / "lima"
    around = BuildEnvironment(own(), {"https_proxy": "http://proxy", "SECRET": "x"})
    program = ["qemu-system-x86_64", "-cpu", "max"]
    source = Import("template:debian-13", str(limactl), home, around, program=program)
    await source.build(SPEC, b"tree", work, lambda *_: None)
    await source.clean(work)

    assert {path.name for path in work.iterdir()} == {"disk.raw", "kernel", "initrd", "terminfo", "locales"}
    assert (work / "disk.raw").read_bytes() == b"\7" * 0x10000 + bytes(0xF0000)
    assert {path.name for path in home.iterdir()} == {"said", "env", "told", "script", "_disks"}
    assert list((home / "_disks").iterdir()) == []
    said = (home / "said").read_text().splitlines()
    name = said[0].split()[3]
    assert [line.split()[1] for line in said] == [
        "disk",
        "create",
        "start",
        *["shell"] * 2,
        *["copy"] * 4,
        "stop",
    ]
    assert all(name in line for line in said)
    script = (home / "script").read_text()
    assert "PACKAGES='git python3 linux-image-amd64'\n" in script
    assert "GUEST_UID=1000\n" in script
    told = sorted((home / "env").read_text().splitlines())
    assert told == ["QEMU_SYSTEM_X86_64=qemu-system-x86_64 -cpu max", "https_proxy=http://proxy"]


@pytest.mark.anyio
async def test_a_failed_import_says_why_and_is_cleaned(limactl, work, short):
    (short / "lima" / "fail").touch()
    source = Import("template:debian-13", str(limactl), short / "lima", BuildEnvironment(own(), {}))
    with pytest.raises(DriverError, match="no packages"):
        await source.build(SPEC, b"tree", work, lambda *_: None)
    await source.clean(work)
    await source.clean(work)
    left = {path.name for path in (short / "lima").iterdir()}
    assert not [name for name in left if name.startswith("import.")]
    assert list((short / "lima" / "_disks").iterdir()) == []


def test_without_a_way_to_build_an_image_one_of_limas_templates_is_taken(short, monkeypatch):
    monkeypatch.setattr("claude_vm.drivers.programs.MORE", ())
    around = BuildEnvironment(search(str(short)), {})

    def install(*names):
        for name in names:
            (short / name).symlink_to("/bin/true")

    install("limactl", "newuidmap", "newgidmap")
    monkeypatch.setattr("claude_vm.drivers.prerequisites.KEYRING", __file__)
    lima = Lima(Owner(short / "home", "sv", short))
    found = lima.image_source("kvm", "", around)
    assert isinstance(found, Import)
    assert found.identity == importing.DEFAULT
    install("mmdebstrap")  # which is not all that a build needs
    assert lima.image_source("kvm", "", around) is not None
    install("mke2fs")
    assert lima.image_source("kvm", "", around) is None
    asked = lima.image_source("kvm", str(Path(__file__)), around)
    assert asked is not None
    assert asked.identity.startswith(__file__)


@pytest.mark.anyio
async def test_what_a_killed_import_has_left_goes_and_one_that_goes_on_stays(short):
    home, cache = short / "lima", short / "cache"
    for name in ("import.0123456789", "import.aaaaaaaaaa", "sv.i-0123456789"):
        (home / name).mkdir(parents=True)
        (home / "_disks" / name).mkdir(parents=True)
    (cache / "images").mkdir(parents=True)
    (cache / "images" / ".aaaaaaaaaa0123456789.lock").touch()
    async with hold(cache / "images" / ".01234567890123456789.lock"):
        assert await importing.sweep(home, cache) == ["import.aaaaaaaaaa"]
    left = {"import.0123456789", "sv.i-0123456789"}
    assert {path.name for path in home.iterdir()} == {*left, "_disks"}
    assert {path.name for path in (home / "_disks").iterdir()} == left
    assert await importing.sweep(home, cache) == ["import.0123456789"]
    assert await importing.sweep(short / "nowhere", cache) == []
