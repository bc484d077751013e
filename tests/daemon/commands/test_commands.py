"""Every command of the real client and daemon, on simulated guests: no VM, so they are quick."""

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
from pathlib import Path

import psutil
import pytest
from claude_vm_tests_user import PROGRAM, script, sleeper, wait_until

from claude_vm.supervisor.wire.framing import encode_json
from claude_vm.supervisor.wire.messages import PROTOCOL, WINDOW, FrameType
from claude_vm.supervisor.wire.paths import runtime_directory, socket_path
from claude_vm.supervisor.wire.version import VERSION

pytestmark = pytest.mark.timeout(180)

INTERRUPTED = (130, -signal.SIGINT)
"""A client that has nothing to hold yet dies of the signal itself; a shell tells both as 130."""


def test_a_template_is_listed_described_and_deleted(ready):
    (template,) = ready.json("list")
    assert template["project"] == str(ready.project)
    assert ready.json("info")["status"] == "stopped"
    assert ready.run("list", "--unused").stdout.decode().splitlines()[1:] == []
    refused = ready.run("clean")
    assert refused.returncode == 1
    assert b"--yes" in refused.stderr
    assert len(ready.json("list")) == 1
    assert ready.run("clean", "--yes").returncode == 0
    assert ready.json("list") == []
    assert ready.json("info")["status"] == "not created"


def test_a_rebuilt_template_is_a_new_generation_in_the_same_place(ready):
    before = ready.json("info")["generation"]
    assert ready.run("setup", "--no-agent").returncode == 0
    assert ready.json("info")["generation"] != before
    assert len(ready.json("list")) == 1


def test_a_setting_without_effect_is_told_by_the_commands_that_would_obey_it(ready):
    with (ready.home / ".claude-vm.toml").open("a") as file:
        file.write("[tools]\ndocker = true\n[session]\nrecord = true\n[batch]\nretries = 3\n")
    told = {"[tools] docker = true": 4, "[session] record = true": 6, "[batch] retries = 3": 8}
    lines = [f"claude-vm: {what} has no effect yet (~/.claude-vm.toml:{at})" for what, at in told.items()]

    def said(*words):
        done = ready.run(*words)
        assert done.returncode == 0
        return [line for line in done.stderr.decode().splitlines() if "no effect" in line]

    assert said("setup", "--no-agent") == lines[:1]
    assert said("shell", "true") == lines[:2]
    assert said("info") == lines
    assert said("-q", "info") == said("ps") == []


def test_without_a_template_a_session_is_refused_with_the_way_out(user):
    done = user.run("shell", "true")
    assert done.returncode == 125
    assert b"[template-missing]" in done.stderr
    assert b"claude-vm setup" in done.stderr


def test_a_template_of_another_version_is_told_and_built_anew_when_asked_for(ready):
    (record,) = ready.data.glob("templates/*/sim/current/template.json")
    told = json.loads(record.read_text())
    record.write_text(json.dumps(told | {"stale": True}))
    assert ready.json("info")["status"] == "stale"
    assert b"(stale)" in ready.run("list").stdout
    done = ready.run("shell", "true")
    assert done.returncode == 125
    assert b"[template-stale]" in done.stderr
    assert b"claude-vm setup" in done.stderr
    assert ready.run("--auto-setup", "shell", "exit 3").returncode == 3
    after = ready.json("info")
    assert after["status"] == "stopped"
    assert after["generation"] != told["generation"]
    assert after["claude_version"] is None  # as before: it was built without


def test_auto_setup_builds_what_is_missing(user):
    # Without an agent there is nothing to download; `shell` needs none, `agent` does and says so.
    assert user.run("setup", "--no-agent").returncode == 0
    done = user.run("a task")
    assert done.returncode == 125
    assert b"[no-agent]" in done.stderr


def test_every_problem_of_the_configuration_is_told_before_anything_starts(ready):
    (ready.home / ".claude-vm.toml").write_text('[vm]\nmemroy = 4\ncpus = "many"\n')
    done = ready.run("--disk", "0", "shell", "true")
    assert done.returncode == 125
    text = done.stderr.decode()
    for part in (".claude-vm.toml:2", "memory", ".claude-vm.toml:3", "cpus", "--disk"):
        assert part in text
    assert ready.run("ps").returncode == 0
    assert ready.run("info").returncode == 1


