"""The warm pool with real VMs: each is given out once, is like any other, and outlives its supervisor."""

import concurrent.futures
import json
import os
import re
import signal
import subprocess

import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(900)]

# Everything that a program or shell can tell of how it was started. Differences that have to be: the host
# name, ids, times, and the values that bash counts. The shell reads its own status: while it waits for a
# child, that child's signal is blocked.
LOOK = r"""
env -0 | sort -z | tr '\0' '\n'
echo "flags $- zero $0 count $# level $SHLVL"
shopt; shopt -o
trap -p
umask; ulimit -a
history
alias
for n in 0 1 2 3 4 5 6 7 8 9 10 11 12; do [ -e /proc/$$/fd/$n ] && echo "open $n"; done
mapfile -t facts </proc/$$/status
printf '%s\n' "${facts[@]}" | grep -E '^(Sig(Blk|Ign|Cgt)|Groups|Cap|NoNewPrivs|Seccomp|Uid|Gid)'
declare -F
compgen -v | grep -vE '^(BASH_|COMP_|EPOCH|RANDOM|SRANDOM|SECONDS|LINENO|PIPESTATUS|FUNCNAME|_$)'
ps -o pgid=,sid=,tpgid= -p $$ | tr -s ' ' '\n' | sort | uniq -c | wc -l
cat /proc/self/oom_score_adj; cat /proc/self/cgroup | head -1
"""
WAYS = ["exec-pipes", "eval-tty", "shell-tty"]
if "CHAOS_KILLS" in os.environ:  # each with both streams is for `make soak`
    WAYS = [f"{mode}-{streams}" for mode in ("exec", "eval", "shell") for streams in ("pipes", "tty")]
VOLATILE = re.compile(r"claude-vm-[0-9a-f]{10}|/dev/pts/\d+|\b\d{5,}\b")


@pytest.fixture
def pool(claude_vm, waiting):
    """Set the pool's size for this project; at the end nothing is ready any more."""

    def fill(count):
        claude_vm.configure(f"[pool]\nsize = {count}\npaused = 0\n")
        done = claude_vm.run("pool", "fill")
        assert done.returncode == 0, done.stderr.decode()

    yield fill
    claude_vm.configure("[pool]\nsize = 0\n")
    done = claude_vm.run("pool", "drain", "--all")
    assert done.returncode == 0, done.stderr.decode()
    waiting(lambda: claude_vm.vm_pids() == [], timeout=20)


def status(claude_vm):
    return json.loads(claude_vm.run("pool", "status", "--json").stdout)


def last_session(claude_vm):
    return json.loads(claude_vm.run("ps", "--all", "--json").stdout)[-1]


def test_a_session_gets_the_ready_vm_and_another_is_made_ready(claude_vm, pool, waiting):
    pool(1)
    (ready,) = claude_vm.vm_pids()
    done = claude_vm.shell("echo", "here")
    assert (done.returncode, done.stdout) == (0, b"here\n")
    assert last_session(claude_vm)["source"] == "warm"
    waiting(lambda: claude_vm.vm_pids() not in ([], [ready]), timeout=60)
    pool(1)
    assert ready not in claude_vm.vm_pids()


def test_a_vm_that_was_started_ahead_is_taken_when_none_is_ready(claude_vm, pool, waiting):
    claude_vm.configure("[pool]\nsize = 0\npaused = 1\n")
    assert claude_vm.shell("true").returncode == 0
    waiting(lambda: [entry["paused"] for entry in status(claude_vm)["pools"]] == [1], timeout=60)
    done = claude_vm.shell("hostname")
    assert done.returncode == 0
    assert done.stdout.startswith(b"claude-vm-")
    assert last_session(claude_vm)["source"] == "paused"


def test_other_mounts_take_the_fastest_way_without_a_ready_vm(claude_vm, pool, tmp_path):
    pool(1)
    done = claude_vm.shell("true", flags=("-v", "--mount", str(tmp_path)))
    assert done.returncode == 0
    assert last_session(claude_vm)["source"] == "made"
    assert b"no ready VM with these mounts" in done.stderr


def test_a_burst_gives_each_session_a_vm_of_its_own(claude_vm, pool):
    pool(2)
    with concurrent.futures.ThreadPoolExecutor(6) as burst:
        done = list(burst.map(lambda _: claude_vm.shell("hostname", timeout=240), range(6)))
    assert [d.returncode for d in done] == [0] * 6
    assert len({d.stdout for d in done}) == 6


@pytest.fixture
def in_tmux(claude_vm, tmux_class, tmp_path, waiting):
    """Run a session in a real terminal; `typed` is typed at its prompt. Return when `mark` exists."""
    count = 0

    def run(words, typed, mark):
        nonlocal count
        count += 1
        with tmux_class(tmp_path / f"t{count}") as tmux:
            tmux.run([claude_vm.program, "shell", *words], cwd=claude_vm.project, env=claude_vm.env)
            if typed:
                tmux.wait_for("claude-vm-")  # its prompt has the guest's name
                tmux.type(typed)
            waiting(mark.exists)
            tmux.wait_for("host>", count=2)

    return run


