"""From a command line to a request or a text."""

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.supervisor.grammar import requests, words
from claude_vm.supervisor.grammar.application import application
from claude_vm.supervisor.grammar.parse import COMPLETE_VARIABLE, Output, parse
from claude_vm.supervisor.grammar.requests import (
    Agent,
    Bench,
    Clean,
    CleanAll,
    Daemon,
    Doctor,
    Flags,
    Info,
    ListTemplates,
    Pool,
    Ps,
    Setup,
    Shell,
    Stop,
    Version,
)
from claude_vm.supervisor.wire.escape import printed


@pytest.fixture(autouse=True)
def nothing_is_printed(capfd):
    yield
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


@pytest.mark.parametrize(
    ("argv", "request_"),
    [
        ("", Agent()),
        ("fix", Agent(args=("fix",))),
        ("agent --version", Agent(args=("--version",))),
        ("shell", Shell()),
        ("shell ls -A", Shell(words=("ls", "-A"))),
        ("setup", Setup()),
        ("setup --no-agent", Setup(agent=False)),
        ("ps", Ps()),
        ("ps --json", Ps(json=True)),
        ("ps --all", Ps(all=True)),
        ("ps --story a1 --json", Ps(story="a1", json=True)),
        ("pool status", Pool(action="status")),
        ("pool status --json", Pool(action="status", json=True)),
        ("pool fill", Pool(action="fill")),
        ("pool fill 4", Pool(action="fill", count=4)),
        ("pool fill 64 --no-wait", Pool(flags=Flags(no_wait=True), action="fill", count=64)),
        ("pool drain", Pool(action="drain")),
        ("pool drain --all", Pool(action="drain", all=True)),
        ("stop a b", Stop(sessions=("a", "b"))),
        ("stop --all", Stop(all=True)),
        ("stop -- -A", Stop(sessions=("-A",))),
        ("list", ListTemplates()),
        ("list --disk-usage --unused --json", ListTemplates(disk_usage=True, unused=True, json=True)),
        ("info --json", Info(json=True)),
        ("clean --yes", Clean(yes=True)),
        ("clean --force", Clean(force=True)),
        ("clean-all -y --force", CleanAll(yes=True, force=True)),
        ("daemon run", Daemon(action="run")),
        ("daemon status --json", Daemon(action="status", json=True)),
        ("daemon stop --force", Daemon(action="stop", force=True)),
        ("bench", Bench(action="run", rounds=20)),
        (
            "bench run --modes warm,clone --patterns burst --rounds 3 --json a --csv b --picture c",
            Bench(
                action="run",
                modes=("warm", "clone"),
                patterns=("burst",),
                rounds=3,
                json="a",
                csv="b",
                picture="c",
            ),
        ),
        ("bench targets", Bench(action="targets", rounds=20)),
        ("bench targets F1 F10 --rounds 5", Bench(action="targets", figures=("F1", "F10"), rounds=5)),
        ("bench compare a b", Bench(action="compare", files=("a", "b"))),
        ("bench gate f --result r", Bench(action="gate", files=("f",), result="r")),
        ("bench picture r p.png", Bench(action="picture", files=("r", "p.png"))),
        ("doctor --json", Doctor(json=True)),
        ("version", Version()),
        ("version --json", Version(json=True)),
    ],
)
def test_each_command_line_makes_its_request(argv, request_):
    assert parse(argv.split(), completing="") == request_


COMMAND_LINES = (
    *("x", "shell", "setup", "ps", "stop a", "list", "info", "clean", "clean-all", "daemon run", "doctor"),
    *("bench", "version", "pool status"),
)


def test_every_request_has_a_command_that_makes_it():
    made = {type(parse(argv.split(), completing="")).__name__ for argv in COMMAND_LINES}
    declared = {
        name
        for name, kind in vars(requests).items()
        if isinstance(kind, type) and issubclass(kind, requests.Request) and kind is not requests.Request
    }
    assert made == declared


ALL_FLAGS = (
    *("--disk", "30", "--memory=4", "--cpus", "2", "--driver", "sim", "--mount", "/a", "--mount=/b:ro"),
    *("--env", "A=1", "--env", "B=", "--env-file", "f", "--inherit-env", "HOME"),
    *("-A", "--auto-setup", "--any-directory", "--no-daemon", "--no-wait", "-v"),
)
AS_RECORD = Flags(
    disk="30",
    memory="4",
    cpus="2",
    driver="sim",
    mounts=("/a", "/b:ro"),
    env=("A=1", "B="),
    env_files=("f",),
    inherit_env=("HOME",),
    forward_ssh_agent=True,
    auto_setup=True,
    no_wait=True,
    any_directory=True,
    no_daemon=True,
    verbose=True,
)


@pytest.mark.parametrize(
    "command",
    [*sorted(words.COMMANDS - {"completion", "stop", "daemon", "pool"}), "daemon run", "pool fill 2"],
)
def test_runtime_flags_are_taken_before_and_after_every_sub_command(command):
    named = command.split()
    before = parse([*ALL_FLAGS, *named], completing="")
    after = parse([*named, *ALL_FLAGS], completing="")
    assert before == after
    assert before.flags == AS_RECORD


def test_every_runtime_flag_of_the_splitter_is_declared_and_the_other_way_round():
    declared = {
        name: not parameter.is_flag
        for parameter in application().params
        for name in parameter.opts
        if name.startswith("--") and name != "--version"
    }
    short = {name[1:] for parameter in application().params for name in parameter.opts if name[1] != "-"}
    assert declared == dict(words.RUNTIME_FLAGS)
    assert short == set(words.SHORT_FLAGS)
    assert set(application().commands) == words.COMMANDS


