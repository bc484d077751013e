"""Paths that users name, where guests may have left links."""

import os
import socket
import stat
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.context.errors import LinkError
from claude_vm.context.folders import Folder, Known
from claude_vm.context.opening import MAX_LINKS, opened, read_file, real_path
from claude_vm.drivers.programs import guarding


@pytest.fixture
def place(tmp_path):
    """A project that guests could write, one inside of it that others could, and something of the user's."""
    root = tmp_path.resolve()
    for folder in ("project/data/deep", "project/inner/own", "project/x", "other/x"):
        (root / folder).mkdir(parents=True)
    (root / "other/secret").write_text("secret")
    (root / "project/file").write_text("fine")
    return root


@pytest.fixture
def guard(place):
    return Known(
        Folder(path=place / name, reach=(), template_root=place, writable=True)
        for name in ("project", "project/inner")
    ).guard


@pytest.mark.parametrize(
    ("link", "target", "path"),
    [
        ("project/data/l", "../../other", "project/data/l"),
        ("project/data/l", "{place}/other", "project/data/l"),
        ("project/data/l", "/", "project/data/l"),
        ("project/data/l", "..", "project/data/l/../other"),
        ("project/data/l", "deep", "project/data/l/../../../other"),
        ("project/data/l", "{place}/project/../other", "project/data/l"),
        ("project/data/l", "{place}/project/data/../../other", "project/data/l/x"),
        ("project/data/l", "{place}/projectile", "project/data/l"),
        ("project/data/l", "../../other/secret", "project/data/l"),
        ("project/data/l", "x/../../../other", "project/data/l"),
        ("project/inner/l", "../data", "project/inner/l"),
        ("project/inner/l", "{place}/project/data", "project/inner/l"),
        ("project/l", "inner/m", "project/l"),
        ("up", "project/data/l", "up"),
        ("project/data/l", "/proc/self/cwd", "project/data/l"),
    ],
)
def test_a_link_that_leaves_what_guests_can_write_is_refused_with_both_paths(
    place, guard, link, target, path
):
    (place / "project/data/x").mkdir()
    (place / "project/inner/m").symlink_to("../x")
    if link == "up":
        (place / "project/data/l").symlink_to("../../other")
    (place / link).symlink_to(target.format(place=place))
    with pytest.raises(LinkError) as caught:
        real_path(place / path, guard)
    assert caught.value.code == "link-leaves"
    assert caught.value.message.startswith(f"{place / path} leads through the link {place}/project/")
    assert caught.value.hint
    assert "\n" not in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    ("target", "path", "leads"),
    [
        ("../other", "l", "other"),
        ("../other/x/", "l", "other/x"),
        ("{place}/other", "l/x/secret", "other/x/secret"),
        ("data/../../other", "l/x", "other/x"),
        ("data", "l/../../other/secret", "other/secret"),
        ("m", "l", "other/secret"),
    ],
)
def test_what_is_refused_names_where_it_would_have_led(place, guard, target, path, leads):
    """To name that itself is the way out: its parent would be more than was meant."""
    (place / "project/m").symlink_to("../other/secret")
    (place / "project/l").symlink_to(target.format(place=place))
    with pytest.raises(LinkError) as caught:
        real_path(place / "project" / path, guard)
    assert f" to {place / leads}, out of {place}/project" in caught.value.message
    assert f"if you mean {place / leads}, name that itself" in caught.value.hint


@pytest.mark.parametrize(
    ("link", "target", "path", "real"),
    [
        ("project/l", "data/deep", "project/l", "project/data/deep"),
        ("project/l", "{place}/project/data", "project/l", "project/data"),
        ("project/l", "{place}//./project/data/../x", "project/l/../file", "project/file"),
        ("project/data/l", "../x", "project/data/l", "project/x"),
        ("project/data/l", "..", "project/data/l/file", "project/file"),
        ("project/l", "inner/own", "project/l", "project/inner/own"),
        ("l", "project/data", "l/deep", "project/data/deep"),
        ("l", "{place}/other", "l/secret", "other/secret"),
        ("project/l", "data", "project/data/../../other", "other"),
        ("other/l", "../project/data", "project/../other/l/deep", "project/data/deep"),
        ("project/inner/l", "own/..", "project/inner/l/../../x", None),
    ],
)
def test_links_above_and_links_that_stay_inside_are_followed(place, guard, link, target, *, path, real):
    (place / link).symlink_to(target.format(place=place))
    if real is None:
        with pytest.raises(LinkError):
            real_path(place / path, guard)
    else:
        assert real_path(place / path, guard) == place / real
        assert real_path(place / path) == (place / path).resolve(strict=True)


def test_where_no_guest_was_every_link_is_followed(place):
    (place / "project/l").symlink_to("../other")
    assert read_file(place / "project/l/secret", 10) == (place / "other/secret", b"secret")


def test_a_writable_folder_is_known_under_another_name_and_after_it_was_moved(place):
    status = (place / "project").stat()
    known = Known(
        [
            Folder(
                path=place / "project",
                reach=(),
                template_root=place,
                writable=True,
                identity=(status.st_dev, status.st_ino),
            )
        ]
    )
    (place / "project/l").symlink_to("../other")
    (place / "project").rename(place / "moved")
    with pytest.raises(LinkError):
        real_path(place / "moved/l", known.guard)


