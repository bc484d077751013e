"""Reading the layers and laying them over each other."""

import os
from pathlib import Path

import pytest

from claude_vm.context.config import layers as module
from claude_vm.context.config.layers import load_settings, merge
from claude_vm.context.config.problems import ConfigError
from claude_vm.context.config.schema import ALIASES, Sections, settings_table
from claude_vm.context.config.setting import Layer, Obeyed, Value
from claude_vm.context.config.sources import Source, read_file
from claude_vm.context.mount_specs import MountSpec
from claude_vm.context.ports import PortSpec
from claude_vm.supervisor.wire.escape import escape_line


@pytest.fixture
def load(home):
    """Load settings with this text as the global file."""

    def loaded(text="", *, flags=None, environ=None):
        if text:
            (home / ".claude-vm.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
        given = {key: Value(text, f"--{key.partition('.')[2]}") for key, text in (flags or {}).items()}
        return load_settings(flags=given, environ=environ or {}, home=home)

    return loaded


@pytest.fixture
def problems(load):
    """Return the problems of a global file, flags and an environment."""

    def found(text="", **more):
        with pytest.raises(ConfigError) as caught:
            load(text, **more)
        assert caught.value.code == "bad-config"
        for problem in caught.value.problems:
            assert str(problem) in str(caught.value)
        return [str(problem) for problem in caught.value.problems]

    return found


def test_without_anything_all_is_default(load):
    settings = load()
    assert (settings.vm.disk, settings.vm.memory, settings.vm.cpus) == (20, 8, 4)
    assert settings.driver.name == "auto"
    assert settings.defaults.claude_args is None
    assert settings.network.ca == "host"
    assert settings.mounts == ()
    assert {settings.origin(key) for key in settings_table()} == {"default"}
    assert settings.where("vm.disk") == "default"


def test_flag_beats_environment_beats_file_beats_default(load):
    text = "[vm]\ndisk = 1\nmemory = 2\ncpus = 3\n[driver]\nname = 'sim'\n"
    settings = load(
        text,
        environ={"CLAUDE_VM_DISK": "11", "CLAUDE_VM_MEMORY": "12"},
        flags={"vm.disk": "21"},
    )
    assert (settings.vm.disk, settings.vm.memory, settings.vm.cpus, settings.driver.name) == (
        21,
        12,
        3,
        "sim",
    )
    assert [settings.origin(f"vm.{key}") for key in ("disk", "memory", "cpus", "image")] == [
        "flag",
        "environment",
        "global",
        "default",
    ]
    assert settings.where("vm.disk") == "--disk"
    assert settings.where("vm.memory") == "CLAUDE_VM_MEMORY"
    assert settings.where("vm.cpus") == "~/.claude-vm.toml:4"


def test_explicit_value_wins_also_when_it_equals_the_default(load):
    settings = load("vm.disk = 40\nvm.memory = 8", flags={"vm.disk": "20"})
    assert (settings.vm.disk, settings.origin("vm.disk")) == (20, "flag")
    assert settings.origin("vm.memory") == "global"


def test_every_layer_wins_over_all_before_it():
    for count in range(1, len(Layer)):
        sources = [
            Source(layer, {"vm.disk": Value(int(layer) + 100, layer.title)})
            for layer in Layer
            if 0 < layer <= count
        ]
        settings = merge(sources[::-1])
        assert settings.vm.disk == count + 100
        assert settings.origin("vm.disk") == Layer(count).title


def test_lists_add_up_over_the_layers_each_item_once():
    settings = merge(
        [
            Source(
                Layer.PROJECT,
                {
                    "runtime.scripts": Value((Path("/b"), Path("/a")), "p"),
                    "packages.setup_script": Value("two", "p"),
                    "defaults.claude_args": Value(("p",), "p"),
                    "mounts": Value((MountSpec("/m"),), "project:7"),
                },
            ),
            Source(
                Layer.GLOBAL,
                {
                    "runtime.scripts": Value((Path("/a"), Path("/c")), "g"),
                    "packages.setup_script": Value("one", "g"),
                    "defaults.claude_args": Value(("g",), "g"),
                    "mounts": Value((MountSpec("/n", "/v", writable=False),), "global:3"),
                },
            ),
        ]
    )
    assert settings.runtime.scripts == (Path("/a"), Path("/c"), Path("/b"))
    assert settings.packages.setup_script == ("one", "two")
    assert settings.defaults.claude_args == ("p",)
    assert settings.mounts == (
        MountSpec("/n", "/v", writable=False, source="global:3"),
        MountSpec("/m", source="project:7"),
    )
    assert settings.origin("runtime.scripts") == "project"


def test_nearer_layer_switches_a_tool_off():
    on = Source(Layer.GLOBAL, {"tools.docker": Value(True, "g"), "tools.node": Value(True, "g")})
    off = Source(Layer.PROJECT, {"tools.docker": Value(False, "p")})
    settings = merge([on, off])
    assert (settings.tools.docker, settings.tools.node) == (False, True)


def test_nearest_layer_that_sets_instructions_either_way_wins():
    text = Source(Layer.GLOBAL, {"context.instructions": Value("x", "g")})
    file = Source(Layer.PROJECT, {"context.instructions_file": Value(Path("/f"), "p")})
    both = Source(
        Layer.PROJECT,
        {"context.instructions_file": Value(Path("/f"), "p"), "context.instructions": Value("y", "p")},
    )
    assert merge([text, file]).context.instructions is None
    assert merge([text, file]).context.instructions_file == Path("/f")
    assert merge([text, file]).origin("context.instructions") == "default"
    assert merge([text, both]).context.instructions == "y"
    assert merge([text, both]).context.instructions_file is None


def test_empty_instructions_count_as_unset(load):
    settings = load('[context]\ninstructions = ""\ninstructions_file = ""\n')
    assert settings.context.instructions is None
    assert settings.origin("context.instructions") == "default"


def test_empty_claude_args_are_not_unset(load):
    assert load("[defaults]\nclaude_args = []").defaults.claude_args == ()


def test_vm_driver_is_another_name_of_driver_name(load, problems):
    settings = load('[vm]\ndriver = "sim"\n')
    assert (settings.driver.name, settings.where("driver.name")) == ("sim", "~/.claude-vm.toml:2")
    assert problems('[vm]\ndriver = "sim"\n[driver]\nname = "qemu"\n') == [
        "~/.claude-vm.toml:4: driver.name: is the same as vm.driver; set only one of them"
    ]


def test_values_have_their_types_and_units(load, home):
    (home / "s.sh").write_text("")
    (home / "dir").mkdir()
    (home / "dir/t.sh").write_text("")
    settings = load(
        """
        [pool]
        idle_timeout = "1h30m"
        memory_budget = "16GB"
        [runtime]
        scripts = ["s.sh", "~/dir/t.sh"]
        [network]
        publish = ["3000", "8080:80"]
        [batch]
        parallel = 3
        [packages]
        system = ["libc6:amd64=2.36-9+deb12u7~x", "python3-*"]
        [[mounts]]
        location = "~/data"
        [[mounts]]
        location = "/d"
        mount_point = "/v"
        writable = false
        """
    )
    assert settings.pool.idle_timeout == 5400
    assert settings.runtime.scripts == (home / "s.sh", home / "dir/t.sh")
    assert settings.network.publish == (PortSpec(3000, 3000), PortSpec(80, 8080))
    assert settings.batch.parallel == 3
    assert settings.mounts == (
        MountSpec("~/data", source="~/.claude-vm.toml:13"),
        MountSpec("/d", "/v", writable=False, source="~/.claude-vm.toml:13"),
    )


def test_mounts_may_be_texts(load):
    assert load('mounts = ["/a:ro"]').mounts == (
        MountSpec("/a", writable=False, source="~/.claude-vm.toml:1"),
    )


def test_settings_of_later_versions_that_are_set_are_named(load):
    settings = load(
        "[vm]\ndisk = 3\n[tools]\ndocker = true\n[session]\nretention = '10d'\n[batch]\nretries = 2"
    )
    assert settings.without_effect({Obeyed.TEMPLATE, Obeyed.SESSION}) == (
        "[tools] docker = true has no effect yet (~/.claude-vm.toml:4)",
        "[session] retention = '10d' has no effect yet (~/.claude-vm.toml:6)",
    )
    assert len(settings.without_effect({Obeyed.TEMPLATE})) == 1
    assert len(settings.without_effect(Obeyed)) == 3


def test_one_report_has_every_problem_of_every_layer(problems):
    found = problems(
        "[vm]\ndisk = 5000\nmemroy = 3\n[tools]\nnode = 1\n"
        '[runtime]\nscripts = [\n "gone.sh",\n]\n[pol]\nsize = 1\n',
        environ={"CLAUDE_VM_CPUS": "many", "CLAUDE_VM_DRIVER": "qmu"},
        flags={"vm.disk": "0"},
    )
    assert [line.partition(": ")[0] for line in found] == [
        "~/.claude-vm.toml:2",
        "~/.claude-vm.toml:3",
        "~/.claude-vm.toml:5",
        "~/.claude-vm.toml:8",
        "~/.claude-vm.toml:10",
        "environment",
        "environment",
        "command line",
    ]
    text = "\n".join(found)
    assert "~/.claude-vm.toml:2: vm.disk = 5000: is out of range; valid: 1-1000" in found
    assert "vm.memroy = 3: is not a key (did you mean vm.memory?)" in text
    assert "(did you mean qemu?)" in text
    assert "pol: is not a section (did you mean pool?)" in text
    assert "--disk = '0': is out of range; valid: 1-1000" in text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("vm = 3", "1: vm = 3: is an integer, not a table"),
        ("[vm]\ndisk = true", "2: vm.disk = true: is a boolean, not an integer"),
        ("[vm]\ndisk = 20.0", "is a float, not an integer"),
        ("[vm]\ndisk = 0", "is out of range; valid: 1-1000"),
        ("[vm]\ndisk = 1979-05-27", "is a date or time, not an integer"),
        ("[vm]\nworkdir = 'work'", "valid: an absolute path"),
        ("[vm]\nimage = 'x'", "does not exist"),
        ("[vm]\nimage = ''", "is empty"),
        ("[tools]\ndocker = 'yes'", "is a string, not a boolean"),
        ("[defaults]\nclaude_args = '-p'", "is a string, not an array"),
        (
            "[defaults]\nclaude_args = ['-p',\n1]",
            "3: defaults.claude_args = 1: item 2 is an integer, not a string",
        ),
        ('[defaults]\nclaude_args = ["a\\u0000"]', "has a NUL character"),
        ("[pool]\nidle_timeout = '30'", "is not a time with a unit"),
        ("[pool]\nidle_timeout = '0s'", "is out of range"),
        ("[pool]\nmax_age = '99999d'", "is out of range"),
        (
            "[pool]\nmax_age = '59s'",
            "30d or 1h30m, 60s at least",
        ),
        ("[pool]\nmemory_budget = '101%'", "valid: 1%-100%"),
        ("[session]\ndetach_keys = 'ctrl-p,'", "valid: keys such as"),
        ("[session]\non_disconnect = 'kepe'", "did you mean keep?"),
        ("[claude]\nshare = ['/etc']", "item 1 is not of this form"),
        ("[network]\nmode = 'offline'", "is not available yet, so nothing would enforce it"),
        ("[git]\nmode = 'protect'", "is not available yet, so nothing would enforce it"),
        ("[network]\npublish = ['70000']", "has a number that is not a port (1-65535)"),
        ("[network]\npublish = 'all'", "is not one of these words"),
        ("[network]\nallow = ['a b']", "item 1 is not of this form"),
        ("[packages]\nsystem = ['a; rm']", "item 1 is not of this form"),
        ("mounts = 3", "is an integer, not an array"),
        ("mounts = [3]", "mount 1 is an integer, not a table"),
        ("mounts = ['/a:b:c']", "mount 1 is wrong"),
        ("[[mounts]]\n[[mounts]]\nx = 1", "1: mounts = {}: mount 1 has no location"),
        (
            "[[mounts]]\nlocation = '/a'\n[[mounts]]\nlocatoin = '/b'",
            "3: mounts = {locatoin = '/b'}: mount 2 has an",
        ),
        ("[[mounts]]\nlocation = '/a'\nwritable = 'no'", "writable that is not a boolean"),
        ('[[mounts]]\nlocation = "/a\\u0000"', "NUL"),
        ("[[phase.setup]]\nname = 'x'", "phase: is not available yet"),
        ("vm.disk = 1\nvm.disk = 2", "is not TOML: Cannot overwrite a value"),
        ("[vm]\ndisk = = 1\n", "2: is not TOML: Invalid value (column 8)"),
        ("[vm]\n\ndisk = ", "3: is not TOML: Invalid value (at end of document)"),
        (b"a = '\n\xff'", "2: is not UTF-8"),
        (b"#" * (1024 * 1024 + 1), "at most 64 KiB"),
        ("x = " + "[" * 5000, "is not TOML"),
    ],
)
def test_wrong_file_is_told_with_line_key_value_and_what_is_valid(problems, text, says):
    (found,) = problems(text)
    assert found.startswith("~/.claude-vm.toml")
    assert says in found


