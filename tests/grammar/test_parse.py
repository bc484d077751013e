"""From a command line to a request or a text."""

import os
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.context.config.schema import settings_table
from claude_vm.supervisor.cli import main as client
from claude_vm.supervisor.grammar import words
from claude_vm.supervisor.grammar.commands import COMMANDS, REQUESTS
from claude_vm.supervisor.grammar.commands.bench import (
    Bench,
    BenchCompare,
    BenchGate,
    BenchPicture,
    BenchRun,
    BenchTargets,
)
from claude_vm.supervisor.grammar.commands.installation import (
    Completion,
    Doctor,
    RunDaemon,
    ShowDaemon,
    StopDaemon,
    Version,
)
from claude_vm.supervisor.grammar.commands.pool import DrainPool, FillPool, ShowPool
from claude_vm.supervisor.grammar.commands.sessions import Agent, Ps, Shell, Stop
from claude_vm.supervisor.grammar.commands.templates import Clean, CleanAll, Info, ListTemplates, Setup
from claude_vm.supervisor.grammar.declaring import flags_of
from claude_vm.supervisor.grammar.flags import Flags
from claude_vm.supervisor.grammar.parse import Printout, parse
from claude_vm.supervisor.grammar.requests import Group, Request
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
        ("setup --no-agent", Setup(no_agent=True)),
        ("ps", Ps()),
        ("ps --json", Ps(json=True)),
        ("ps --all", Ps(all=True)),
        ("ps --story a1 --json", Ps(story="a1", json=True)),
        ("pool status", ShowPool()),
        ("pool status --json", ShowPool(json=True)),
        ("pool fill", FillPool()),
        ("pool fill 4", FillPool(count=4)),
        ("pool fill 64 --no-wait", FillPool(flags=Flags(no_wait=True), count=64)),
        ("pool drain", DrainPool()),
        ("pool drain --all", DrainPool(all=True)),
        ("stop a b", Stop(sessions=("a", "b"))),
        ("stop --all", Stop(all=True)),
        ("stop -- -A", Stop(sessions=("-A",))),
        ("list", ListTemplates()),
        ("list --disk-usage --unused --json", ListTemplates(disk_usage=True, unused=True, json=True)),
        ("info --json", Info(json=True)),
        ("clean --yes", Clean(yes=True)),
        ("clean --force", Clean(force=True)),
        ("clean-all -y --force", CleanAll(yes=True, force=True)),
        ("daemon run", RunDaemon()),
        ("daemon status --json", ShowDaemon(json=True)),
        ("daemon stop --force", StopDaemon(force=True)),
        ("bench", BenchRun(rounds=20)),
        (
            "bench run --modes warm,clone --patterns burst --rounds 3 --json a --csv b --picture c",
            BenchRun(
                modes=("warm", "clone"),
                patterns=("burst",),
                rounds=3,
                json="a",
                csv="b",
                picture="c",
            ),
        ),
        ("bench targets", BenchTargets(rounds=20)),
        ("bench targets F1 F10 --rounds 5", BenchTargets(figures=("F1", "F10"), rounds=5)),
        ("bench compare a b", BenchCompare(before="a", after="b")),
        ("bench gate f --result r", BenchGate(file="f", result="r")),
        ("bench picture r p.png", BenchPicture(result="r", file="p.png")),
        ("doctor --json", Doctor(json=True)),
        ("version", Version()),
        ("version --json", Version(json=True)),
    ],
)
def test_each_command_line_makes_its_request(argv, request_):
    assert parse(argv.split()) == request_


def declared_commands():
    """Every command line that names a command, with what it makes. What it must be given besides is given."""
    for command in COMMANDS.values():
        is_group = isinstance(command, Group)
        for each in command.commands if is_group else (command,):
            group = f"{command.command} " if is_group else ""
            needed = {BenchCompare: " a b", BenchGate: " f", BenchPicture: " r p.png", Stop: " a"}
            yield f"{group}{each.command}{needed.get(each, '')}", each


@pytest.mark.parametrize(
    ("argv", "kind"), [row for row in declared_commands() if row[1] is not Completion], ids=str
)
def test_every_declared_command_is_made_by_its_name(argv, kind):
    assert type(parse(argv.split())) is kind


def test_every_request_is_declared_as_a_command():
    def below(kind):
        return {kind, *(found for child in kind.__subclasses__() for found in below(child))}

    assert {kind for kind in below(Request) if kind.command} == set(REQUESTS)


def test_the_thin_client_knows_without_parsing_what_no_daemon_can_do():
    for argv, kind in declared_commands():
        assert client._is_for_us(argv.split()) or not issubclass(kind, (Bench, RunDaemon))
    assert client._is_for_us(["--no-daemon", "ps"])


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
    [*sorted(COMMANDS.keys() - {"completion", "stop", "daemon", "pool"}), "daemon run", "pool fill 2"],
)
def test_runtime_flags_are_taken_before_and_after_every_sub_command(command):
    named = command.split()
    before = parse([*ALL_FLAGS, *named])
    after = parse([*named, *ALL_FLAGS])
    assert before == after
    assert before.flags == AS_RECORD


