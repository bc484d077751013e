"""What a host has and lacks, per driver: hosts are made up; the command runs for real."""

import json
import os
import shutil
from pathlib import Path

import pytest
from claude_vm_tests_user import script

from claude_vm.drivers.lima import prerequisites as lima
from claude_vm.drivers.prerequisites import Host, hypervisor, template_tools

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(120)]

ALL = (
    *("qemu-system-x86_64", "qemu-img", "mmdebstrap", "mke2fs", "newuidmap", "newgidmap"),
    *("limactl", "apt-get"),
)


def host(*lacking, system="linux", uid=1000, programs=ALL, limactl="limactl", keyring=True):
    def which(name):
        if name in lacking or name not in programs:
            return None
        return limactl if name == "limactl" else f"/usr/bin/{name}"

    return Host(system, "x86_64", uid, which, lambda path: keyring)


def words(problems):
    return [(problem.what, problem.fix, problem.fatal) for problem in problems]


def test_a_host_with_everything_lacks_nothing():
    assert hypervisor(host()) == template_tools(host()) == []


def test_what_lacks_is_told_in_one_command_that_brings_it():
    assert words(hypervisor(host("qemu-system-x86_64", "qemu-img"))) == [
        (
            "qemu-system-x86_64 and qemu-img are not installed",
            "sudo apt-get install qemu-system-x86 qemu-utils",
            True,
        )
    ]
    assert words(template_tools(host("newuidmap", "newgidmap", keyring=False))) == [
        (
            "`claude-vm setup` can't build a template without: newuidmap, newgidmap, debian-archive-keyring",
            "sudo apt-get install uidmap debian-archive-keyring",
            False,
        )
    ]


def test_root_needs_neither_sudo_nor_a_user_namespace():
    (found,) = hypervisor(host("qemu-img", uid=0))
    assert found.fix == "apt-get install qemu-utils"
    assert template_tools(host("newuidmap", "newgidmap", uid=0)) == []


def test_other_systems_are_told_their_own_way():
    mac = host("qemu-system-x86_64", "qemu-img", "apt-get", system="darwin")
    assert hypervisor(mac)[0].fix == "brew install qemu"
    other = host("qemu-img", "apt-get")
    assert hypervisor(other)[0].fix == "install with this system's package manager: qemu-img"


@pytest.mark.parametrize(
    ("said", "version"),
    [
        ("limactl version 2.2.0", (2, 2, 0)),
        ("limactl version v2.0.0-beta.1", (2, 0, 0)),
        ("limactl version 2.1.3-12-g0a1b2c3.m", (2, 1, 3)),
        ("limactl version 10.0", (10, 0)),
        ("limactl version <unknown>", None),
        ("", None),
    ],
)
def test_limas_version_is_read_as_it_says_it(said, version):
    assert lima.parse_version(said) == version


@pytest.fixture
def limactl(tmp_path):
    """A `limactl` that answers one question, and nothing else of Lima."""

    def make(text, status=0):
        program = tmp_path / "limactl"
        program.write_text(f'#!/bin/sh\n[ "$*" = --version ] || exit 9\necho "{text}"\nexit {status}\n')
        program.chmod(0o755)
        return str(program)

    return make


async def test_lima_of_a_known_version_is_usable(limactl):
    facts = await lima.inspect(host(limactl=limactl("limactl version 2.2.0")))
    assert (facts.version, facts.problems) == ("2.2.0", ())


@pytest.mark.parametrize(
    ("said", "status", "what"),
    [
        ("limactl version 2.1.1", 0, "is version 2.1.1; 2.1.2 or newer is needed"),
        ("limactl version two", 0, "does not say its version"),
        ("no such thing", 3, "does not work"),
    ],
)
async def test_lima_that_is_too_old_or_no_lima_is_told(limactl, said, status, what):
    (problem,) = (await lima.inspect(host(limactl=limactl(said, status)))).problems
    assert what in problem.what
    assert problem.fatal
    assert "lima" in problem.fix


