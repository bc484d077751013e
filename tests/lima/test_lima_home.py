import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from claude_vm.drivers.api import Owner
from claude_vm.drivers.errors import DriverError, ToolMissingError
from claude_vm.drivers.lima import home, hypervisor
from claude_vm.drivers.lima.driver import open_driver

LONGEST = "i-0123456789"


@pytest.fixture
def elsewhere(short, monkeypatch):
    """A folder in place of the one for data folders that Lima can't use."""
    monkeypatch.setattr(home, "ELSEWHERE", short)
    return short


def longest_socket(folder):
    return folder / home.instance_name("x" * 24, LONGEST) / "ssh.sock.1234567890123456"


def test_the_folder_is_in_the_data_folder_where_lima_can_use_it(short):
    assert home.lima_home(short / "home") == short / "home" / "lima"


@pytest.mark.parametrize("name", ["x" * 60, "a,b", "a b", "{{x}}", "quote'", "ü"])
def test_a_data_folder_that_lima_could_not_use_has_its_instances_elsewhere(short, elsewhere, name):
    found = home.lima_home(short / name)
    assert found.parent == elsewhere
    assert found == home.lima_home(short / name)
    assert found != home.lima_home(short / f"{name}2")


@pytest.mark.parametrize("length", [0, 10, 30, 60, 200])
def test_every_socket_of_lima_fits(length):
    folder = home.lima_home(Path("/" + "x" * length))
    assert len(os.fsencode(longest_socket(folder))) < 108


def test_the_instances_lie_elsewhere_from_the_first_byte_that_does_not_fit():
    longest = os.fsencode(longest_socket(Path("/lima")))
    fits = Path("/" + "h" * (home._PATH_MAX - 1 - len(longest) - 1))
    assert len(os.fsencode(longest_socket(fits / "lima"))) == home._PATH_MAX - 1
    assert home.lima_home(fits) == fits / "lima"
    assert home.lima_home(Path(f"{fits}h")).parent == home.ELSEWHERE


def test_the_folder_is_named_as_lima_sees_it(short):
    (short / "real").mkdir()
    (short / "link").symlink_to("real")
    assert home.lima_home(short / "link") == short / "real" / "lima"


def test_of_many_that_make_the_key_one_does(short):
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(lambda _: home.make(short / "home"), range(32)))
    (folder,) = folders
    key = folder / "_config" / "user"
    assert key.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    told = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, check=True, text=True).stdout
    assert told.split()[:2] == home.public_key(short / "home").split()[:2]
    before = key.read_bytes()
    home.make(short / "home")
    assert key.read_bytes() == before
    assert {path.name for path in key.parent.iterdir()} == {"user", "user.pub", ".user.lock"}


def test_a_folder_that_others_may_write_to_is_refused(short, elsewhere):
    folder = home.lima_home(short / "a b")
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(DriverError, match="others may write"):
        home.make(short / "a b")


def test_a_folder_that_is_a_link_to_somewhere_is_refused(short, elsewhere):
    (short / "trap").mkdir()
    home.lima_home(short / "a b").symlink_to("trap")
    with pytest.raises(DriverError):
        home.make(short / "a b")


def test_a_missing_key_is_told(short):
    with pytest.raises(DriverError, match="can't be read"):
        home.public_key(short / "home")


def test_a_build_has_a_folder_of_its_own_and_an_instance_its_own(short):
    owner = Owner(short / "home", "sv", short)
    root = home.lima_home(owner.home)
    assert home.folder_of(owner, root / "sv.i-0123456789") == root / "sv.i-0123456789"
    assert home.folder_of(owner, Path("/t/.building-0123abcd")) == root / "build.0123abcd"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("uid", "error", "hint"),
    [(1000, ToolMissingError, "brew install lima"), (0, DriverError, "as a normal user")],
)
async def test_what_keeps_lima_from_running_is_told_with_what_to_do(short, monkeypatch, uid, error, hint):
    installed = error is DriverError
    monkeypatch.setattr(hypervisor.shutil, "which", lambda name: f"/b/{name}" if installed else None)
    monkeypatch.setattr(hypervisor.os, "geteuid", lambda: uid)
    with pytest.raises(error) as caught:
        await hypervisor.Lima().find_host(short / "home", "tcg")
    assert type(caught.value) is error
    assert hint in caught.value.hint
    async with open_driver(Owner(short / "home", "sv", short)) as driver:
        problems = await driver.diagnose()
    assert [problem.fix for problem in problems if hint in problem.fix] == [problems[0].fix]
    assert all(problem.fatal for problem in problems)