def test_a_new_projects_own_folders_are_guarded_before_they_are_remembered(place):
    (place / "project/l").symlink_to("../other")
    with pytest.raises(LinkError):
        real_path(place / "project/l", guarding([place / "project"]))


def test_what_is_no_file_is_none_and_never_waited_for(place, guard, tmp_path_factory):
    os.mkfifo(place / "project/fifo")
    (place / "project/loop").symlink_to("loop")
    (place / "project/long").write_bytes(b"12345")
    short = tmp_path_factory.mktemp("s") / "s"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(short))
        for name in (
            "project/fifo",
            "project/loop",
            "project/data",
            "project/nothing",
            "project/long",
            "nul\0",
        ):
            assert read_file(place / name, 4, guard) is None
        assert read_file(short, 4, guard) is None
    assert read_file(Path("/dev/zero"), 4, guard) is None
    assert read_file(place / "project/file/x", 4, guard) is None
    assert read_file(place / "project/file", 4, guard) == (place / "project/file", b"fine")


def test_links_without_end_are_an_error(place, guard):
    for number in range(MAX_LINKS + 1):
        (place / f"project/{number}").symlink_to(f"./{number + 1}")
    (place / f"project/{MAX_LINKS + 1}").mkdir()
    with pytest.raises(OSError, match="Too many levels"):
        real_path(place / "project/0", guard)
    assert real_path(place / "project/1", guard)
    bomb = "/".join(["bomb/.."] * 100)
    (place / "project/bomb").symlink_to(bomb)
    with pytest.raises(OSError, match="Too many levels"):
        real_path(place / "project/bomb", guard)


def test_no_descriptor_is_left_open_whatever_comes_of_it(place, guard):
    (place / "project/l").symlink_to("../other")
    (place / "project/m").symlink_to("data")
    before = len([*Path("/proc/self/fd").iterdir()])
    for name in ("project/l", "project/m/deep", "project/file/x", "nothing", "project/file", "project/.."):
        try:
            with opened(place / name, guard) as found:
                assert stat.S_IFMT(found.status.st_mode)
        except (OSError, LinkError):
            continue
    assert len([*Path("/proc/self/fd").iterdir()]) == before


def test_a_guest_that_swaps_links_all_the_time_never_gets_anything_out(place, guard):
    """The opened thing is inside, or it is refused: whatever the thread does between two looks."""
    victim = place / "project/data"
    spare = place / "project/spare"
    done = threading.Event()

    def swap():
        while not done.is_set():
            victim.rename(spare)
            victim.symlink_to(place / "other")
            victim.unlink()
            victim.symlink_to("../other")
            victim.unlink()
            spare.rename(victim)

    (place / "other/deep").mkdir()
    inside = (victim / "deep").stat().st_ino
    thread = threading.Thread(target=swap)
    thread.start()
    seen = {"inside": 0, "refused": 0, "gone": 0}
    try:
        while min(seen["inside"], seen["refused"]) < 20 and sum(seen.values()) < 200_000:
            try:
                with opened(victim / "deep", guard) as found:
                    assert found.status.st_ino == inside
                    seen["inside"] += 1
            except LinkError:
                seen["refused"] += 1
            except OSError:
                seen["gone"] += 1
    finally:
        done.set()
        thread.join()
    assert min(seen["inside"], seen["refused"]) > 0


names = st.sampled_from(["project", "project/data", "project/inner", "project/inner/own", "other", "."])
parts = st.lists(
    st.sampled_from(["..", "data", "deep", "inner", "own", "x", "l0", "l1", "l2", "."]), max_size=6
)


@given(
    links=st.lists(st.tuples(names, parts, st.booleans()), min_size=1, max_size=3),
    path=parts,
    start=st.sampled_from(["project", "project/data", "project/inner"]),
)
def test_it_is_what_the_system_finds_or_it_is_refused(tmp_path_factory, links, path, start):
    """And what lies outside is refused, once a link that lies inside had a say in it."""
    place = tmp_path_factory.mktemp("p").resolve()
    for folder in ("project/data/deep", "project/inner/own", "project/x", "other/x"):
        (place / folder).mkdir(parents=True)
    inside = {}
    for number, (folder, target, absolute) in enumerate(links):
        link = place / folder / f"l{number}"
        link.symlink_to(Path(place, *target) if absolute else Path("./", *target))
        inside[number] = folder.startswith("project")
    guard = Known(
        Folder(path=place / name, reach=(), template_root=place, writable=True)
        for name in ("project", "project/inner")
    ).guard
    asked = place.joinpath(start, *path)
    try:
        expected = asked.resolve(strict=True)
    except (OSError, RuntimeError):
        expected = None
    try:
        found = real_path(asked, guard)
    except OSError:
        assert expected is None
    except LinkError:
        assert any(inside.values())
    else:
        assert found == expected
        used = [number for number, yes in inside.items() if yes]
        if not used or f"l{used[0]}" not in path or len(links) > 1 or ".." in path:
            return
        # One link of a guest's, and nothing that leads up behind it.
        assert found.is_relative_to(place / "project")
