"""Commands in a real VM, as a user and a script call them."""

import hashlib
import json
import os
import resource
import signal
import stat
import subprocess
import threading

import psutil
import pytest

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

MEGABYTE = 1 << 20


def ok(done):
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


def test_a_command_runs_in_another_kernel_in_the_projects_directory(claude_vm, folder):
    host = subprocess.run(["uname", "-n"], capture_output=True, check=True, text=True).stdout
    guest = ok(claude_vm.shell("sh", "-c", "uname -n; pwd", cwd=folder)).splitlines()
    assert guest[0] != host.strip()
    assert guest[1] == str(folder)


def test_the_exit_status_is_the_commands(claude_vm):
    assert claude_vm.shell("sh", "-c", "exit 37").returncode == 37


def test_a_command_that_dies_of_a_signal_is_told_as_a_shell_tells_it(claude_vm):
    assert claude_vm.shell("sh", "-c", "kill -TERM $$").returncode == 143


def test_stdout_and_stderr_are_apart_and_no_word_of_ours_is_in_stdout(claude_vm):
    done = claude_vm.shell("sh", "-c", "printf out; printf err >&2")
    assert done.stdout == b"out"
    assert done.stderr.endswith(b"err")


def test_arguments_arrive_byte_for_byte(claude_vm):
    words = [
        "",
        " ",
        "a b",
        "'",
        '"',
        "$(id)",
        "`id`",
        "-rf",
        "--",
        "\\",
        "\n",
        "é",
        "*",
        "\x01\x7f",
        "/clear",
    ]
    done = claude_vm.shell("python3", "-c", "import sys; sys.stdout.write('\\0'.join(sys.argv[1:]))", *words)
    assert done.stdout.decode().split("\0") == words


def test_one_word_is_a_line_for_the_sessions_shell(claude_vm):
    done = claude_vm.run("shell", "f() { echo \"<$1>\"; }; f 'a b' | tr a-z A-Z")
    assert ok(done) == "<A B>\n"


def test_flags_are_taken_before_and_after_the_sub_command(claude_vm):
    before = claude_vm.run("--env", "X=1 2", "shell", "printenv", "X")
    after = claude_vm.run("shell", "--env", "X=1 2", "printenv", "X")
    assert (before.stdout, after.stdout) == (b"1 2\n", b"1 2\n")


def test_all_bytes_pass_both_ways_on_pipes(claude_vm):
    data = bytes(range(256)) * 64
    assert claude_vm.shell("cat", data=data).stdout == data


def test_files_belong_to_the_same_person_on_both_sides(claude_vm, folder):
    (folder / "from-host").write_text("host")
    said = ok(
        claude_vm.shell(
            "sh", "-c", "echo guest > from-guest; stat -c %U from-host from-guest; id -un", cwd=folder
        )
    )
    owners = said.split()
    assert owners[0] == owners[1] == owners[2]
    made = (folder / "from-guest").stat()
    assert (made.st_uid, made.st_gid) == (os.getuid(), os.getgid())


def test_root_in_the_guest_cannot_write_through_a_read_only_mount(claude_vm, folder, tmp_path):
    (tmp_path / "precious").write_text("untouched")
    attack = "sudo mount -o remount,rw /mnt/ro; echo gone | sudo tee /mnt/ro/precious; sudo touch /mnt/ro/new"
    script = f"{attack}; cat /mnt/ro/precious"
    done = claude_vm.run("--mount", f"{tmp_path}:/mnt/ro:ro", "shell", script)
    assert done.stdout.decode().splitlines()[-1] == "untouched"
    assert [p.name for p in tmp_path.iterdir()] == ["precious"]
    assert (tmp_path / "precious").read_text() == "untouched"


ODD_NAMES = (
    "a b",
    "q'\"",
    "new\nline",
    "co:lon",
    "com,ma",
    "id=x,readonly=on",
    "$(id)",
    "-rf",
    "ünï漢",
    "x" * 200,
)


