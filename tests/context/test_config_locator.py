"""Lines of keys in TOML text."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.context.config.locator import key_lines, line_of

TEXT = '''\
# a comment with [brackets] and "quotes
top = 1
"quo ted".'x' = 2   # not a = b

[vm]   # comment
disk = 3
text = """
[vm]
disk = 99
\\""" still """
memory = 4
raw = \'\'\'
cpus = 5 \\\'\'\'
cpus = 6

[a.b]
c.d = { e = 1, "f" = [1, { g = 2 }] }
list = [
  "one", # ] comment
  'two',
  [3,
   4],
]
date = 1979-05-27T07:32:00Z

[[mounts]]
location = "#"

[mounts.more]
x = 1

[[mounts]]
location = ""
writable = false
[z]
'''


@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("top",), 2),
        (("quo ted", "x"), 3),
        (("vm",), 5),
        (("vm", "disk"), 6),
        (("vm", "text"), 7),
        (("vm", "memory"), 11),
        (("vm", "raw"), 12),
        (("vm", "cpus"), 14),
        (("a", "b"), 16),
        (("a", "b", "c", "d"), 17),
        (("a", "b", "c", "d", "e"), 17),
        (("a", "b", "c", "d", "f", 1, "g"), 17),
        (("a", "b", "list", 0), 19),
        (("a", "b", "list", 1), 20),
        (("a", "b", "list", 2, 1), 22),
        (("a", "b", "date"), 24),
        (("mounts",), 26),
        (("mounts", 0, "location"), 27),
        (("mounts", 0, "more", "x"), 30),
        (("mounts", 1), 32),
        (("mounts", 1, "writable"), 34),
        (("z",), 35),
    ],
)
def test_each_key_is_found_on_its_line(path, line):
    tomllib.loads(TEXT)
    assert key_lines(TEXT)[path] == line
    assert key_lines(TEXT.replace("\n", "\r\n"))[path] == line


def test_unknown_path_has_the_line_of_what_it_lies_in():
    lines = key_lines(TEXT)
    assert line_of(lines, ("vm", "disk", "deeper", 3)) == 6
    assert line_of(lines, ("nothing",)) == 0


def paths_of(value, path=()):
    if isinstance(value, dict):
        for name, item in value.items():
            yield (*path, name)
            yield from paths_of(item, (*path, name))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from paths_of(item, (*path, index))


keys = st.sampled_from(["a", "b-1", '"q.\\"x"', "'l.=#'", "a.b", 'c."d e" . f'])
scalars = st.sampled_from(
    [
        "1",
        "-1.5e3",
        "true",
        "inf",
        '"x # [y]"',
        "'x\\'",
        '"""\na = 1\n[t]\n"""',
        "'''\nb = \"\n'''",
        '""',
        '""""x"""""',
        "12:30:00",
    ]
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: "[\n " + ",\n # ]\n".join(items) + "\n]"),
        st.lists(st.tuples(keys, scalars.filter(lambda text: "\n" not in text)), max_size=2).map(
            lambda pairs: "{ " + ", ".join(f"{key} = {value}" for key, value in pairs) + " }"
        ),
    ),
    max_leaves=5,
)
lines_of_toml = st.one_of(
    st.tuples(keys, values).map(lambda pair: f"{pair[0]} = {pair[1]} # end"),
    keys.map(lambda key: f"[{key}]"),
    keys.map(lambda key: f"[[ {key} ]]"),
    st.sampled_from(["", "# [c]", "   "]),
)


@given(st.lists(lines_of_toml, max_size=8).map("\n".join))
def test_every_key_of_any_valid_text_is_located(text):
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return
    lines = key_lines(text)
    rows = text.split("\n")
    for path in paths_of(content):
        assert path in lines
        name = path[-1]
        assert 1 <= lines[path] <= len(rows)
        assert name.split('"')[0][:1] in rows[lines[path] - 1]
