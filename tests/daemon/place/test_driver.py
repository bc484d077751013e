"""Which driver and which programs a command gets: those of who asks, and of the project's template."""

import json
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from claude_vm_tests_user import script

from claude_vm.context.project import template_name
from claude_vm.drivers import templates
from claude_vm.drivers.api import TemplateRecord
from claude_vm.drivers.images.rootfs import guest_programs
from claude_vm.drivers.vm import store
from claude_vm.drivers.vm.accelerator import programs

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux" or os.geteuid() == 0, reason="Lima is no choice here"),
]

LIMACTL = '[ "$*" = --version ] && echo limactl version 2.2.0'
QEMU = "echo 'q35 PC (alias of pc-q35-7.2)'; echo 'virt ARM (alias of virt-7.2)'"


def put(program, line):
    program.write_text(f"#!/bin/sh\n{line}\n")
    program.chmod(0o755)


@pytest.fixture
def host(user, tmp_path):
    """A user whose host has QEMU in one folder of programs and Lima in another; nothing can be started."""
    for folder in ("qemu", "lima"):
        (tmp_path / folder).mkdir()
    for name in programs():
        put(tmp_path / "qemu" / name, QEMU)
    put(tmp_path / "lima" / "limactl", LIMACTL)
    user.env |= {"CLAUDE_VM_DRIVER": "auto", "PATH": str(tmp_path / "qemu")}
    user.with_lima = {"PATH": f"{tmp_path}/qemu:{tmp_path}/lima"}
    return user


def give_template(user, driver, *, stale=False):
    record = TemplateRecord(
        name=template_name(user.project), generation="20260101-000000-aaaaaa", driver=driver,
        project=str(user.project), created_at=1.0, cpus=2, memory_mib=512, disk_gib=8, size_bytes=5,
        user="claude", home="/h", claude_version=None, image="i", guest="old" if stale else guest_programs(),
    )  # fmt: skip
    with templates.building_folder(store.VmTemplates(user.data, driver).folder(record.name)) as building:
        (building / "template.json").write_bytes(
            msgspec.json.encode(store.Stored(record, os.getuid(), os.getgid(), "/k", "/i", ""))
        )
        templates.publish(building, record.generation)


def told(user, *words, env=None):
    done = user.run(*words, env=env)
    return done.returncode, done.stderr.decode()


def driver_of(user, env=None):
    done = user.run("info", "--json", env=env)
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)["driver"]


@pytest.mark.parametrize(
    ("templates", "without_lima", "with_lima"),
    [
        ({}, "qemu", "lima"),
        ({"qemu": "usable"}, "qemu", "qemu"),
        ({"lima": "usable"}, "qemu", "lima"),
        ({"lima": "usable", "qemu": "usable"}, "qemu", "lima"),
        ({"lima": "stale", "qemu": "usable"}, "qemu", "qemu"),
        ({"qemu": "stale"}, "qemu", "qemu"),
        ({"lima": "stale", "qemu": "stale"}, "qemu", "lima"),
    ],
)
def test_auto_is_the_driver_that_has_the_projects_template_where_the_caller_can_use_it(
    host, templates, without_lima, with_lima
):
    for driver, state in templates.items():
        give_template(host, driver, stale=state == "stale")
    # One daemon, asked from two terminals, in both orders.
    assert [driver_of(host), driver_of(host, host.with_lima), driver_of(host)] == [
        without_lima,
        with_lima,
        without_lima,
    ]


def test_a_template_of_another_driver_is_told_with_the_way_to_it(host):
    give_template(host, "qemu")
    status, said = told(host, "--driver", "lima", "shell", "true", env=host.with_lima)
    assert status == 125
    assert "has no template for the driver lima; there is one for qemu [template-missing]" in said
    assert "use it with: --driver qemu; or build it with: claude-vm --driver lima setup" in said
    shown = host.run("--driver", "lima", "info", env=host.with_lima).stdout.decode()
    assert "none for lima; there is one for qemu: --driver qemu; build it with" in shown
    status, said = told(host, "--driver", "lima", "pool", "fill", env=host.with_lima)
    assert status == 1
    assert "there is one for qemu [template-missing]" in said


def test_a_template_of_a_driver_that_the_caller_cannot_use_is_told_with_what_lacks(host):
    give_template(host, "lima", stale=True)
    status, said = told(host, "shell", "true")
    assert status == 125
    assert "has no template for the driver qemu; there is one for lima (stale) [template-missing]" in said
    assert "for lima, limactl is not installed: it is in no folder of PATH; or build it with:" in said


def test_list_and_clean_are_about_the_driver_that_is_named(host):
    for driver in ("lima", "qemu"):
        give_template(host, driver)
    drivers = [row["driver"] for row in host.json("list")]
    assert drivers == ["lima", "qemu"]
    assert [row["driver"] for row in host.json("--driver", "qemu", "list")] == ["qemu"]
    assert host.run("--driver", "qemu", "clean", "--yes").returncode == 0
    assert [row["driver"] for row in host.json("list")] == ["lima"]
    status, said = told(host, "--driver", "qemu", "clean", "--yes")
    assert status == 0
    assert "of the driver qemu" in said
    assert host.run("clean", "--yes").returncode == 0
    assert host.json("list") == []


