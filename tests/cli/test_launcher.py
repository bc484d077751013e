"""The launcher and `start.py`, from the shell's first line to the program's."""

import ast
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCHER = Path(__file__).parents[2] / "supervisor" / "cli" / "launcher" / "claude-vm"
ENV = "/usr/bin/env"

TELLING = """#!{python}
import os, signal, subprocess, sys
from claude_vm.supervisor.cli import start
def tell(name):
    def program():
        status = subprocess.check_output(["cat", "/proc/self/status"], text=True)
        bits = dict(line.split(":") for line in status.splitlines() if line.startswith("Sig"))
        blocked, ignored = (int(bits[kind], 16) >> 1 & 1 for kind in ("SigBlk", "SigIgn"))
        print((name, sys.argv, dict(os.environb), blocked, ignored))
        return 0
    return program
start.programs.main = tell("claude-vm")
start.PROGRAMS = {{name: tell(name) for name in start.PROGRAMS}}
sys.exit(start.main())
"""

REFUSAL = """#!/bin/sh
case $1 in --*) echo "{words}" >&2; exit {status} ;; esac
exec {env} "$@"
"""
REFUSES = {
    "old": REFUSAL.format(words="env: unrecognized option", status=125, env=ENV),
    "BSD": REFUSAL.format(words="env: illegal option -- -", status=1, env=ENV),
}


def blocks():
    done = subprocess.run([ENV, "--block-signal=INT", "true"], capture_output=True, check=False)
    return done.returncode == 0


needs_env = pytest.mark.skipif(not blocks(), reason="this system's env can't block a signal")


@pytest.fixture
def folder(tmp_path):
    """Programs as an installer leaves them, in a path with a space. What they start tells what it sees."""
    folder = tmp_path / "the programs"
    folder.mkdir()
    for name in ("claude-vm", "claude-vm-setup", "claude-vm-shell"):
        shutil.copy(LAUNCHER, folder / name)
    start = folder / "claude-vm-start"
    start.write_text(TELLING.format(python=sys.executable))
    start.chmod(0o755)
    return folder


def told(program, *words, before=(), **more):
    done = subprocess.run(
        [*before, program, *words], capture_output=True, text=True, check=True, timeout=60, **more
    )
    assert done.stderr == ""
    return ast.literal_eval(done.stdout)


@pytest.mark.parametrize("name", ["claude-vm", "claude-vm-setup", "claude-vm-shell"])
def test_each_name_starts_its_program_with_the_words_as_they_are(folder, name):
    words = ["", "two words", "*", "a\nb", "-x", "\\t", "$HOME"]
    program, argv, _, blocked, ignored = told(folder / name, *words)
    assert (program, argv, blocked, ignored) == (name, [str(folder / name), *words], 0, 0)


def test_a_link_to_a_link_starts_what_it_leads_to(folder, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "one").symlink_to("../the programs/claude-vm-shell")
    (tmp_path / "two").symlink_to(tmp_path / "elsewhere" / "one")
    assert told(tmp_path / "two")[:2] == (
        "claude-vm-shell",
        [f"{tmp_path}/elsewhere/../the programs/claude-vm-shell"],
    )
    assert told("sh", "claude-vm", cwd=folder)[0] == "claude-vm"


@pytest.mark.parametrize("kind", REFUSES)
def test_where_env_can_t_block_the_program_starts_all_the_same(folder, tmp_path, kind):
    env = tmp_path / "env"
    env.write_text(REFUSES[kind])
    env.chmod(0o755)
    text = LAUNCHER.read_text()
    assert text.count(ENV) == 2
    (folder / "claude-vm").write_text(text.replace(ENV, str(env)))
    name, _, environ, *mask = told(folder / "claude-vm", env=os.environ | {"npm_config_@a:registry": "b"})
    assert (name, mask, environ[b"npm_config_@a:registry"]) == ("claude-vm", [0, 0], b"b")


def test_a_path_that_env_would_take_for_a_variable_starts(folder):
    renamed = folder.rename(folder.with_name("a=b"))
    assert told(renamed / "claude-vm")[0] == "claude-vm"


def test_no_program_is_taken_from_the_path(folder, tmp_path):
    planted = tmp_path / "planted"
    planted.mkdir()
    for name in ("env", "grep", "readlink", "base64", "tr"):
        (planted / name).write_text(f"#!/bin/sh\n: >'{tmp_path}/run'\n")
        (planted / name).chmod(0o755)
    (tmp_path / "link").symlink_to(folder / "claude-vm")
    environ = os.environ | {"PATH": f"{planted}:{os.environ['PATH']}", "a.b": "1"}
    assert told(tmp_path / "link", env=environ)[2][b"a.b"] == b"1"
    assert not (tmp_path / "run").exists()


def test_the_environment_is_the_callers_though_shells_drop_names(folder):
    odd = {
        b"npm_config_//host/:_authToken": b"s3cret",
        b"BASH_FUNC_f%%": b"() {  :\n}",
        b"a.b": b"\xff",
        b"C": b"",
    }
    environ = {b"PATH": os.environb[b"PATH"], b"CLAUDE_VM_GIVEN": b"stale", **odd}
    del environ[b"CLAUDE_VM_GIVEN"]
    _, argv, seen, *_ = told(folder / "claude-vm", env=environ)
    assert seen == environ
    assert argv == [str(folder / "claude-vm")]
    plain = {b"PATH": os.environb[b"PATH"], b"CLAUDE_VM_GIVEN": b"c3RhbGU9MQ=="}
    assert b"stale" not in told(folder / "claude-vm", env=plain)[2]


def test_a_command_line_has_nothing_of_the_environment(folder):
    """Everybody on the machine can read it."""
    start = folder / "claude-vm-start"
    start.write_text('#!/bin/sh\necho "$*"\n')
    environ = os.environ | {"a.b": "s3cret"}
    done = subprocess.run([folder / "claude-vm"], env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.split(" ", 1)[1] == f"{folder}/claude-vm\n"


def test_the_name_of_a_directory_that_is_gone_stays_known(folder, tmp_path):
    code = 'mkdir gone; cd gone; rmdir ../gone; exec "$0" 2>/dev/null'
    done = subprocess.run(
        ["sh", "-c", code, folder / "claude-vm"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert ast.literal_eval(done.stdout)[2][b"PWD"] == os.fsencode(tmp_path / "gone")


@needs_env
def test_who_blocks_or_ignores_ctrl_c_goes_on_doing_so(folder):
    assert told(folder / "claude-vm", before=[ENV, "--block-signal=INT"])[3:] == (1, 0)
    assert told(folder / "claude-vm", before=[ENV, "--ignore-signal=INT"])[3:] == (0, 1)


def test_what_the_launcher_starts_says_who_starts_it():
    program = Path(sys.executable).with_name("claude-vm-start")
    done = subprocess.run([program, "status"], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (
        2,
        "claude-vm: this program is only a part of claude-vm: run claude-vm [usage]\n",
    )


@needs_env
def test_ctrl_c_at_any_time_ends_the_program_without_a_word():
    """As a terminal sends it: to the whole group. What ends before it comes has done its work."""
    program = Path(sys.executable).with_name("claude-vm")
    assert program.read_text() == LAUNCHER.read_text()  # else: make venv
    ends = []
    for half_ms in range(121):
        process = subprocess.Popen(
            [program, "--version"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        time.sleep(half_ms / 2000)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)
        assert said == b"", f"after {half_ms / 2} ms"
        ends.append(process.returncode)
    assert set(ends) <= {0, -signal.SIGINT}
    assert ends[0] == -signal.SIGINT
