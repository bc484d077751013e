"""The real Claude Code on this host, without a VM: what our files, variables and argument list make it do.

It talks to the scripted API on loopback and to nobody else. That the same holds in a VM is tested elsewhere;
here the questions that Claude Code asks, and its options, are cheap to check when a new version comes out.
"""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from claude_vm.context.claude_command import (
    ALIASES,
    BACKGROUND_COMMANDS,
    OPTIONS,
    SUBCOMMANDS,
    Takes,
    claude_argv,
)
from claude_vm.context.claude_home import home_files, session_environment
from claude_vm.drivers.errors import DownloadError
from claude_vm.drivers.images.claude_code import ensure_claude_code
from claude_vm.supervisor.daemon.sessions.end_notes import end_notes
from claude_vm.supervisor.ssh.remaining import RemainingWork

pytestmark = [
    pytest.mark.claude,
    pytest.mark.timeout(600),
    pytest.mark.skipif(sys.platform != "linux", reason="the package is the one for Linux guests"),
]

KEY = {"ANTHROPIC_API_KEY": "sk-ant-api03-" + "k" * 70 + "-scripted"}
OAUTH = {"CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-" + "t" * 70 + "-scripted"}
BEARER = {"ANTHROPIC_AUTH_TOKEN": "token-" + "b" * 40}


@pytest.fixture(scope="module")
def claude():
    """Claude Code from the cache of the user who runs the tests, or from the registry."""

    async def get():
        cache = Path.home() / ".claude-vm" / "cache"
        return await ensure_claude_code(cache, lambda *_: None, environ=dict(os.environ))

    try:
        return anyio.run(get)
    except DownloadError as error:
        if "CI" in os.environ:
            raise
        pytest.skip(f"Claude Code is not cached, and the npm registry can't be reached: {error}")