def test_a_daemon_that_was_started_before_lima_was_installed_finds_it(host, tmp_path):
    limactl = tmp_path / "lima" / "limactl"
    limactl.rename(tmp_path / "later")

    def lima(env):
        found = {r["driver"]: r for r in json.loads(host.run("doctor", "--json", env=env).stdout)}
        return found["lima"]["installed"], found["lima"]["version"], found["lima"]["auto"]

    assert lima(host.with_lima) == (False, "", False)
    pid = host.daemon_pid()
    (tmp_path / "later").rename(limactl)
    assert lima(host.with_lima)[:2] == (True, "2.2.0")
    assert lima({}) == (False, "", False)
    assert host.daemon_pid() == pid


def test_a_projects_own_programs_are_not_run_and_that_is_said(host, tmp_path):
    folder = host.project / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in (*programs(), "limactl", "npm", "mmdebstrap", "python3"):
        put(folder / name, f"/bin/touch {tmp_path}/ran-{name}; echo limactl version 9.9.9")
    path = f"{folder}:.venv/bin::{host.project}/../project/.venv/bin"
    # The first of all clients, so nothing else was ever found.
    for words in (["--driver", "lima", "setup"], ["--no-daemon", "setup"], ["--driver", "qemu", "doctor"]):
        assert host.run(*words, env={"PATH": path}).returncode == 1
    assert not list(tmp_path.glob("ran-*"))
    path += f":{tmp_path}/qemu"
    for words in (["-v", "info"], ["-v", "doctor"], ["--no-daemon", "-v", "info"], ["-v", "shell", "true"]):
        done = host.run(*words, env={"PATH": path}, cwd=folder)
        said = done.stderr.decode()
        assert f"'{folder}' in PATH is skipped: guests can write to {host.project}" in said
        assert "'.venv/bin' in PATH is skipped: it is relative" in said
        assert "'' in PATH is skipped" in said
    status, said = told(host, "setup", "--no-agent", env={"PATH": path})
    assert status == 1
    assert not list(tmp_path.glob("ran-*"))


def test_a_claude_vm_that_lies_in_the_project_is_told(host):
    root = Path(__file__).parents[3]
    done = host.run("-v", "info", cwd=Path(__file__).parent)
    assert f"is ours, and guests can write to {root}\n" in done.stderr.decode()
    assert b"is ours" not in host.run("-v", "info").stderr


def test_what_is_fetched_for_a_template_goes_by_the_clients_proxy_and_a_clean_path(host, tmp_path):
    """A build that fails as soon as it has said what it was given."""
    for name in ("mke2fs", "newuidmap", "newgidmap"):
        put(tmp_path / "qemu" / name, "")
    put(
        tmp_path / "qemu" / "mmdebstrap",
        f'[ "$1" = --unshare-helper ] && shift && exec "$@"; /usr/bin/env >{tmp_path}/said; exit 3',
    )
    env = {
        "PATH": f"./bin:{host.project}/bin:{tmp_path}/qemu",
        "https_proxy": "http://user:canary@proxy:1",
        "TMPDIR": "/var/tmp",
        "MINE": "canary",
    }
    assert host.run("info").returncode == 0  # the daemon is another client's
    status, said = told(host, "setup", "--no-agent", env=env)
    assert status == 1
    assert "mmdebstrap failed (exit status 3)" in said
    given = dict(line.split("=", 1) for line in (tmp_path / "said").read_text().splitlines())
    assert given["https_proxy"] == env["https_proxy"]
    assert "MINE" not in given
    assert str(host.project) not in given["PATH"]
    assert not [entry for entry in given["PATH"].split(":") if not entry.startswith("/")]


def test_a_secret_of_a_client_is_not_in_the_daemons_environment(host):
    """Proxies have passwords, in whatever case and for whatever scheme their variables are."""
    canary = "canary-4711"
    names = ("http_proxy", "HTTPS_PROXY", "all_proxy", "ftp_proxy", "NPM_TOKEN", "npm_config__authToken")
    secrets = dict.fromkeys((*names, "CLAUDE_VM_MINE", "LC_MINE"), f"http://user:{canary}@proxy:1")
    script(host)
    assert host.run("info", env=secrets).returncode == 0
    environ = Path(f"/proc/{host.daemon_pid()}/environ").read_bytes()
    assert canary.encode() not in environ
    names = {line.partition(b"=")[0].decode() for line in environ.split(b"\0") if line}
    assert names <= {"HOME", "CLAUDE_VM_HOME", "CLAUDE_VM_READY_FD", "CLAUDE_VM_VALIDATE", "LC_CTYPE"}


def test_the_first_clients_limits_are_not_those_of_the_daemon(host):
    script(host)
    limited = 'ulimit -S -f 1000; ulimit -S -v 8000000; ulimit -S -c unlimited 2>/dev/null; exec "$0" info'
    done = subprocess.run(
        ["/bin/sh", "-c", limited, Path(sys.executable).with_name("claude-vm")],
        cwd=host.project,
        env=host.env,
        check=False,
    )
    assert done.returncode == 0
    lines = Path(f"/proc/{host.daemon_pid()}/limits").read_text().splitlines()
    limits = {line[:26].strip(): line[26:].split()[:2] for line in lines[1:]}
    for name in ("Max file size", "Max address space"):
        soft, hard = limits[name]
        assert soft == hard
    assert limits["Max core file size"] == ["0", "0"]