@pytest.mark.parametrize("way", WAYS)
def test_a_warm_session_cant_be_told_from_a_cold_one(claude_vm, pool, in_tmux, folder, way):
    mode, _, streams = way.partition("-")
    script = folder / "look"
    script.write_text(LOOK)
    seen = {}
    for size in (0, 1):
        if size:
            pool(1)
        else:
            claude_vm.configure("[pool]\nsize = 0\n")
        out = folder / f"seen-{size}"
        mark = folder / f"seen-{size}.done"
        line = f". {script} >{out} 2>&1; touch {mark}"
        words = {"exec": ["bash", "-c", line], "eval": [line], "shell": []}[mode]
        typed = "" if words else f"{line}; exit"
        if streams == "tty":
            in_tmux(words, typed, mark)
        else:
            claude_vm.run("shell", *words, data=typed.encode())
        assert last_session(claude_vm)["source"] == ("warm" if size else "made")
        seen[size] = VOLATILE.sub("…", out.read_text()).replace(f"seen-{size}", "seen")
    assert seen[0].count("\n") > 60
    assert seen[1] == seen[0]


def test_the_agent_is_forwarded_to_a_ready_vm(claude_vm, pool, tmp_path):
    pool(1)
    make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "the client's", "-f", tmp_path / "k"]
    subprocess.run(make, check=True)
    agent = subprocess.Popen(["ssh-agent", "-D", "-a", str(tmp_path / "s")], stdout=subprocess.PIPE)
    try:
        assert agent.stdout.readline()
        env = {"SSH_AUTH_SOCK": str(tmp_path / "s")}
        subprocess.run(["ssh-add", "-q", tmp_path / "k"], check=True, env=os.environ | env)
        done = claude_vm.shell("ssh-add", "-l", flags=("-A",), env=env)
        assert last_session(claude_vm)["source"] == "warm"
        assert b"the client's" in done.stdout
    finally:
        agent.terminate()
        agent.wait()
        agent.stdout.close()


def test_ready_vms_are_adopted_and_given_out_after_their_supervisor_was_killed(claude_vm, pool, waiting):
    pool(2)
    before = set(claude_vm.vm_pids())
    os.kill(claude_vm.daemon_pid(), signal.SIGKILL)
    waiting(lambda: claude_vm.daemon_pid() is None, timeout=10)
    assert set(claude_vm.vm_pids()) == before
    pool(2)
    assert set(claude_vm.vm_pids()) >= before
    done = claude_vm.shell("hostname")
    assert done.returncode == 0
    assert last_session(claude_vm)["source"] == "warm"


def test_a_running_session_outlives_its_supervisor_and_is_found_and_ended(claude_vm, waiting, folder):
    ticks = folder / "ticks"
    session = claude_vm.popen(
        "shell", "--", "sh", "-c", f"while :; do echo tick >>{ticks}; sleep 0.2; done",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    waiting(ticks.exists)
    (vm,) = claude_vm.vm_pids()
    os.kill(claude_vm.daemon_pid(), signal.SIGKILL)
    session.wait(30)
    assert session.returncode == 125
    assert b"claude-vm ps" in session.stderr.read()
    (row,) = json.loads(claude_vm.run("ps", "--json").stdout)
    assert row["state"] == "running"
    assert not row["attached"]
    size = ticks.stat().st_size
    waiting(lambda: ticks.stat().st_size > size, timeout=20)
    assert claude_vm.vm_pids() == [vm]
    assert claude_vm.run("stop", row["session"]).returncode == 0
    assert claude_vm.vm_pids() == []
    assert json.loads(claude_vm.run("ps", "--json").stdout) == []


def test_a_session_that_ends_while_nobody_supervises_is_cleaned_up(claude_vm, waiting, folder):
    go = folder / "go"
    session = claude_vm.popen(
        "shell", "--", "sh", "-c", f"touch {folder}/up; until [ -e {go} ]; do sleep 0.1; done",
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    waiting((folder / "up").exists)
    os.kill(claude_vm.daemon_pid(), signal.SIGKILL)
    session.wait(30)
    go.touch()
    claude_vm.run("ps")
    waiting(lambda: claude_vm.vm_pids() == [], timeout=30)
    assert json.loads(claude_vm.run("ps", "--json").stdout) == []


def test_a_dead_ready_vm_is_replaced(claude_vm, pool, waiting):
    pool(1)
    (vm,) = claude_vm.vm_pids()
    os.kill(vm, signal.SIGKILL)
    waiting(lambda: claude_vm.vm_pids() not in ([], [vm]), timeout=60)
    waiting(lambda: status(claude_vm)["pools"][0]["warm"] == 1, timeout=60)


def test_ctrl_c_right_after_the_claim_never_leads_to_a_prompt(claude_vm, pool, tmux_class, tmp_path, waiting):
    pool(1)
    with tmux_class(tmp_path / "t") as tmux:
        tmux.run([claude_vm.program, "shell", "sleep", "100"], cwd=claude_vm.project, env=claude_vm.env)
        waiting(lambda: json.loads(claude_vm.run("ps", "--json").stdout), interval=0.01)
        tmux.press("C-c")
        tmux.wait_for("host>", count=2)
        tmux.type("echo status $?")
        tmux.wait_for("status 130")
