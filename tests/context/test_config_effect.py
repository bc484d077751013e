"""What the schema states is so: the program obeys a setting, or who sets it is told that nothing does."""

import ast
from pathlib import Path

import pytest

from claude_vm.context.config.kinds import WordChoice
from claude_vm.context.config.layers import load_settings
from claude_vm.context.config.schema import settings_table
from claude_vm.context.config.setting import Obeyed

ROOT = Path(__file__).parents[2]
PRODUCT = ("supervisor", "context", "drivers", "bench")

LATER = {key: entry for key, entry in settings_table().items() if entry.setting.later}

ONLY_TODAYS = {
    key
    for key, entry in LATER.items()
    if isinstance(entry.setting.kind, WordChoice)
    and entry.setting.kind.choices == (entry.setting.later.today,)
}
"""Settings with one valid value, which says what is so anyway."""

SAMPLES = {
    "vm.workdir": '"/work"',
    **{
        f"tools.{tool}": "true"
        for tool in ("docker", "node", "python", "chromium", "gpg", "gh", "git", "rust")
    },
    "packages.system": '["jq"]',
    "packages.setup_script": '"true"',
    "setup.scripts": '["script"]',
    "setup.mounts": '["/srv"]',
    "runtime.scripts": '["script"]',
    "context.instructions": '"be brief"',
    "context.instructions_file": '"script"',
    "session.on_disconnect": '"keep"',
    "session.detach_keys": '"ctrl-x"',
    "session.record": "true",
    "session.retention": '"1d"',
    "claude.share": '["skills"]',
    "claude.credentials": '"share"',
    "claude.conversations": "true",
    "network.allow": '["example.org"]',
    "batch.parallel": "2",
    "batch.timeout": '"1m"',
    "batch.retries": "1",
}


def read_by_the_program():
    """Return the dotted keys that some module takes of the settings, also by a name for a section of them."""
    found = set()
    for path in (file for folder in PRODUCT for file in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text())
        # In the class of the settings they are called self.
        names = {"settings": (), **({"self": ()} if path.name == "layers.py" else {})}
        for node in ast.walk(tree):
            if isinstance(node, ast.Assign) and (key := settings_key(node.value, names)) and len(key) == 1:
                names |= {target.id: key for target in node.targets if isinstance(target, ast.Name)}
        found |= {".".join(key) for node in ast.walk(tree) if (key := settings_key(node, names))}
    return found


def settings_key(node, names):
    """Return the parts of the key that an expression takes of the settings; nothing for any other."""
    parts = []
    while isinstance(node, ast.Attribute):
        if node.attr == "settings":  # somebody's settings
            return tuple(reversed(parts))
        parts.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name) or node.id not in names:
        return ()
    return (*names[node.id], *reversed(parts))


def test_a_setting_that_is_stated_to_work_is_read_by_the_program_and_no_other_is():
    assert read_by_the_program() & settings_table().keys() == settings_table().keys() - LATER.keys()


@pytest.fixture
def vain(home):
    """Return what is said of settings with this text as the global file."""

    def said(text, obeyed=Obeyed):
        (home / "script").touch()
        (home / ".claude-vm.toml").write_text(text)
        return load_settings(flags={}, environ={}, home=home).without_effect(obeyed)

    return said


@pytest.mark.parametrize("key", sorted(LATER.keys() - ONLY_TODAYS))
def test_a_setting_that_nothing_obeys_yet_says_so_to_those_that_will(vain, key):
    section, _, name = key.partition(".")
    text = f"[{section}]\n{name} = {SAMPLES[key]}\n"
    by = LATER[key].setting.later.by
    (line,) = vain(text, {by})
    assert line.startswith(f"[{section}] {name} = ")
    assert line.endswith(" has no effect yet (~/.claude-vm.toml:2)")
    assert vain(text, set(Obeyed) - {by}) == ()


@pytest.mark.parametrize(
    "text",
    [
        "[tools]\ndocker = false",
        "[git]\nmode = 'rw'",
        "[network]\nmode = 'open'",
        "[claude]\nshare = []\ncredentials = 'none'\nconversations = false",
        "[session]\nrecord = false\non_disconnect = 'stop'",
        "[vm]\ndisk = 3",
    ],
)
def test_a_setting_that_says_what_is_so_anyway_is_not_in_vain(vain, text):
    assert vain(text) == ()


def test_every_setting_that_nothing_obeys_has_a_value_that_is_told():
    assert SAMPLES.keys() == LATER.keys() - ONLY_TODAYS
    assert {"git.mode", "network.mode"} == ONLY_TODAYS