def test_a_projects_own_files_are_neither_read_nor_run(ready):
    (ready.project / ".claude-vm.toml").write_text("this is no TOML [[[")
    (ready.project / ".claude-vm.runtime.sh").write_text("touch ran\n")
    done = ready.run("shell", "echo fine")
    assert (done.returncode, done.stdout) == (0, b"fine\n")
    assert not (ready.project / "ran").exists()


def test_a_running_session_is_seen_and_stopped(ready):
    session = sleeper(ready)
    (row,) = ready.json("ps")
    assert row["state"] == "running"
    assert row["project"] == str(ready.project)
    assert ready.json("info")["status"] == "running"
    kept = ready.run("clean", "--yes")
    assert kept.returncode == 1
    assert row["session"].encode() in kept.stderr
    assert ready.run("stop", row["session"]).returncode == 0
    assert session.wait(30) == 143
    assert ready.json("ps") == []


def test_clean_with_force_stops_the_sessions_first(ready):
    session = sleeper(ready)
    assert ready.run("clean-all", "--yes", "--force").returncode == 0
    assert session.wait(30) == 143
    assert ready.json("list") == []


def test_stop_all_ends_all(ready):
    sessions = [sleeper(ready) for _ in range(3)]
    assert len(ready.run("stop", "--all").stdout.split()) == 3
    assert [s.wait(30) for s in sessions] == [143, 143, 143]


def test_an_unknown_session_is_an_error_that_says_where_to_look(ready):
    done = ready.run("stop", "nothing")
    assert done.returncode == 1
    assert b"claude-vm ps" in done.stderr


def test_more_sessions_than_the_ceiling_wait_for_their_turn(ready):
    (ready.home / ".claude-vm.toml").write_text("[pool]\nsize = 0\nmax_instances = 8\n")
    sessions = [ready.popen("shell", "--", "sh", "-c", "echo up; exec sleep 600") for _ in range(9)]
    wait_until(lambda: sorted({r["state"] for r in ready.json("ps")}) == ["queued", "running"])
    states = [r["state"] for r in ready.json("ps")]
    assert states.count("running") == 8
    ready.run("stop", next(r["session"] for r in ready.json("ps") if r["state"] == "running"))
    wait_until(lambda: [r["state"] for r in ready.json("ps")] == ["running"] * 8)
    assert sum(s.poll() is None for s in sessions) == 8


def test_the_daemon_does_not_stop_under_sessions_unless_forced(ready):
    session = sleeper(ready)
    refused = ready.run("daemon", "stop")
    assert refused.returncode == 1
    assert b"--force" in refused.stderr
    assert ready.run("daemon", "stop", "--force").returncode == 0
    assert session.wait(30) == 125
    status = ready.run("daemon", "status")
    assert (status.returncode, status.stdout) == (1, b"not running\n")


def test_an_idle_daemon_ends(user):
    assert user.run("ps", env={"CLAUDE_VM_IDLE_EXIT": "1"}).returncode == 0
    listening = Path(socket_path(str(user.data)))
    assert listening.exists()
    # Asking it would keep it busy; and a slow client may have had to start a second one.
    wait_until(lambda: not listening.exists() and user.run("daemon", "status").returncode == 1)