@pytest.mark.parametrize("half", [0, 1])
def test_directories_of_any_name_are_mounted(claude_vm, tmp_path, half):
    names = ODD_NAMES[half * 5 : half * 5 + 5]
    flags = []
    for number, name in enumerate(names):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
        host = str(tmp_path / name).replace("\\", "\\\\").replace(":", "\\:")
        flags += ["--mount", f"{host}:/mnt/{number}:ro"]
    said = ok(
        claude_vm.run(*flags, "shell", "cat /mnt/0/file; for n in 1 2 3 4; do echo; cat /mnt/$n/file; done")
    )
    assert said == "\n".join(names)


def test_a_project_of_any_name_has_a_template_and_sessions(claude_vm, tmp_path):
    project = tmp_path / "a b',\n:\"é=x"
    project.mkdir()
    built = claude_vm.run("setup", "--no-agent", cwd=project, timeout=600)
    assert built.returncode == 0, built.stderr.decode()
    try:
        done = claude_vm.shell("sh", "-c", "pwd; touch made", cwd=project)
        assert done.stdout.decode() == f"{project}\n"
        assert (project / "made").exists()
    finally:
        assert claude_vm.run("clean", "--yes", cwd=project).returncode == 0


def test_git_on_both_sides_in_turn_rewrites_no_index(claude_vm, tmp_path):
    repository = tmp_path / "repository"
    git = ["git", "-c", "user.name=n", "-c", "user.email=e@example.invalid", "-C"]

    def host(*words):
        done = subprocess.run([*git, repository, *words], check=True, capture_output=True, text=True)
        return done.stdout

    def guest(*words):
        return ok(claude_vm.run("--mount", f"{repository}:/mnt/r", "shell", *git, "/mnt/r", *words))

    subprocess.run(["git", "init", "-q", "-b", "main", repository], check=True)
    for number in range(50):
        (repository / f"file{number}").write_text(str(number))
    host("add", "-A")
    host("commit", "-q", "-m", "host")
    host("status")
    index = (repository / ".git" / "index").read_bytes()
    for side in (guest, host, guest, host):
        assert side("status", "--porcelain") == ""
        assert (repository / ".git" / "index").read_bytes() == index
    (repository / "file0").write_text("changed")
    guest("commit", "-q", "-a", "-m", "guest")
    assert host("log", "--format=%s").split() == ["guest", "host"]
    assert host("status", "--porcelain") == ""
    host("fsck", "--strict")


def test_no_file_can_be_made_to_run_as_its_owner_or_group(claude_vm, folder):
    script = "cp /bin/true tool; for b in u g; do sudo chmod $b+s tool 2>&1; done; stat -c %a tool"
    done = claude_vm.run("shell", script, cwd=folder)
    refused = "chmod: changing permissions of 'tool': Operation not permitted\n"
    assert ok(done) == f"{refused}{refused}755\n"
    assert stat.S_IMODE((folder / "tool").stat().st_mode) == 0o755