async def test_without_lima_the_way_to_it_is_told():
    (problem,) = (await lima.inspect(host("limactl"))).problems
    assert problem.what == "limactl is not installed"
    assert "https://lima-vm.io" in problem.fix
    (problem,) = (await lima.inspect(host("limactl", system="darwin"))).problems
    assert problem.fix == "brew install lima"


async def test_root_is_told_that_lima_refuses_it(limactl):
    facts = await lima.inspect(host(uid=0, limactl=limactl("it refuses root", 1)))
    (problem,) = facts.problems
    assert "root" in problem.what
    assert "--driver qemu" in problem.fix


async def test_lima_imports_an_image_where_none_can_be_built(limactl):
    said = limactl("limactl version 2.2.0")
    (problem,) = (await lima.inspect(host("mmdebstrap", limactl=said))).problems
    assert "imports `template:debian-13`" in problem.what
    assert problem.fix == "sudo apt-get install mmdebstrap"
    assert not problem.fatal


async def test_lima_needs_qemu_on_linux_alone(limactl):
    said = limactl("limactl version 2.2.0")
    facts = await lima.inspect(host("qemu-img", limactl=said))
    assert [problem.fatal for problem in facts.problems] == [True]
    facts = await lima.inspect(host("qemu-img", "mmdebstrap", system="darwin", limactl=said))
    assert facts.problems == ()


# The command.


def reports(user, **env):
    done = user.run("doctor", "--json", env=env)
    return done.returncode, {report["driver"]: report for report in json.loads(done.stdout)}


def test_doctor_tells_each_driver_what_auto_takes_and_why(user):
    status, found = reports(user)
    assert list(found) == ["lima", "qemu", "sim"]
    assert not found["sim"]["isolates"]
    assert not found["sim"]["auto"]
    usable = [name for name, report in found.items() if report["usable"] and report["isolates"]]
    assert status == (0 if usable else 1)
    taken = [name for name, report in found.items() if report["auto"]]
    assert len(taken) <= 1
    for name in taken:
        assert found[name]["auto_reason"]
    text = user.run("doctor").stdout.decode()
    assert text.startswith(f"auto: {taken[0]} (" if taken else "auto: no driver")
    assert "sim: for tests only" in text


def test_doctor_on_a_host_with_nothing_says_how_to_get_everything(user, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("apt-get", "sh"):
        (folder / name).symlink_to(shutil.which(name) or "/bin/true")
    user.env["PATH"] = str(folder)
    status, found = reports(user)
    assert status == 1
    assert [report["usable"] for report in found.values()] == [False, False, True]
    assert not any(report["auto"] for report in found.values())
    assert "limactl is not installed: it is in no folder of PATH" in dict(found["lima"]["problems"])
    assert any("apt-get install qemu-system" in fix for _, fix in found["qemu"]["problems"])
    text = user.run("doctor").stdout.decode()
    assert text.startswith("auto: no driver is usable")
    assert "fix: " in text


def test_doctor_goes_on_when_the_settings_are_wrong(user):
    script(user)
    (user.home / ".claude-vm.toml").write_text("nonsense = 1\n")
    _, found = reports(user)
    assert any("nonsense" in what for what, _ in found["qemu"]["problems"])


@pytest.mark.parametrize("words", [("shell", "true"), ("setup",)])
def test_a_driver_that_can_not_be_used_is_told_before_anything_is_built_for_it(user, words, limactl):
    old = Path(limactl("limactl version 1.2.1")).parent
    done = user.run("--driver", "lima", *words, env={"PATH": f"{old}:/usr/bin:/bin"})
    assert done.returncode == (125 if words[0] == "shell" else 1)
    # Root is refused by any version.
    why = b"refuses to run as root" if os.geteuid() == 0 else b"is version 1.2.1"
    assert why in done.stderr
    assert b"no template" not in done.stderr
    assert list(user.home.rglob("claude-code*")) == []


def test_a_template_that_is_missing_for_another_driver_is_to_be_built_for_that(user):
    done = user.run("--driver", "sim", "shell", "true")
    assert done.returncode == 125
    assert b"build it with: claude-vm --driver sim setup" in done.stderr