def test_two_clients_that_come_at_once_start_one_daemon(user):
    clients = [user.popen("daemon", "status", "--json") for _ in range(2)]
    for client in clients:
        client.wait(30)
    clients = [user.popen("ps") for _ in range(6)]
    assert [client.wait(60) for client in clients] == [0] * 6
    found = subprocess.run(
        ["pgrep", "-u", str(os.getuid()), "-f", "claude_vm.supervisor.daemon"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    homes = [Path(f"/proc/{pid}/environ").read_bytes() for pid in found if Path(f"/proc/{pid}").exists()]
    assert sum(f"HOME={user.home}\0".encode() in environ for environ in homes) == 1


def test_a_second_daemon_in_the_foreground_is_refused(user):
    user.run("ps")
    done = user.run("daemon", "run")
    assert done.returncode == 1
    assert b"already-running" in done.stderr


def test_a_killed_daemon_is_followed_by_one_that_sweeps(ready):
    session = sleeper(ready)
    os.kill(ready.daemon_pid(), signal.SIGKILL)
    assert session.wait(30) == 125
    assert ready.json("ps") == []
    wait_until(lambda: not list((ready.data / "sim").glob("*/i-*")))
    log = (ready.data / "logs" / "daemon.log").read_text()
    assert "instance-found" in log


def test_a_supervisor_inside_a_client_leaves_alone_what_a_dead_daemon_left(ready):
    session = sleeper(ready)
    os.kill(ready.daemon_pid(), signal.SIGKILL)
    assert session.wait(30) == 125
    (left,) = (ready.data / "sim" / "daemon").glob("i-*")
    garbage = ready.data / "supervisors" / "p1-000000"
    garbage.mkdir()
    assert ready.run("--no-daemon", "shell", "sleep 1").returncode == 0
    assert not garbage.exists()  # it has swept
    assert left.exists()
    assert ready.json("ps") == []


def test_a_damaged_journal_does_not_stop_the_daemon(ready):
    ready.stop_daemon()
    journal = ready.data / "supervisors" / "daemon" / "journal.db"
    for suffix in ("-wal", "-shm"):
        journal.with_name(journal.name + suffix).unlink(missing_ok=True)
    journal.write_bytes(b"x" * 8192)
    assert ready.run("shell", "true").returncode == 0
    assert list(journal.parent.glob("journal.db.damaged-*"))


def test_a_row_is_written_before_each_side_effect_and_none_stays_open(ready):
    assert ready.run("shell", "true").returncode == 0
    journal = ready.data / "supervisors" / "daemon" / "journal.db"
    connection = sqlite3.connect(journal)
    rows = connection.execute("SELECT kind, outcome FROM effects ORDER BY seq").fetchall()
    left = connection.execute("SELECT count(*) FROM instances").fetchone()
    connection.close()
    assert [kind for kind, _ in rows] == ["clone", "start", "connect", "run", "delete"]
    assert [outcome for _, outcome in rows] == [
        "CloneDone",
        "StartDone",
        "ConnectDone",
        "RunDone",
        "DeleteDone",
    ]
    assert left == (0,)


def test_a_session_inside_the_client_needs_no_daemon_and_leaves_no_folder(ready):
    ready.run("daemon", "stop")
    done = ready.run("--no-daemon", "shell", "exit 7")
    assert done.returncode == 7
    assert ready.run("daemon", "status").returncode == 1
    assert [p.name for p in (ready.data / "supervisors").iterdir()] == ["daemon"]


def test_linked_worktrees_are_locked_during_a_session_and_free_after_it(ready):
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.invalid"]
    subprocess.run([*git, "init", "-q", ready.project], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "x"], cwd=ready.project, check=True)
    sibling = ready.project.parent / "sibling"
    subprocess.run(
        [*git, "worktree", "add", "-q", sibling], cwd=ready.project, check=True, capture_output=True
    )
    lock = ready.project / ".git" / "worktrees" / "sibling" / "locked"
    session = sleeper(ready)
    assert lock.exists()
    ready.run("stop", "--all")
    session.wait(30)
    assert not lock.exists()


def test_the_home_directory_is_no_project_without_a_flag(ready):
    done = ready.run("shell", "true", cwd=ready.home)
    assert done.returncode == 125
    assert b"--any-directory" in done.stderr


def test_sim_is_never_chosen_by_itself(user):
    done = user.run("info", "--json", env={"CLAUDE_VM_DRIVER": "auto"})
    assert b'"sim"' not in done.stdout


def test_a_session_that_is_not_isolated_says_so_loudly(ready):
    assert b"NOTHING IS ISOLATED" in ready.run("--quiet", "shell", "true").stderr


def test_a_failing_build_is_an_error_and_no_traceback(user):
    script(user, build_template=[{"fail": "disk-full"}])
    done = user.run("setup", "--no-agent")
    assert done.returncode == 1
    assert b"[disk-full]" in done.stderr
    assert b"Traceback" not in done.stderr
    assert user.json("list") == []


def test_an_interrupted_setup_leaves_the_old_template_usable(user):
    script(user, build_template=[{}, {"hang": True}])
    assert user.run("setup", "--no-agent").returncode == 0
    before = user.json("info")["generation"]
    second = user.popen("setup", "--no-agent")
    log = user.data / "logs" / "daemon.log"
    wait_until(lambda: log.read_text().count('"name": "setup"') == 2)
    second.send_signal(signal.SIGINT)
    assert second.wait(30) in INTERRUPTED
    assert user.json("info")["generation"] == before
    assert user.run("shell", "true").returncode == 0


@pytest.mark.parametrize("method", ["clone", "start"])
def test_a_failing_step_ends_the_session_with_its_code_and_leaves_nothing(user, method):
    script(user, **{method: [{"fail": "boot-failed"}]})
    user.run("setup", "--no-agent")
    done = user.run("shell", "true")
    assert done.returncode == 125
    assert b"[boot-failed]" in done.stderr
    assert not list((user.data / "sim").glob("*/i-*"))
    assert user.run("shell", "true").returncode == 0


def test_the_phases_of_a_session_are_shown_with_their_times_when_asked_for(user):
    # A phase that is over at once may be skipped; these take a moment each.
    script(user, **{method: [{"delay_s": 0.2}] for method in ("clone", "start", "delete")})
    user.run("setup", "--no-agent")
    done = user.run("--verbose", "shell", "sleep 0.2")
    shown = re.findall(rb"^claude-vm: (\w+) \(at (\d+\.\d) s\)$", done.stderr, re.MULTILINE)
    phases = [name for name, _ in shown]
    assert [name for name in phases if name not in {b"queued", b"connect"}] == [
        b"clone",
        b"start",
        b"run",
        b"delete",
    ]
    times = [float(text) for _, text in shown]
    assert times == sorted(times)
    assert times[-1] >= 0.6
    assert b" s)" not in user.run("shell", "true").stderr


@pytest.mark.parametrize("method", ["clone", "start"])
@pytest.mark.parametrize("how", ["hang", "lose_answer"])
def test_ctrl_c_during_a_step_leaves_nothing(user, method, how):
    script(user, **{method: [{how: True}]})
    user.run("setup", "--no-agent")
    session = user.popen("shell", "true")
    wait_until(lambda: [r["state"] for r in user.json("ps")] == ["preparing"])
    session.send_signal(signal.SIGINT)
    assert session.wait(30) in INTERRUPTED
    assert user.json("ps") == []
    assert not list((user.data / "sim").glob("*/i-*"))


def test_a_vm_that_dies_under_a_session_ends_it_with_the_reason(user):
    script(user, start=[{"die_s": 1.0}])
    user.run("setup", "--no-agent")
    done = user.run("shell", "sleep 600")
    assert done.returncode == 125
    assert b"[vm-died]" in done.stderr


def test_a_journal_that_cannot_be_written_fails_sessions_and_not_the_daemon(ready):
    ready.stop_daemon()
    # No file of this daemon may grow beyond 64 KiB: what a full disk does, for everybody.
    limited = ["bash", "-c", 'ulimit -f 64; exec "$0" ps', PROGRAM]
    subprocess.run(limited, cwd=ready.project, env=ready.env, check=True, capture_output=True)
    for _ in range(60):
        done = ready.run("shell", "true")
        if done.returncode != 0:
            break
    assert done.returncode == 125
    assert b"[journal-failed]" in done.stderr
    assert ready.json("ps") == []
    assert not list((ready.data / "sim").glob("*/i-*"))
    assert ready.run("daemon", "stop").returncode == 0
    assert ready.run("shell", "true").returncode == 0
    assert not list((ready.data / "supervisors" / "daemon").glob("*damaged*"))


def test_a_supervisor_inside_the_client_that_cannot_start_says_why(user):
    user.data.mkdir(mode=0o700)
    (user.data / "supervisors").write_text("in the way")
    done = user.run("--no-daemon", "ps")
    assert done.returncode == 1
    assert b"[supervisor-failed]" in done.stderr
    assert b"Traceback" not in done.stderr
    (user.data / "supervisors").unlink()


@pytest.mark.parametrize("value", ["junk", "nan", "0", "-1", "inf", ""])
def test_a_bad_idle_limit_is_told_before_the_daemon_is_ready(user, value):
    done = user.run("ps", env={"CLAUDE_VM_IDLE_EXIT": value})
    assert done.returncode == 1
    assert b"CLAUDE_VM_IDLE_EXIT" in done.stderr
    assert b"Traceback" not in done.stderr


def test_a_failure_around_a_session_has_another_status_than_one_of_a_listing(user):
    env = {"CLAUDE_VM_HOME": "/proc/claude-vm"}
    assert user.run("ps", env=env).returncode == 1
    assert user.run("shell", "true", env=env).returncode == 125


def test_a_project_whose_path_is_no_text_is_refused_before_anything_is_built(user):
    odd = Path(os.fsdecode(bytes(user.project) + b"/\xff\xfe"))
    odd.mkdir()
    done = user.run("setup", "--no-agent", cwd=odd)
    assert done.returncode == 1
    assert b"[bad-project]" in done.stderr
    assert user.json("list") == []


def test_an_idle_daemon_makes_room_for_a_client_of_another_version(user):
    pid = user.daemon_pid() or (user.run("ps"), user.daemon_pid())[1]
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(socket_path(str(user.data)))
        hello = {"protocol": PROTOCOL, "version": "99.0", "pid": 1}
        client.sendall(encode_json(FrameType.HELLO, hello))
        client.sendall(encode_json(FrameType.INVOKE, {"argv": ["ps"], "cwd": "/", "env": {}}))
        said = client.makefile("rb").read()
    assert said[0] == FrameType.REFUSED
    assert json.loads(said[5:])["code"] == "version-mismatch-idle"
    wait_until(lambda: not psutil.pid_exists(pid))


def test_a_busy_daemon_refuses_a_client_of_another_version_and_goes_on(ready):
    session = sleeper(ready)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(socket_path(str(ready.data)))
        client.sendall(encode_json(FrameType.HELLO, {"protocol": PROTOCOL, "version": "99.0", "pid": 1}))
        client.sendall(encode_json(FrameType.INVOKE, {"argv": ["ps"], "cwd": "/", "env": {}}))
        said = client.makefile("rb").read()
    assert json.loads(said[5:])["code"] == "version-mismatch-busy"
    assert session.poll() is None


def test_a_data_folder_with_a_path_too_long_for_a_socket_has_sessions_too(user):
    data = user.home / ("x" * 200)
    env = {"CLAUDE_VM_HOME": str(data)}
    try:
        assert user.run("setup", "--no-agent", env=env).returncode == 0
        assert user.run("shell", "exit 37", env=env).returncode == 37
        assert (data / "templates").is_dir()
        assert user.run("daemon", "stop", env=env).returncode == 0
        wait_until(lambda: not Path(runtime_directory(str(data))).exists())
    finally:
        user.run("daemon", "stop", "--force", env=env)
        shutil.rmtree(runtime_directory(str(data)), ignore_errors=True)


def test_listings_escape_what_strangers_named(ready):
    evil = ready.project / "\x1b]0;title\x07\x1b[31mred"
    evil.mkdir()
    assert ready.run("setup", "--no-agent", cwd=evil).returncode == 0
    for command in (("list",), ("info",), ("list", "--json"), ("info", "--json")):
        done = ready.run(*command, cwd=evil)
        assert done.returncode == 0
        assert b"\x1b" not in done.stdout
        assert b"\x07" not in done.stdout


def test_a_project_that_its_session_removes_does_not_change_the_exit_status(ready):
    done = ready.run("shell", f"rm -rf '{ready.project}'; exit 37")
    ready.project.mkdir()  # from where the user's last command runs
    assert (done.returncode, done.stderr.count(b"[system-error]")) == (37, 0)


def test_what_a_command_leaves_running_does_not_hold_its_exit_status_back(ready):
    done = ready.run("shell", "(while echo x; do sleep 0.1; done) & head -c 1000000 /dev/zero; exit 37")
    assert done.returncode == 37
    assert done.stdout.count(b"\0") == 1000000


def test_an_argument_that_is_no_utf_8_arrives(ready):
    done = ready.run("shell", "--", "printf", "%s", os.fsdecode(b"\xff\xfe"))
    assert done.stdout == b"\xff\xfe"


def test_what_a_command_wrote_before_its_end_reaches_a_reader_that_comes_late(ready):
    # More than pipe and window take, little enough for the command to end meanwhile.
    size = WINDOW + 512 * 1024
    session = ready.popen("shell", f"head -c {size} /dev/zero; : >ended")
    wait_until((ready.project / "ended").exists)
    (row,) = ready.json("ps")
    assert row["state"] == "running"
    assert len(session.stdout.read()) == size
    assert session.wait(30) == 0


def frames(data):
    """Cut what a daemon said into types and payloads."""
    while data:
        size = int.from_bytes(data[1:5], "big")
        yield data[0], data[5 : 5 + size]
        data = data[5 + size :]


def test_a_terminal_has_the_size_that_its_client_had_at_first(ready):
    # The real client tells its size once more at the start; this one does not.
    terminal = {"stdin_tty": True, "stdout_tty": True, "term": "xterm", "rows": 33, "columns": 111}
    invocation = {
        "argv": ["shell", "stty size"],
        "cwd": str(ready.project),
        "env": ready.env,
        "terminal": terminal,
    }
    ready.run("ps")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(socket_path(str(ready.data)))
        client.sendall(encode_json(FrameType.HELLO, {"protocol": PROTOCOL, "version": VERSION, "pid": 1}))
        client.sendall(encode_json(FrameType.INVOKE, invocation))
        said = list(frames(client.makefile("rb").read()))
    assert b"".join(payload for kind, payload in said if kind == FrameType.STDOUT) == b"33 111\r\n"


def test_info_lists_mounts_that_no_session_could_have_as_long_as_there_is_no_template(user):
    mount = f"{user.home / '.claude-vm'}:/data"
    user.run("ps")  # then that folder is there
    shown = user.run("--mount", mount, "info", "--json")
    assert shown.returncode == 0, shown.stderr.decode()
    assert f"{mount}:rw" in json.loads(shown.stdout)["mounts"]
    assert user.run("setup", "--no-agent").returncode == 0
    assert user.run("--mount", mount, "info").returncode == 1


def test_info_tells_the_sizes_that_a_session_would_have(ready):
    template = json.loads(ready.run("info", "--json").stdout)
    other = template["memory_gb"] + 1
    shown = json.loads(ready.run("--memory", str(other), "info", "--json").stdout)
    assert (shown["memory_gb"], shown["cpus"]) == (other, template["cpus"])
    text = ready.run("info", env={"CLAUDE_VM_MEMORY": str(other)}).stdout.decode()
    assert f"{other} GB memory" in text


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--env-file", "large"), "the environment variable LARGE has 131072 bytes; "),
        (("--env-file", "many"), "bytes together; Linux allows at most "),
        (("--env", "BASHPID=1"), "a shell can't set the environment variable 'BASHPID'"),
    ],
)
def test_what_no_program_could_be_given_is_told_before_a_vm_is_spent(ready, flags, said):
    (ready.project / "large").write_text(f"LARGE={'x' * (131072 - len('LARGE='))}\n")
    (ready.project / "many").write_text("".join(f"V{n}={'x' * 100}\n" for n in range(9_000)))
    more = [word for n in range(11) for word in ("--env", f"A{n}={'y' * 100_000}")]
    done = ready.run(*flags, *(more if "many" in flags else ()), "shell", "true")
    assert done.returncode == 125
    assert said in done.stderr.decode()
    assert "[bad-launch]" in done.stderr.decode()
    assert ready.json("ps", "--all") == []
