"""The pool as its user meets it: the real client and daemon on simulated guests."""

import json
import signal

import pytest
from claude_vm_tests_user import script, sleeper, wait_until

pytestmark = pytest.mark.timeout(180)

INTERRUPTED = (130, -signal.SIGINT)


def settings(user, pool="", *, budget="64GB"):
    """Write the global file: small VMs, and room for them whatever the host has."""
    text = f'[vm]\nmemory = 1\n[pool]\nmemory_budget = "{budget}"\n{pool}'
    (user.home / ".claude-vm.toml").write_text(text)


@pytest.fixture
def user(user):
    settings(user)
    return user


def pools(user):
    return user.json("pool", "status")["pools"]


def folders(user):
    return list((user.data / "sim").glob("*/i-*"))


def doctor(user):
    # its status says whether this host has a hypervisor
    return json.loads(user.run("doctor", "--json").stdout)


def told(user, *words):
    """Return what a session with these flags says under -v of how it got its VM."""
    done = user.run("-v", *words, "shell", "true")
    assert done.returncode == 0, done.stderr.decode()
    (line,) = (line for line in done.stderr.decode().splitlines() if "ready VM" in line)
    return line.removeprefix("claude-vm: ")


def test_a_session_leaves_a_ready_vm_and_the_next_one_takes_it(ready):
    assert told(ready) == "no ready VM: cloning"
    wait_until(lambda: [p["warm"] for p in pools(ready)] == [1])
    assert ready.json("info")["ready"] == 1
    assert told(ready) == "took a ready VM"
    rows = ready.json("ps", "--all")
    assert [(row["state"], row["source"], row["status"]) for row in rows] == [
        ("ended", "made", 0),
        ("ended", "warm", 0),
    ]
    for row in rows:
        instants = [mark["at"] for mark in row["marks"]]
        assert instants == sorted(instants)
        assert row["marks"][0]["name"] == "requested"
    assert ready.json("ps") == []


def test_fill_returns_when_so_many_are_ready_and_drain_when_they_are_gone(ready):
    filled = ready.run("pool", "fill", "3")
    assert filled.returncode == 0, filled.stderr.decode()
    (row,) = pools(ready)
    assert (row["warm"], row["wanted"], row["project"]) == (3, 3, str(ready.project))
    assert len(folders(ready)) == 3
    drained = ready.run("pool", "drain")
    assert drained.returncode == 0, drained.stderr.decode()
    assert b"gave up 3 VM(s)" in drained.stderr
    assert folders(ready) == []
    assert pools(ready) == []


def test_fill_makes_exactly_what_a_session_with_the_same_flags_takes(ready):
    settings(ready, "size = 0\n")
    other = ready.project.parent / "other"
    other.mkdir()
    flags = ("--mount", f"{other}:/data:ro", "--memory", "2")
    assert ready.run(*flags, "pool", "fill", "1").returncode == 0
    assert told(ready, "--memory", "2") == "no ready VM with these mounts: cloning"
    assert told(ready, *flags, "--cpus", "1") == "no ready VM of this size: cloning"
    assert told(ready, *flags) == "took a ready VM"


def test_a_changed_size_takes_effect_with_the_next_session(ready):
    pid = ready.daemon_pid()
    assert ready.run("shell", "true").returncode == 0
    wait_until(lambda: [p["warm"] for p in pools(ready)] == [1])
    settings(ready, "size = 2\nmax_instances = 5\n")
    assert ready.run("shell", "true").returncode == 0
    wait_until(lambda: [p["warm"] for p in pools(ready)] == [2])
    status = ready.json("pool", "status")
    assert (status["size"], status["max_instances"]) == (2, 5)
    settings(ready, "size = 0\n")
    assert ready.run("shell", "true").returncode == 0
    wait_until(lambda: folders(ready) == [])
    assert ready.daemon_pid() == pid


