"""Every message of ours: one line for each line that we made, whatever is in it.

The catalogue is found in the source, so that a new error or note is held to the rule, too.
"""

import ast
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import claude_vm.bench
import claude_vm.context
import claude_vm.drivers
import claude_vm.supervisor
from claude_vm.supervisor.wire.error_text import beneath, error_text
from claude_vm.supervisor.wire.escape import printed

PACKAGES = (claude_vm.bench, claude_vm.context, claude_vm.drivers, claude_vm.supervisor)

SAYING = {"note", "note_nowait", "say", "say_verbose", "out", "prompt", "confirm", "tell", "told"}
"""Methods that give text to people."""

HOSTILE = (
    "s\nclaude-vm: all is well\r\n\x1b[2K\x9b1A\u2028claude-vm: x\x85y\x0b\x0c\x1c\u202e\ud800\udcff\t'\\"
)

WRITERS = {
    "bench/main.py",
    "bench/sims/programs.py",
    "supervisor/cli/launch.py",
    "supervisor/cli/main.py",
    "supervisor/cli/relay.py",
    "supervisor/cli/tty.py",
    "supervisor/daemon/process/main.py",
}
"""The only modules that write to a process's own output. Not one of the guest's: there it is no terminal."""


def sources():
    for package in PACKAGES:
        (folder,) = package.__path__
        root = Path(folder)
        for file in sorted(root.rglob("*.py")):
            yield f"{root.name}/{file.relative_to(root)}", ast.parse(file.read_text())


SOURCES = list(sources())


def on_the_host():
    return [(name, tree) for name, tree in SOURCES if not name.startswith("drivers/guest/")]


def called(node):
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def is_message(node):
    return isinstance(node, ast.Call) and (called(node).endswith("Error") or called(node) in SAYING)


def texts(node):
    """Return the constants of a message. A tool's last words are lines."""
    for argument in [*node.args, *(word.value for word in node.keywords if word.arg != "detail")]:
        for inner in ast.walk(argument):
            if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
                yield inner.value


def test_no_message_has_a_line_end_of_its_own():
    found = [
        f"{name}:{node.lineno}"
        for name, tree in on_the_host()
        for node in ast.walk(tree)
        if is_message(node) and any(len(text.splitlines()) > 1 or "\n" in text for text in texts(node))
    ]
    assert found == []


def spells(node):
    if isinstance(node, ast.Call):
        return called(node) in {"repr", "ascii"}
    return isinstance(node, ast.FormattedValue) and node.conversion in {ord("r"), ord("a")}


def test_no_text_shows_a_value_as_python_spells_it():
    """It would be made visible twice: a backslash doubled, a line end in another spelling than elsewhere."""
    found = []
    for name, tree in on_the_host():
        functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
        allowed = {inner for node in functions if node.name == "__repr__" for inner in ast.walk(node)}
        found += [f"{name}:{node.lineno}" for node in ast.walk(tree) if spells(node) and node not in allowed]
    assert found == []


def test_one_place_in_each_process_writes():
    def writes(node):
        if not isinstance(node, ast.Call):
            return False
        words = ast.unparse(node.func)
        return words in {"print", "sys.stdout.write", "sys.stderr.write"} or (
            words == "os.write"
            and ast.unparse(node.args[0]).endswith(("STDERR", "STDOUT", "to_stderr else 1"))
        )

    found = {name for name, tree in on_the_host() if any(writes(node) for node in ast.walk(tree))}
    assert found <= WRITERS


def error_classes():
    for package in PACKAGES:
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if ".guest." in module.name or module.name.endswith("__main__"):
                continue
            loaded = importlib.import_module(module.name)
            for _, found in inspect.getmembers(loaded, inspect.isclass):
                if found.__module__ == module.name and issubclass(found, Exception) and has_code(found):
                    yield found


def has_code(kind):
    return hasattr(kind, "code") or "code" in getattr(kind.__init__, "__annotations__", {})


def filled(kind, value):
    """Return an error whose texts are all the given one."""
    arguments = {}
    positional = []
    for name, parameter in inspect.signature(kind.__init__).parameters.items():
        if name == "self" or parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            continue
        made = value
        if name in {"lines", "instances", "problems"}:
            made = (value, value)
        elif name == "broken":
            made = ((value, value, False),)
        elif name in {"status", "started", "number"}:
            made = 0
        if parameter.kind is parameter.KEYWORD_ONLY:
            arguments[name] = made
        else:
            positional.append(made)
    if kind.__init__ is Exception.__init__:
        positional = [value]
    error = kind(*positional, **arguments)
    if hasattr(error, "detail"):
        error.detail = f"{value}\n{value}"
    return error


ERRORS = sorted(set(error_classes()), key=lambda kind: (kind.__module__, kind.__name__))


def test_the_catalogue_is_there():
    names = {kind.__name__ for kind in ERRORS}
    assert {"MountError", "ConfigError", "BootError", "CommandError", "LostDaemonError", "SshError"} <= names
    assert len(ERRORS) > 40


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_an_error_is_told_in_our_lines_only(kind):
    line, more = error_text(filled(kind, HOSTILE))
    shown = printed((line, *(beneath(text) for text in more)))
    first, *others = shown.splitlines()
    assert shown.count("\n") == 1 + len(others) == 1 + len(more)
    assert first.startswith("claude-vm: ")
    assert all(other.startswith("  ") for other in others)
    assert not any(character in shown for character in "\x1b\x9b\u2028\u202e\r\x85")
    shown.encode()


@given(st.text(), st.lists(st.text()), st.text())
def test_what_is_told_of_an_error_has_as_many_lines_as_it_has_parts(message, lines, hint):
    from claude_vm.context.errors import ContextError

    line, more = error_text(ContextError(message, lines=lines, hint=hint))
    assert len(printed((line, *more)).splitlines()) == 1 + len(lines) + bool(hint)
    assert message in line