def test_file_that_is_no_regular_file_is_a_problem_and_does_not_hang(problems, home):
    os.mkfifo(home / ".claude-vm.toml")
    assert "is not a regular file" in problems()[0]


def test_dangling_symlink_is_a_problem(problems, home):
    (home / ".claude-vm.toml").symlink_to("nothing")
    assert "can't be read" in problems()[0]


@pytest.mark.parametrize("text", ["", "x", "1.5", "1e3", "0x10", " 5", "5 ", "٣", "9" * 30])
def test_variable_that_is_no_number_is_an_error(problems, text):
    assert "is not an integer" in problems(environ={"CLAUDE_VM_DISK": text})[0]


def test_hostile_value_prints_on_one_bounded_line(problems):
    (found,) = problems(environ={"CLAUDE_VM_DRIVER": "\x1b[2J\n\u202e" + "x" * 500})
    assert escape_line(found).isprintable()
    assert len(found) < 300


def test_flag_for_a_key_that_is_not_there_is_a_mistake_of_the_caller(load):
    with pytest.raises(KeyError):
        load(flags={"vm.nothing": "1"})
    with pytest.raises(KeyError):
        load().origin("vm.nothing")


def test_nothing_of_a_projects_own_files_is_read(home, git, repository, monkeypatch):
    files = [
        repository / ".claude-vm.toml",
        repository / ".claude-vm.runtime.sh",
        repository / ".claude-vm.setup.sh",
    ]
    for file in files:
        file.write_text("[vm]\ndisk = 999\n[driver]\nname = 'sim'\nbroken")
    opened = []
    plain = os.open

    def remember(path, *more, **named):
        opened.append(str(path))
        return plain(path, *more, **named)

    monkeypatch.setattr(os, "open", remember)
    monkeypatch.chdir(repository)
    (home / ".claude-vm.toml").write_text("")
    settings = load_settings(flags={}, environ={"PWD": str(repository)}, home=home)
    assert (settings.vm.disk, settings.driver.name) == (20, "auto")
    # component by component, and then for reading
    assert [name for name in opened if not name.startswith("/proc/self/fd/")] == [
        "/",
        *home.parts[1:],
        ".claude-vm.toml",
        ".claude-vm.toml",
    ]
    assert not hasattr(module, "read_project")