def test_a_new_template_replaces_what_is_ready_of_the_old_one_and_nothing_else(ready):
    other = ready.project.parent / "other"
    other.mkdir()
    assert ready.run("setup", "--no-agent", cwd=other).returncode == 0
    for project in ready.project, other:
        assert ready.run("pool", "fill", "1", cwd=project).returncode == 0
    before = {row["project"]: row["generation"] for row in pools(ready)}
    old = set(folders(ready))
    assert ready.run("setup", "--no-agent", cwd=other).returncode == 0
    wait_until(lambda: len(old & set(folders(ready))) == 1)
    assert ready.run("pool", "fill", "1", cwd=other).returncode == 0
    after = {row["project"]: row["generation"] for row in pools(ready) if row["warm"]}
    assert after[str(ready.project)] == before[str(ready.project)]
    assert after[str(other)] != before[str(other)]
    assert ready.run("shell", "true", cwd=other).returncode == 0
    assert ready.json("ps", "--all")[-1]["source"] == "warm"


def test_the_pool_obeys_the_file_of_the_daemons_user_and_not_a_clients(ready):
    visitor = ready.project.parent / "visitor"
    visitor.mkdir()
    (visitor / ".claude-vm.toml").write_text("[pool]\nsize = 5\nmax_instances = 1\n")
    env = {"HOME": str(visitor), "CLAUDE_VM_HOME": str(ready.data)}
    assert ready.run("shell", "true", env=env).returncode == 0
    status = ready.json("pool", "status")
    assert status["size"] == 1
    assert status["max_instances"] > 1


def test_a_wrong_file_keeps_the_daemon_from_nothing_but_sessions(user):
    settings(user, "size = many\n")
    assert user.json("pool", "status")["size"] == 0
    assert user.run("pool", "drain", "--all").returncode == 0
    assert user.run("shell", "true").returncode == 125


def test_without_a_daemon_nothing_is_kept_ready(ready):
    ready.stop_daemon()
    done = ready.run("--no-daemon", "pool", "fill")
    assert done.returncode == 1
    assert b"[no-daemon]" in done.stderr
    assert ready.run("--no-daemon", "shell", "true").returncode == 0
    assert folders(ready) == []


def test_fill_gives_up_after_several_failures_with_what_the_driver_said(user):
    script(user, clone=[{"fail": "disk-full"}] * 3)
    assert user.run("setup", "--no-agent").returncode == 0
    done = user.run("pool", "fill", "1")
    assert done.returncode == 1
    assert b"[pool-fill-failed]" in done.stderr
    assert b"disk-full: " in done.stderr
    (row,) = pools(user)
    assert row["failures"] == 3
    assert row["next_try_at"] is not None


def test_fill_without_a_template_says_how_to_get_one(user):
    done = user.run("pool", "fill")
    assert done.returncode == 1
    assert b"[template-missing]" in done.stderr


def test_ctrl_c_ends_a_waiting_fill(user):
    script(user, start=[{"hang": True}])
    assert user.run("setup", "--no-agent").returncode == 0
    fill = user.popen("pool", "fill", "1")
    wait_until(lambda: [p["making"] for p in pools(user)] == [1])
    fill.send_signal(signal.SIGINT)
    assert fill.wait(30) in INTERRUPTED
    drained = user.run("pool", "drain", "--all")
    assert drained.returncode == 0, drained.stderr.decode()
    assert folders(user) == []


def test_drain_leaves_sessions_alone(ready):
    session = sleeper(ready)
    wait_until(lambda: [(p["warm"], p["in_sessions"]) for p in pools(ready)] == [(1, 1)])
    assert ready.run("pool", "drain", "--all").returncode == 0
    assert session.poll() is None
    assert [(p["warm"], p["wanted"], p["in_sessions"]) for p in pools(ready)] == [(0, 0, 1)]


def test_doctor_tells_of_a_budget_that_holds_no_vm(user):
    user.env["CLAUDE_VM_MEMORY"] = "2"
    settings(user, budget="1GB")
    (report,) = (r for r in doctor(user) if r["driver"] == "qemu")
    assert any("memory budget" in what for what, _ in report["problems"])
    settings(user, "size = 0\n", budget="1GB")
    (report,) = (r for r in doctor(user) if r["driver"] == "qemu")
    assert not any("memory budget" in what for what, _ in report["problems"])


def test_doctor_reports_wrong_settings_and_goes_on(user):
    settings(user, "sise = 1\n")
    (report,) = (r for r in doctor(user) if r["driver"] == "qemu")
    assert any("pool.sise" in what for what, _ in report["problems"])
