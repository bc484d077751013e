import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.context.claude_command import (
    ALIASES,
    OPTIONS,
    PERMISSION_OPTIONS,
    SKIP_PERMISSIONS,
    SUBCOMMANDS,
    Takes,
    background_word,
    claude_argv,
)

SKIP = SKIP_PERMISSIONS


@pytest.mark.parametrize(
    ("args", "configured", "expected"),
    [
        # what is configured
        ([], None, [SKIP]),
        (["fix it"], None, ["fix it", SKIP]),
        (["fix it"], [], ["fix it"]),
        (["fix it"], ["--verbose"], ["fix it", SKIP, "--verbose"]),
        (["x"], ["--permission-mode", "plan"], ["x", "--permission-mode", "plan"]),
        (["x"], ["--permission-mode=plan"], ["x", "--permission-mode=plan"]),
        (["x"], [SKIP, "--verbose", SKIP], ["x", SKIP, "--verbose"]),
        (["x"], ["--max-tokens", "4096"], ["x", SKIP, "--max-tokens", "4096"]),
        # an option that is typed drops out, in any spelling, with its values
        ([SKIP, "x"], None, [SKIP, "x"]),
        (["--model", "opus"], ["--model", "sonnet", "--verbose"], ["--model", "opus", SKIP, "--verbose"]),
        (["--model=opus"], ["--model", "sonnet"], ["--model=opus", SKIP]),
        (
            ["x", "--add-dir", "/a"],
            ["--add-dir", "/b", "/c", "--ide"],
            ["x", "--add-dir", "/a", SKIP, "--ide"],
        ),
        (["--allowed-tools", "Bash"], ["--allowedTools", "Edit"], ["--allowed-tools", "Bash", SKIP]),
        (["-pc", "x"], ["--print", "-c"], ["-pc", "x", SKIP]),
        (["-n", "mine"], ["--name", "theirs"], ["-n", "mine", SKIP]),
        (["--later-option", "1"], ["--later-option", "2"], ["--later-option", "1", SKIP]),
        # who chooses how permissions work is not overruled
        (["--permission-mode", "plan", "x"], None, ["--permission-mode", "plan", "x"]),
        (["x"], ["--permission-mode", "plan", SKIP], ["x", "--permission-mode", "plan", SKIP]),
        ([SKIP], ["--permission-mode", "plan", "--ide"], [SKIP, "--ide"]),
        (["--restricted", "-p", "x"], None, ["--restricted", "-p", "x"]),
        # an option's value is no option
        (["--append-system-prompt", SKIP], None, ["--append-system-prompt", SKIP, SKIP]),
        (
            ["--append-system-prompt", "--model"],
            ["--model", "a"],
            ["--append-system-prompt", "--model", SKIP, "--model", "a"],
        ),
        (
            ["x"],
            ["--append-system-prompt", "--permission-mode"],
            ["x", SKIP, "--append-system-prompt", "--permission-mode"],
        ),
        # the prompt is never swallowed
        (["-p", "--", "-x"], ["--add-dir", "/a"], ["-p", SKIP, "--add-dir", "/a", "--", "-x"]),
        (["--"], None, [SKIP, "--"]),
        (["--system-prompt", "--", "x"], None, ["--system-prompt", "--", "x", SKIP]),
        (["--", "a", "--", "b"], None, [SKIP, "--", "a", "--", "b"]),
        (["x"], ["--ide", "--", "-y"], ["x", SKIP, "--ide", "--", "-y"]),
        (["--resume"], [SKIP, "word"], ["--resume", SKIP, "word"]),
        (["--resume"], ["word", SKIP], ["--resume", SKIP, "--", "word"]),
        (["--resume", "--", "x"], ["word", SKIP], ["--resume", SKIP, "--", "x", "word"]),
        (
            ["--model", "a"],
            ["--debug", "--model", "b", "word"],
            ["--model", "a", SKIP, "--debug", "--", "word"],
        ),
        # Claude must find its own mistakes and sub-commands
        (["-p", "--model"], None, ["-p", "--model"]),
        (["--add-dir"], ["--ide"], ["--add-dir"]),
        (["mcp", "list"], None, ["mcp", "list"]),
        (["--debug=x", "doctor"], ["--ide"], ["--debug=x", "doctor"]),
        (["--", "mcp"], None, [SKIP, "--", "mcp"]),
        (["--model", "mcp"], None, ["--model", "mcp", SKIP]),
        (["what is mcp"], None, ["what is mcp", SKIP]),
        # odd words
        (["", "-", "-p"], None, ["", "-", "-p", SKIP]),
        (["-dhooks", "x"], ["--debug"], ["-dhooks", "x", SKIP]),
        (["--add-dir=/a", "/b"], ["--ide"], ["--add-dir=/a", "/b", SKIP, "--ide"]),
    ],
)
def test_the_command_line_is_put_together(args, configured, expected):
    assert claude_argv(args, configured) == expected


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["--bg", "fix it"], "--bg"),
        (["fix it", "--background"], "--background"),
        (["--bg=yes", "fix it"], "--bg=yes"),
        (["-p", "fix it", "--background=1"], "--background=1"),
        (["--resume", "--bg"], "--bg"),
        (["--debug", "--bg", "x"], "--bg"),
        (["--add-dir", "/a", "/b", "--bg"], "--bg"),
        (["--some-later-option", "--bg", "x"], "--bg"),
        (["agents", "--json"], "agents"),
        (["attach", "3f2a"], "attach"),
        (["logs"], "logs"),
        (["kill", "3f2a"], "kill"),
        (["stop", "3f2a"], "stop"),
        (["respawn", "--all"], "respawn"),
        (["rm", "3f2a"], "rm"),
        (["daemon", "status"], "daemon"),
        # words that only look like it
        ([], ""),
        (["what does --bg do?"], ""),
        (["-p", "--", "--bg"], ""),
        (["--append-system-prompt", "--bg", "x"], ""),
        (["--bgx", "x"], ""),
        (["stop the server"], ""),
        (["please", "stop"], ""),
        (["-p", "logs"], ""),
        (["--verbose", "attach", "x"], ""),
        (["--", "logs"], ""),
        (["doctor"], ""),
        (["mcp", "list"], ""),
    ],
)
def test_work_in_the_background_is_found_and_nothing_else(words, found):
    assert background_word(words) == found