def test_projects_file_may_not_choose_what_concerns_the_host(repository, home):
    found = []
    file = repository / ".claude-vm.toml"
    file.write_text('[driver]\nname = "sim"\n[pool]\nsize = 9\n[vm]\ndisk = 5\n')
    source = read_file(file, Layer.PROJECT, home, found)
    assert list(source.values) == ["vm.disk"]
    assert [problem.key for problem in found] == ["driver.name", "pool.size"]
    assert all("can't be set here" in problem.message for problem in found)


def test_every_default_is_what_its_kind_accepts():
    place = type("P", (), {"folder": Path("/"), "home": Path("/")})()
    for entry in settings_table().values():
        if entry.default is None or entry.setting.adds_up:
            continue
        if isinstance(entry.default, int) and entry.setting.kind.__class__.__name__ == "Duration":
            assert entry.setting.kind.read(f"{entry.default}s", place) == entry.default
        elif isinstance(entry.default, Path):
            raise AssertionError(entry.key)
        else:
            assert entry.setting.kind.read(entry.default, place) == entry.default


def test_every_key_names_a_field_and_every_alias_a_key():
    sections = Sections()
    for key, entry in settings_table().items():
        value = sections
        for name in key.split("."):
            value = getattr(value, name)
        assert value == entry.default
        assert entry.setting.doc
    assert set(ALIASES.values()) <= set(settings_table())


ADDRESS = "https://example.org/a.qcow2"


@pytest.mark.parametrize(
    "image",
    ["template:debian-13", f"{ADDRESS}#sha256:{'0123abcd' * 8}", f"{ADDRESS}#sha512:{'0123abcd' * 16}"],
)
def test_image_may_be_a_name_of_limas_or_an_address_with_its_digest(load, image):
    assert load(f"[vm]\nimage = '{image}'").vm.image == image


@pytest.mark.parametrize(
    "image",
    [
        f"http://example.org/a.qcow2#sha256:{'0' * 64}",
        f"{ADDRESS}#sha256:{'0' * 63}",
        f"{ADDRESS}#sha256:{'0' * 128}",
        f"{ADDRESS}#sha512:{'0' * 64}",
        f"{ADDRESS}#sha256:{'A' * 64}",
        f"{ADDRESS}#sha256:",
        ADDRESS,
    ],
)
def test_an_image_over_an_open_line_or_without_its_whole_digest_is_refused(load, image):
    with pytest.raises(ConfigError, match=r"vm\.image"):
        load(f"[vm]\nimage = '{image}'")