class Guest:
    """A fresh home and project, and the environment of a session in them."""

    def __init__(self, folder, api, claude, secret):
        self.home = folder / "home"
        self.project = folder / "project"
        (self.project / "below").mkdir(parents=True)
        self.home.mkdir()
        self.claude = claude
        user = "root" if os.getuid() == 0 else "claude"
        found = session_environment(secret | {"ANTHROPIC_BASE_URL": api.url}, "127.0.0.1", user=user)
        trusted = [str(self.project), str(self.project / "below")]
        for file in home_files(trusted=trusted, environment=found, version=claude.version):
            path = self.home / file.path
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(file.data)
        self.env = found | {
            "HOME": str(self.home),
            "PATH": "/usr/bin:/bin",
            "TERM": "tmux-256color",
            "LANG": "C.UTF-8",
            "CLAUDE_CODE_TMPDIR": str(self.home),
            # this is a test, not a session: nothing but the loopback is asked
            "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        }

    def argv(self, args, configured=None):
        return [str(self.claude.binary), *claude_argv(args, configured)]

    def run(self, *args, configured=None):
        return subprocess.run(
            self.argv(args, configured),
            cwd=self.project,
            env=self.env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=120,
            check=False,
        )


@pytest.fixture
def guest(tmp_path, api, claude):
    def make(secret):
        return Guest(tmp_path, api, claude, secret)

    return make


@pytest.mark.parametrize("tool", ["bash", "write"])
def test_a_scripted_task_makes_a_file_and_json(guest, api, script_class, tool):
    made = guest(KEY)
    path = made.project / "proof.txt"
    task = 'prove "it"\n with $(quotes) and \\ é'
    script = script_class.bash if tool == "bash" else script_class.write
    api.add(
        script(task, f"printf proved > '{path}'") if tool == "bash" else script(task, str(path), "proved")
    )
    done = made.run("-p", task, "--output-format", "json", "--model", "opus")
    assert done.returncode == 0, done.stderr.decode()
    assert json.loads(done.stdout)["result"] == "The scripted task is done."
    assert path.read_text() == "proved"
    request = api.wait_for_task(task, timeout_s=1)
    assert request.headers["x-api-key"] == KEY["ANTHROPIC_API_KEY"]
    assert "opus" in request.body["model"]
    assert len(api.requests[-1].tool_results) == 1


def test_two_sessions_side_by_side_get_their_own_scripts(tmp_path, api, claude, script_class):
    guests = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        guests.append(Guest(tmp_path / name, api, claude, KEY))
        api.add(script_class.bash(f"task {name}", f"printf {name} > proof.txt", text=f"{name} is done"))
    running = [
        subprocess.Popen(
            made.argv(["-p", f"task {name}"]),
            cwd=made.project,
            env=made.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        for name, made in zip(("one", "two"), guests, strict=True)
    ]
    answers = [process.communicate(timeout=120)[0].decode().strip() for process in running]
    assert answers == ["one is done", "two is done"]
    assert [(made.project / "proof.txt").read_text() for made in guests] == ["one", "two"]


@pytest.mark.parametrize(
    ("secret", "header", "where"),
    [
        (KEY, ("x-api-key", KEY["ANTHROPIC_API_KEY"]), "."),
        (KEY, ("x-api-key", KEY["ANTHROPIC_API_KEY"]), "below"),
        (OAUTH, ("authorization", f"Bearer {OAUTH['CLAUDE_CODE_OAUTH_TOKEN']}"), "."),
        (BEARER, ("authorization", f"Bearer {BEARER['ANTHROPIC_AUTH_TOKEN']}"), "below"),
    ],
    ids=["key", "key-below", "oauth", "bearer"],
)
def test_a_typed_task_reaches_the_api_with_no_other_key_pressed(  # noqa: PLR0917 - fixtures
    guest, api, tmux_class, tmp_path, secret, header, where
):
    made = guest(secret)
    (made.project / ".mcp.json").write_text('{"mcpServers": {"odd": {"command": "true"}}}')
    (made.project / "CLAUDE.md").write_text("See @/etc/hostname and @~/notes.md\n")
    (made.home / "notes.md").write_text("notes\n")
    with tmux_class(tmp_path / "tmux", columns=120, rows=40) as terminal:
        terminal.run(made.argv([]), cwd=made.project / where, env=made.env)
        terminal.wait_for("bypass permissions on", timeout=60)
        terminal.type("a task typed by hand")
        request = api.wait_for_task("a task typed by hand", timeout_s=60)
        terminal.wait_for("The scripted task is done.")
    assert request.headers[header[0]] == header[1]


@pytest.mark.parametrize("words", [["--bg", "x"], ["--background", "x"], *([w] for w in BACKGROUND_COMMANDS)])
def test_work_that_would_go_on_without_its_session_is_switched_off(guest, words):
    made = guest(KEY)
    done = made.run(*words, configured=[])
    said = (done.stdout + done.stderr).decode()
    assert "disabled by CLAUDE_CODE_DISABLE_AGENT_VIEW" in said or words[0] in {"agents", "daemon"}, said
    assert not (made.home / ".claude" / "daemon.log").exists()


def test_a_tools_background_work_ends_with_claude_and_cannot_be_moved_out_of_it(
    guest, api, tmux_class, tmp_path, script_class
):
    made = guest(KEY)
    call = {"command": "sleep 707", "run_in_background": True, "description": "sleeps"}
    script = script_class.bash("start it", "")
    api.add(replace(script, steps=(replace(script.steps[0], input=call),)))
    with tmux_class(tmp_path / "tmux", columns=120, rows=40) as terminal:
        terminal.run(made.argv([]), cwd=made.project, env=made.env)
        terminal.wait_for("bypass permissions on", timeout=60)
        terminal.type("start it")
        terminal.wait_for("1 shell", timeout=60)
        terminal.type("/bg")
        terminal.wait_for("Unknown command: /bg")
        terminal.type("/exit")
        screen = terminal.wait_for("Exit and stop tasks")
        assert "Move to background" not in screen
        terminal.press("Enter")
        # It ends by telling how to go on, which is answered.
        screen = terminal.wait_for("--resume")
    assert list(end_notes(RemainingWork(), screen.encode()))


def test_configured_options_do_not_swallow_the_prompt(guest, api):
    done = guest(KEY).run(
        "-p", "--", "-a prompt-", configured=["--add-dir", "/usr", "--allowedTools", "Bash"]
    )
    assert done.returncode == 0, done.stderr.decode()
    assert api.wait_for_task("-a prompt-", timeout_s=1)


def test_claudes_own_commands_get_no_configured_options(guest):
    done = guest(KEY).run("mcp", "list", configured=["--verbose"])
    assert done.returncode == 0, done.stderr.decode()


def test_the_tables_of_options_are_those_of_claudes_help(guest):
    text = guest({}).run("--help", configured=[]).stdout.decode()
    options, _, commands = text.partition("\nCommands:\n")
    seen = 0
    for match in re.finditer(
        r"^  ((?:-\w, )?--[a-zA-Z-]+(?:, --[a-zA-Z-]+)*)((?: [<\[][^>\]]+[>\]])?)(?: |$)",
        options,
        re.MULTILINE,
    ):
        names = match[1].split(", ")
        value = match[2].strip()
        takes = Takes.NOTHING
        if value:
            takes = Takes.VARIADIC if "..." in value else Takes.OPTIONAL if value[0] == "[" else Takes.VALUE
        long = {ALIASES.get(name, name) for name in names}
        assert len(long) == 1, names
        assert OPTIONS.get(long.pop()) is takes, match[0]
        seen += 1
    assert seen > 50
    words = {name for line in re.findall(r"^  (\S+)", commands, re.MULTILINE) for name in line.split("|")}
    assert words == SUBCOMMANDS