words = st.one_of(
    st.sampled_from([*OPTIONS, *ALIASES, "--", "-", "", "--model=x", "--add-dir=x", "-pc", "--what"]),
    st.text(max_size=5),
)
lists = st.lists(words, max_size=8)


@given(lists, st.none() | lists)
def test_what_was_typed_stays_byte_for_byte_and_in_order(args, configured):
    got = claude_argv(args, configured)
    rest = iter(got)
    assert all(word in rest for word in args)  # a subsequence
    assert got[: len(args)] == args or "--" in args


@given(lists)
def test_an_empty_list_adds_nothing(args):
    assert claude_argv(args, []) == args


@given(lists, lists.filter(bool))
def test_nothing_but_what_is_configured_is_added(args, configured):
    extra = list(claude_argv(args, configured))
    for word in args:
        extra.remove(word)
    assert not set(extra) - {*configured, SKIP, "--"}


@given(
    st.lists(st.sampled_from([SKIP, "--verbose", "--model=x", "word"])),
    st.lists(st.sampled_from([SKIP, "--ide"])),
)
def test_the_flag_is_never_added_twice(args, configured):
    assert claude_argv(args, configured).count(SKIP) <= max(1, args.count(SKIP))


@given(st.text().filter(lambda text: text not in SUBCOMMANDS and not text.startswith("-")), lists)
def test_a_prompt_is_not_taken_for_an_options_value(prompt, configured):
    got = claude_argv([prompt], configured)
    assert got[0] == prompt  # first: no option stands before it
    got = claude_argv(["-p", "--", prompt], configured)
    # what stands behind the user's own "--": the prompt first, then words that the configuration gives
    after = [got[position + 1 :] for position, word in enumerate(got) if word == "--"]
    assert any(words[:1] == [prompt] for words in after)


def test_every_alias_and_permission_option_is_in_the_tables():
    assert set(ALIASES.values()) <= set(OPTIONS)
    assert set(OPTIONS) >= PERMISSION_OPTIONS
    assert Takes.UNKNOWN not in OPTIONS.values()


def test_what_many_configured_options_cost_grows_with_their_number():
    unknown = [f"-{letter}" for letter in "eijkl"]

    def cost(count):
        words = [*unknown * count, *["-c"] * count]
        begin = time.process_time()
        claude_argv([], words)
        return time.process_time() - begin

    assert cost(8000) < 40 * cost(800)