def test_a_repository_that_a_group_shares_works_in_a_guest(claude_vm, folder):
    script = "git init -q --shared r && cd r && git commit -q --allow-empty -m x && git gc -q && git fsck"
    name = [f"--env=GIT_{who}_{what}=a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
    ok(claude_vm.run(*name, "shell", script, cwd=folder))
    assert stat.S_IMODE((folder / "r/.git/objects").stat().st_mode) == 0o2775


def test_the_environment_file_is_gone_when_the_command_runs(claude_vm):
    token = "canary-5c1c"
    script = "printenv SECRET; sudo grep -rlsa canary-5c1c /run/claude-vm || echo nowhere"
    assert ok(claude_vm.run("--env", f"SECRET={token}", "shell", script)).split() == [token, "nowhere"]


def test_a_secret_is_in_no_argument_list_and_no_log_of_the_host(claude_vm, waiting):
    token = "sk-ant-canary-8d2f"
    session = claude_vm.popen(
        "shell",
        "--",
        "sh",
        "-c",
        "echo up; sleep 60",
        env={"ANTHROPIC_API_KEY": token},
        stdout=subprocess.PIPE,
    )
    assert session.stdout.readline() == b"up\n"
    for process in psutil.process_iter(["cmdline"]):
        assert token not in " ".join(process.info["cmdline"] or [])
    environ = psutil.Process(claude_vm.daemon_pid()).environ()
    assert token not in json.dumps(environ)
    session.send_signal(signal.SIGINT)
    session.wait(60)
    session.stdout.close()
    text = subprocess.run(["grep", "-rlsa", token, claude_vm.home], capture_output=True, check=False)
    assert text.stdout == b""


def test_the_daemons_environment_lacks_the_first_clients_key(claude_vm):
    claude_vm.stop_daemon()
    assert (
        claude_vm.run("ps", env={"ANTHROPIC_API_KEY": "first-client", "SSH_AUTH_SOCK": "/nowhere"}).returncode
        == 0
    )
    environ = psutil.Process(claude_vm.daemon_pid()).environ()
    assert "ANTHROPIC_API_KEY" not in environ
    assert "SSH_AUTH_SOCK" not in environ


def test_ps_in_a_command_substitution_returns_although_it_starts_the_daemon(claude_vm):
    claude_vm.stop_daemon()
    shell = f'x=$("{claude_vm.program}" ps) && echo "got: $x"'
    done = subprocess.run(
        ["sh", "-c", shell],
        cwd=claude_vm.project,
        env=claude_vm.env,
        capture_output=True,
        timeout=20,
        check=True,
    )
    assert done.stdout.startswith(b"got: SESSION")
    daemon = psutil.Process(claude_vm.daemon_pid())
    assert daemon.cwd() == "/"
    assert os.getsid(daemon.pid) != os.getsid(0)
    assert daemon.terminal() is None
    assert daemon.rlimit(psutil.RLIMIT_NOFILE)[0] >= min(65536, resource.getrlimit(resource.RLIMIT_NOFILE)[1])


def test_without_a_daemon_the_same_session_runs_in_the_clients_process(claude_vm):
    claude_vm.stop_daemon()
    done = claude_vm.run("--no-daemon", "shell", "--", "sh", "-c", "cat; exit 5", data=b"in process")
    assert (done.returncode, done.stdout) == (5, b"in process")
    assert claude_vm.daemon_pid() is None


def test_a_reader_that_ends_ends_the_session(claude_vm):
    session = claude_vm.popen("shell", "yes", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert session.stdout.read(2) == b"y\n"
    session.stdout.close()
    assert session.wait(60) == 141
    session.stderr.close()


def test_a_stopped_reader_stops_the_guests_writer(claude_vm, folder, waiting):
    counter = (
        "import sys\nn = 0\nwhile True:\n"
        " n += sys.stdout.buffer.write(b'x' * 65536)\n open('n', 'w').write(str(n))"
    )
    session = claude_vm.popen(
        "shell", "--", "python3", "-c", counter, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )

    def written():
        text = (folder / "n").read_text() if (folder / "n").exists() else ""
        return int(text) if text else 0

    waiting(lambda: written() > 0)
    seen = [-1]

    def stands_still():
        before, seen[0] = seen[0], written()
        return before == seen[0] > 0

    waiting(stands_still, interval=3.0)
    assert written() < 32 * MEGABYTE
    session.kill()
    session.wait()
    session.stdout.close()


def test_50_megabytes_pass_both_ways_in_flat_memory(claude_vm, waiting):
    size = 50 * MEGABYTE
    block = os.urandom(MEGABYTE)
    sent, received = hashlib.sha256(), hashlib.sha256()
    session = claude_vm.popen(
        "shell", "cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    peaks = {}

    def feed():
        for number in range(50):
            piece = number.to_bytes(4, "big") + block[4:]
            sent.update(piece)
            session.stdin.write(piece)
        session.stdin.close()

    # What there is before the flood comes; afterwards much of it may be in a memory already.
    session.stdin.write(b"first")
    session.stdin.flush()
    assert session.stdout.read(5) == b"first"
    watched = [psutil.Process(session.pid), psutil.Process(claude_vm.daemon_pid())]
    start = [p.memory_info().rss for p in watched]
    feeder = threading.Thread(target=feed)
    feeder.start()
    count = 0
    while data := session.stdout.read(MEGABYTE):
        received.update(data)
        count += len(data)
        for process in watched:
            if process.is_running() and count < size:
                peaks[process.pid] = max(peaks.get(process.pid, 0), process.memory_info().rss)
    feeder.join()
    assert session.wait(60) == 0
    session.stdout.close()
    assert count == size
    assert received.digest() == sent.digest()
    for before, process in zip(start, watched, strict=True):
        assert peaks[process.pid] - before < 16 * MEGABYTE


def test_two_sessions_run_side_by_side_in_one_project(claude_vm, folder, waiting):
    script = "echo here > $1; while [ ! -e $2 ]; do sleep 0.2; done; hostname; cat /etc/machine-id"
    sessions = [
        claude_vm.popen(
            "shell", "--", "sh", "-c", script, "sh", mine, other, cwd=folder, stdout=subprocess.PIPE
        )
        for mine, other in (("a", "b"), ("b", "a"))
    ]
    waiting(lambda: len(json.loads(claude_vm.run("ps", "--json").stdout)) == 2)
    said = [s.communicate(timeout=240)[0].split() for s in sessions]
    assert [s.returncode for s in sessions] == [0, 0]
    (name_a, machine_a), (name_b, machine_b) = said
    assert name_a != name_b
    assert machine_a != machine_b


def test_the_agent_is_the_clients_and_only_with_the_flag(claude_vm, tmp_path):
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "the clients key", "-f", tmp_path / "key"],
        check=True,
    )
    socket = tmp_path / "agent"
    with subprocess.Popen(["ssh-agent", "-D", "-a", socket], stdout=subprocess.DEVNULL) as agent:
        try:
            for _ in range(100):
                if socket.exists():
                    break
                threading.Event().wait(0.05)
            env = {"SSH_AUTH_SOCK": str(socket)}
            subprocess.run(["ssh-add", "-q", tmp_path / "key"], env=os.environ | env, check=True)
            with_flag = claude_vm.run("-A", "shell", "ssh-add", "-l", env=env)
            without = claude_vm.run("shell", "ssh-add", "-l", env=env)
        finally:
            agent.terminate()
    assert b"the clients key" in with_flag.stdout
    assert without.returncode == 2
    assert b"the clients key" not in without.stdout


def test_ctrl_c_without_a_pty_reaches_the_guests_process_group(claude_vm):
    script = "trap 'echo caught; exit 9' INT; echo ready; while :; do sleep 0.1; done"
    session = claude_vm.popen("shell", "--", "bash", "-c", script, stdout=subprocess.PIPE)
    assert session.stdout.readline() == b"ready\n"
    session.send_signal(signal.SIGINT)
    assert session.stdout.read() == b"caught\n"
    assert session.wait(60) == 9
    session.stdout.close()


def test_stop_ends_a_session_by_the_beginning_of_its_id(claude_vm, waiting):
    session = claude_vm.popen(
        "shell", "--", "sh", "-c", "echo up; sleep 600", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert session.stdout.readline() == b"up\n"
    (row,) = json.loads(ok(claude_vm.run("ps", "--json")))
    assert row["state"] == "running"
    assert claude_vm.run("stop", row["session"][:6]).stdout.decode().strip() == row["session"]
    assert session.wait(30) == 143
    assert b"stopped by" in session.stderr.read()
    session.stdout.close()
    session.stderr.close()
    assert json.loads(ok(claude_vm.run("ps", "--json"))) == []


def test_the_host_is_reached_by_name_and_time_is_right(claude_vm):
    before = int(subprocess.run(["date", "+%s"], capture_output=True, check=True).stdout)
    guest = float(ok(claude_vm.shell("date", "+%s.%N")))
    after = int(subprocess.run(["date", "+%s"], capture_output=True, check=True).stdout) + 1
    assert before - 0.1 <= guest <= after + 0.1


def test_a_session_may_have_more_memory_cpus_and_disk_than_its_template(claude_vm):
    script = "nproc; awk '/MemTotal/ {print int($2 / 1024)}' /proc/meminfo; df -BG --output=size / | tail -1"
    said = ok(
        claude_vm.run("--memory", "2", "--cpus", "1", "--disk", "12", "shell", script, timeout=400)
    ).split()
    assert said[0] == "1"
    assert 1700 < int(said[1]) <= 2048
    assert int(said[2].rstrip("G")) in (11, 12)


def test_a_disk_smaller_than_the_templates_is_refused(claude_vm):
    done = claude_vm.run("--disk", "2", "shell", "true")
    assert done.returncode == 125
    assert b"disk" in done.stderr
