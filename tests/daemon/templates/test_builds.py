"""A template that somebody builds is waited for, whoever that is; nobody is asked to build it again."""

import re
import signal

import pytest
from claude_vm_tests_user import script, wait_until

from claude_vm.drivers.images.phases import ImagePhase
from claude_vm.drivers.vm.phases import VmPhase
from claude_vm.supervisor.daemon.templates.builds import announced, under_way

SLOW = {"build_template": [{"delay_s": 3}]}


def build(user, *flags):
    """Begin to build, and return when that can be seen."""
    builder = user.popen(*flags, "setup", "--no-agent")
    wait_until(lambda: any((user.data / "building").glob("sim.*")))
    return builder


def expect_done(builder, status=0):
    assert builder.wait(60) == status, builder.stderr.read().decode()


@pytest.mark.parametrize("flags", [(), ("--no-daemon",)], ids=["this daemon", "another supervisor"])
def test_a_session_waits_for_the_build_and_goes_on(user, flags):
    script(user, **SLOW)
    builder = build(user, *flags)
    done = user.run("-v", "shell", "echo", "fine")
    assert (done.returncode, done.stdout) == (0, b"fine\n"), done.stderr.decode()
    said = done.stderr.decode()
    assert f"a template is being built for this project (by process {builder.pid}, for " in said
    assert "building a simulated template (" in said
    assert "Build it now" not in said
    expect_done(builder)
    assert not (user.data / "building").exists()


def test_without_waiting_the_session_ends_at_once_and_says_why(user):
    script(user, **SLOW)
    builder = build(user)
    done = user.run("--no-wait", "shell", "true")
    assert done.returncode == 125
    assert re.search(
        rb"being built for this project .by process [0-9]+, for [0-9]+ s.* .template-building.", done.stderr
    )
    assert builder.poll() is None
    expect_done(builder)


def test_a_fill_waits_too(user):
    script(user, **SLOW)
    builder = build(user)
    done = user.run("pool", "fill", "1")
    assert done.returncode == 0, done.stderr.decode()
    expect_done(builder)


def test_when_the_build_fails_the_question_is_the_usual_one(user):
    script(user, build_template=[{"delay_s": 2, "fail": "boot-failed"}])
    builder = build(user)
    done = user.run("shell", "true")
    assert done.returncode == 125
    assert b"has no template yet [template-missing]" in done.stderr
    expect_done(builder, 1)


def test_a_build_that_was_killed_is_waited_for_no_longer(user):
    script(user, build_template=[{"hang": True}])
    builder = build(user, "--no-daemon")
    session = user.popen("shell", "true")
    assert b"is being built" in session.stderr.readline()
    builder.kill()
    assert session.wait(60) == 125
    assert b"template-missing" in session.stderr.read()
    assert not (user.data / "building").exists() or not any((user.data / "building").iterdir())


def test_ctrl_c_ends_the_waiting_only(user):
    script(user, **SLOW)
    builder = build(user)
    session = user.popen("shell", "true")
    assert b"is being built" in session.stderr.readline()
    session.send_signal(signal.SIGINT)
    assert session.wait(30) == 130
    assert builder.poll() is None
    expect_done(builder)
    assert user.run("shell", "true").returncode == 0


def test_who_has_a_template_does_not_wait_for_the_next_one(ready):
    ready.stop_daemon()
    script(ready, build_template=[{"hang": True}])
    build(ready)
    assert ready.run("shell", "echo", "fine").stdout == b"fine\n"


def test_a_build_is_seen_with_its_phase_until_it_ends_and_by_its_own_name_only(tmp_path):
    told = []
    with announced(tmp_path, "sim", "t", 7, lambda *each: told.append(each)) as progress:
        progress(ImagePhase.IMAGE, "detail")
        progress(VmPhase.WARM_UP, "")
        seen = under_way(tmp_path, "sim", "t")
        assert (seen.pid, seen.phase) == (7, VmPhase.WARM_UP)
        assert under_way(tmp_path, "sim", "other") is under_way(tmp_path, "qemu", "t") is None
        with announced(tmp_path, "sim", "t", 8, lambda *_: None):
            assert under_way(tmp_path, "sim", "t").pid == 7  # the one that began first
    assert told == [(ImagePhase.IMAGE, "detail"), (VmPhase.WARM_UP, "")]
    assert under_way(tmp_path, "sim", "t") is None
    assert list(tmp_path.iterdir()) == []


def test_what_a_dead_builder_left_is_no_build_and_is_removed(tmp_path):
    (tmp_path / "building").mkdir()
    left = tmp_path / "building" / "sim.t.0123"
    left.write_bytes(b"{}")
    assert under_way(tmp_path, "sim", "t") is None
    assert not left.exists()