def test_claudes_arguments_survive_byte_for_byte():
    hostile = (
        "",
        " ",
        "a b",
        "'\"",
        "$(x)",
        "\n",
        "\x1b[2J",
        "-rf",
        "--",
        "-A",
        os.fsdecode(b"\xff\xfe"),
        "é\u202e",
    )
    assert parse(["--", *hostile], completing="") == Agent(args=hostile)
    assert parse(["shell", "--", *hostile], completing="") == Shell(words=hostile)
    assert parse(["x", *hostile], completing="") == Agent(args=("x", *hostile))


def test_bytes_that_are_no_utf8_survive_in_values():
    name = os.fsdecode(b"/\xff")
    assert parse(["--mount", name, "stop", name], completing="") == Stop(
        sessions=(name,), flags=Flags(mounts=(name,))
    )


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        ("ps --jsno", "--json"),
        ("ps extra", "extra"),
        ("ps --story", "--story needs a value"),
        ("ps --story=", "with --story"),
        ("ps --story a1 --all", "with --story"),
        ("ps --stroy a1", "--story"),
        ("daemon", "needs one of its commands: run, status, stop"),
        ("daemon stpo", "stop"),
        ("pool", "needs one of its commands: status, fill, drain"),
        ("pool fill 0", "N is a whole number from 1 to 64, not '0'"),
        ("pool fill 65", "1 to 64"),
        ("pool fill abc", "N is a whole number from 1 to 64, not 'abc'"),
        ("pool fill " + "9" * 5000, "1 to 64"),
        ("pool fill ²", "1 to 64"),
        ("pool fill a\\b", "not 'a\\b'"),
        ("bench run --rounds x", "--rounds is a whole number"),
        ("ps --json=1", "--json takes no value"),
        ("bench run --modes", "--modes needs a value"),
        ("pool frobnicate", "'frobnicate' is no command of `claude-vm pool`"),
        ("completion", "SHELL is missing: one of bash, zsh, fish"),
        ("bench compare a", "B is missing"),
        ("pool fill 1 2", "2"),
        ("pool drain x", "x"),
        ("pool status --all", "--all"),
        ("completion", "SHELL"),
        ("completion tcsh", "bash"),
        ("stop", "--all"),
        ("stop a --all", "not both"),
        ("-v -q", "exclude"),
        ("--disk", "--disk needs a value"),
        ("setup --chromium", "not available yet"),
        ("clean --yse", "--yes"),
    ],
)
def test_wrong_command_line_is_answered_with_status_2_on_stderr(argv, says):
    answer = parse(argv.split(), completing="")
    assert isinstance(answer, Output)
    assert (answer.status, answer.to_stderr) == (2, True)
    assert printed(answer.lines).startswith("claude-vm: ")
    assert " [usage]\n" in printed(answer.lines)
    assert says in printed(answer.lines)
    assert "--help'.\n" in printed(answer.lines)


def test_error_names_the_sub_command_whose_help_says_more():
    assert "Try 'claude-vm setup --help'." in printed(parse(["setup", "--docker"], completing="").lines)
    assert "Try 'claude-vm daemon stop --help'." in printed(
        parse(["daemon", "stop", "x"], completing="").lines
    )


def test_control_characters_of_a_wrong_word_do_not_reach_the_terminal():
    answer = parse(["ps", "--\x1b[2J\x9b\u202e\udcff"], completing="")
    assert answer.status == 2
    assert all(character == "\n" or character.isprintable() for character in printed(answer.lines))


@pytest.mark.parametrize(
    "argv",
    ["--help", "-A --help", "shell --help", "ps -h", "daemon --help", "daemon stop -h"],
)
def test_help_is_a_text_with_status_0(argv):
    answer = parse(argv.split(), completing="")
    assert (answer.status, answer.to_stderr) == (0, False)
    assert printed(answer.lines).startswith("Usage: claude-vm")


def test_help_names_every_sub_command_flag_example_and_exit_status():
    text = printed(parse(["--help"], completing="").lines)
    for word in (*words.COMMANDS, *words.RUNTIME_FLAGS, "-A", "Examples:", "125", "128+n", "--version"):
        assert word in text


@pytest.mark.parametrize("columns", [1, 50, 80, 1000])
def test_help_fits_the_terminal(columns):
    text = printed(parse(["--help"], columns=columns, completing="").lines)
    prose = text.partition("Examples:")[0]
    assert max(map(len, prose.splitlines())) <= min(max(columns, 50), 100)


def test_program_name_of_an_alias_shows_in_help():
    assert printed(parse(["--help"], program="claude-vm-x", completing="").lines).startswith(
        "Usage: claude-vm-x "
    )


@pytest.mark.parametrize("argv", ["--version", "-A --version x", "ps --version", "shell --version"])
def test_version_is_one_line(argv):
    answer = parse(argv.split(), completing="")
    assert answer.status == 0
    assert printed(answer.lines).startswith("claude-vm ")
    assert printed(answer.lines).count("\n") == 1


def test_environment_asks_for_completion_unless_the_caller_says_otherwise(monkeypatch):
    monkeypatch.setenv(COMPLETE_VARIABLE, "bash")
    assert parse(["in"]) == Output(lines=("info",))
    assert parse(["in"], completing="") == Agent(args=("in",))


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(), max_size=5),
            st.sampled_from(
                sorted(words.RUNTIME_FLAGS) + sorted(words.COMMANDS) + ["--json", "-h", "--", "-v"]
            ),
        ),
        max_size=6,
    )
)
def test_any_words_give_a_request_or_a_printable_text(argv):
    answer = parse(argv, completing="")
    if isinstance(answer, Output):
        shown = printed(answer.lines)
        assert len(shown.splitlines()) == len(answer.lines)
        assert not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in shown if c not in "\n\t")
    else:
        assert isinstance(answer, requests.Request)