def test_a_flag_sets_a_setting_that_there_is_and_is_given_on_under_its_key():
    flags = [flag for flag, _ in flags_of(Flags)]
    for flag in flags:
        assert {flag.sets, flag.adds_to} - {""} <= settings_table().keys()
    given = parse(["--disk", "3", "--publish", "1", "--publish=2", "--env", "A=1"]).flags.settings
    assert {key: (found.value, found.where) for key, found in given.items()} == {
        "vm.disk": ("3", "--disk"),
        "network.publish": (("1", "2"), "--publish"),
    }
    assert parse(["--disk=", "ps"]).flags.settings["vm.disk"].value == ""  # which is no number


def test_nothing_that_a_later_version_will_have_is_there_already():
    assert words.LATER_FLAGS.isdisjoint(words.RUNTIME_FLAGS)
    assert words.LATER_COMMANDS.isdisjoint(COMMANDS)
    for _, kind in declared_commands():
        assert kind.later.isdisjoint(flag.name for flag, _ in flags_of(kind))


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
    assert parse(["--", *hostile]) == Agent(args=hostile)
    assert parse(["shell", "--", *hostile]) == Shell(words=hostile)
    assert parse(["x", *hostile]) == Agent(args=("x", *hostile))


def test_bytes_that_are_no_utf8_survive_in_values():
    name = os.fsdecode(b"/\xff")
    assert parse(["--mount", name, "stop", name]) == Stop(sessions=(name,), flags=Flags(mounts=(name,)))


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
        ("pool frobnicate", "'frobnicate' is not a command of `claude-vm pool`"),
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
    answer = parse(argv.split())
    assert isinstance(answer, Printout)
    assert (answer.status, answer.to_stderr) == (2, True)
    assert printed(answer.lines).startswith("claude-vm: ")
    assert " [usage]\n" in printed(answer.lines)
    assert says in printed(answer.lines)
    assert "--help'.\n" in printed(answer.lines)


def test_error_names_the_sub_command_whose_help_says_more():
    assert "Try 'claude-vm setup --help'." in printed(parse(["setup", "--docker"]).lines)
    assert "Try 'claude-vm daemon stop --help'." in printed(parse(["daemon", "stop", "x"]).lines)


def test_control_characters_of_a_wrong_word_do_not_reach_the_terminal():
    answer = parse(["ps", "--\x1b[2J\x9b\u202e\udcff"])
    assert answer.status == 2
    assert all(character == "\n" or character.isprintable() for character in printed(answer.lines))


@pytest.mark.parametrize(
    "argv",
    ["--help", "-A --help", "shell --help", "ps -h", "daemon --help", "daemon stop -h"],
)
def test_help_is_a_text_with_status_0(argv):
    answer = parse(argv.split())
    assert (answer.status, answer.to_stderr) == (0, False)
    assert printed(answer.lines).startswith("Usage: claude-vm")


def test_help_names_every_sub_command_flag_example_and_exit_status():
    text = printed(parse(["--help"]).lines)
    for word in (*COMMANDS, *words.RUNTIME_FLAGS, "-A", "Examples:", "125", "128+n", "--version"):
        assert word in text


@pytest.mark.parametrize("columns", [1, 50, 80, 1000])
def test_help_fits_the_terminal(columns):
    text = printed(parse(["--help"], columns=columns).lines)
    prose = text.partition("Examples:")[0]
    assert max(map(len, prose.splitlines())) <= min(max(columns, 50), 100)


def test_program_name_of_an_alias_shows_in_help():
    assert printed(parse(["--help"], program="claude-vm-x").lines).startswith("Usage: claude-vm-x ")


@pytest.mark.parametrize("argv", ["--version", "-A --version x", "ps --version", "shell --version"])
def test_version_is_one_line(argv):
    answer = parse(argv.split())
    assert answer.status == 0
    assert printed(answer.lines).startswith("claude-vm ")
    assert printed(answer.lines).count("\n") == 1


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(), max_size=5),
            st.sampled_from(sorted(words.RUNTIME_FLAGS) + sorted(COMMANDS) + ["--json", "-h", "--", "-v"]),
        ),
        max_size=6,
    )
)
def test_any_words_give_a_request_or_a_printable_text(argv):
    answer = parse(argv)
    if isinstance(answer, Printout):
        shown = printed(answer.lines)
        assert len(shown.splitlines()) == len(answer.lines)
        assert not any(unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"} for c in shown if c not in "\n\t")
    else:
        assert isinstance(answer, Request)
