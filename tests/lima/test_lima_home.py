import os
import stat
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from claude_vm.drivers.api import InstanceSpec, InstanceStatus, Owner, TemplateRecord
from claude_vm.drivers.errors import DriverError, ToolMissingError
from claude_vm.drivers.lima import home, hypervisor
from claude_vm.drivers.lima.driver import open_driver
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.programs import own, search
from claude_vm.drivers.vm.instance import InstanceFolder, VmRecord
from claude_vm.drivers.vm.store import Generation, Stored, VmTemplates

LONGEST = "i-0123456789"


class DiedError(Exception):
    """The process was killed here."""


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


@pytest.mark.parametrize("lost", ["user", "user.pub"])
def test_a_key_of_which_half_is_lost_is_made_anew(short, lost):
    config = home.make(short / "home") / "_config"
    before = (config / "user").read_bytes()
    (config / lost).unlink()
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: home.make(short / "home"), range(32)))
    assert (config / "user").read_bytes() != before
    key = config / "user"
    told = subprocess.run(["ssh-keygen", "-y", "-f", key], capture_output=True, check=True, text=True).stdout
    assert told.split()[:2] == home.public_key(short / "home").split()[:2]


def test_a_maker_of_the_key_that_dies_on_the_way_leaves_no_halves_of_different_pairs(short, monkeypatch):
    config = home.make(short / "home") / "_config"
    (config / "user.pub").unlink()
    with monkeypatch.context() as patched:
        rename = Path.rename

        def public_half_only(path, to):
            if to == config / "user":
                raise DiedError
            return rename(path, to)

        patched.setattr(Path, "rename", public_half_only)
        with pytest.raises(DiedError):
            home.make(short / "home")
    assert not (config / "user").exists()


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


def open_to_all(root):
    root.chmod(0o777)


def behind_a_link(root):
    root.symlink_to(root.rename(root.with_name("trap")))


def of_somebody_else(root, monkeypatch):
    uid = os.getuid() + 1
    monkeypatch.setattr(home.os, "getuid", lambda: uid)
    root.rename(root.with_name(root.name.replace(f"-{uid - 1}-", f"-{uid}-")))


@pytest.fixture(params=[open_to_all, behind_a_link, of_somebody_else])
def trap(request, short, elsewhere, monkeypatch):
    """A data folder, and a process of ours that is named where its instances would be, by somebody else."""
    root = home.lima_home(short / "a b")
    for name in ("sv.i-0123456789", "import.0123456789"):
        (root / name).mkdir(parents=True)
    with subprocess.Popen(["sleep", "1000"]) as victim:
        try:
            named = ProcessIdentity.of(victim.pid)
            spec = InstanceSpec("i-0123456789", "t", "g", 1, 512, 8)
            InstanceFolder(_lima(short), spec.instance_id).save(VmRecord(spec, process=named))
            assert _lima(short).folders()
            request.param(root, *((monkeypatch,) if request.param is of_somebody_else else ()))
            yield short / "a b", victim
        finally:
            victim.kill()


def _lima(short):
    return hypervisor.Lima(Owner(short / "a b", "sv", short))


@pytest.mark.anyio
async def test_what_others_have_put_where_the_instances_would_be_is_not_believed(short, trap):
    folder, victim = trap
    planted = {path.name for path in home.lima_home(folder).iterdir()}
    lima = _lima(short)
    assert list(lima.everybody()) == []
    assert list(await lima.sweep()) == []
    async with open_driver(lima.owner) as driver:
        assert await driver.list_instances() == []
        assert await driver.poll("i-0123456789") is InstanceStatus.ABSENT
        with pytest.raises(DriverError, match="others may write"):
            await driver.delete("i-0123456789")
    assert victim.poll() is None
    assert {path.name for path in home.lima_home(folder).iterdir()} == planted


@pytest.mark.anyio
async def test_nothing_is_made_in_a_folder_of_others(short, trap):
    folder, _ = trap
    lima = _lima(short)
    for attempt in (
        lambda: home.make(folder),
        lambda: home.public_key(folder),
        lambda: lima.folder("i-0123456789"),
        lambda: lima.files(Path("/t/.building-0123abcd")),
    ):
        with pytest.raises(DriverError, match="others may write") as caught:
            attempt()
        found = home.lima_home(folder).lstat()
        ours = found.st_uid == os.getuid()
        hint = caught.value.hint
        # An own folder may have VMs that run: it is closed, not removed. Of another's nobody can do either.
        assert ("chmod go-w" in hint) is (ours and stat.S_ISDIR(found.st_mode))
        assert ("move it away" in hint) is (ours and not stat.S_ISDIR(found.st_mode))
        assert "remove" not in hint
        assert "set CLAUDE_VM_HOME to a folder with a short path" in caught.value.hint


@pytest.mark.anyio
async def test_a_folder_that_others_make_at_the_last_moment_gets_no_clone(short, elsewhere):
    class Meanwhile(VmTemplates):
        def find(self, *_):
            home.lima_home(short / "a b").mkdir(exist_ok=True)
            home.lima_home(short / "a b").chmod(0o777)
            record = TemplateRecord("t", "g", "lima", "/p", 0, 1, 512, 8, 0, "u", "/h", None, "image")
            return Generation(short, Stored(record, 1, 1, "", "", ""))

    spec = InstanceSpec("i-0123456789", "t", "g", 1, 512, 8)
    with pytest.raises(DriverError, match="others may write"):
        await InstanceFolder(_lima(short), spec.instance_id).clone(spec, Meanwhile(short, "lima"), own())
    assert list(home.lima_home(short / "a b").iterdir()) == []


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
    monkeypatch.setattr("claude_vm.drivers.programs.MORE", ())
    programs = search(str(short))
    if error is DriverError:
        (short / "limactl").symlink_to("/bin/true")
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    with pytest.raises(error) as caught:
        await hypervisor.Lima(Owner(short / "home", "sv", short)).find_host("tcg", programs)
    assert type(caught.value) is error
    assert hint in caught.value.hint
    async with open_driver(Owner(short / "home", "sv", short), programs) as driver:
        problems = await driver.diagnose()
    assert [problem.fix for problem in problems if hint in problem.fix] == [problems[0].fix]
    assert all(problem.fatal for problem in problems)
