"""The settings of one command: every layer read, checked and laid over the one before it."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from claude_vm.context.config.problems import ConfigError, Problem
from claude_vm.context.config.schema import EXCLUSIVE, Sections, settings_table
from claude_vm.context.config.setting import Layer, Obeyed, Value
from claude_vm.context.config.sources import Source, read_file, read_flags, read_variables
from claude_vm.context.mount_specs import MountSpec
from claude_vm.context.ports import PortSpec
from claude_vm.drivers.programs import Guard, nobody_writes

GLOBAL_FILE = ".claude-vm.toml"
"""Name of the global file in the user's home. A project's file will have the same name."""


class Settings(Sections, frozen=True, kw_only=True):
    """All settings, as ``settings.vm.disk``; and who set them.

    Times are in seconds, sizes in GB. `layers` and `given` hold only what is not a default; a list that adds
    up has the nearest layer that sets it.
    """

    layers: Mapping[str, Layer] = {}
    given: Mapping[str, Value] = {}

    def origin(self, key: str) -> str:
        """Return the name of the layer that set a dotted key: ``default``, ``global``, ``flag``, and so on.

        Raises:
            KeyError: There is no such setting.
        """
        settings_table()[key]
        return self.layers.get(key, Layer.DEFAULT).title

    def where(self, key: str) -> str:
        """Return who set a dotted key: a file with its line, a variable, a flag; ``default``.

        Raises:
            KeyError: There is no such setting.
        """
        settings_table()[key]
        return self.given[key].where if key in self.given else "default"

    @property
    def published(self) -> tuple[PortSpec | str, ...]:
        """The ports to publish, with who asked for each, and the words that stand for others.

        A flag that says ``none`` means those of the files, too.
        """
        if self.origin("network.publish") == "flag" and not self.network.publish:
            return ()
        where = self.where("network.publish")
        return (
            tuple(
                msgspec.structs.replace(item, source=where) if isinstance(item, PortSpec) else item
                for item in self.network.publish
            )
            + self.ports
        )

    def without_effect(self, obeyed: Collection[Obeyed]) -> tuple[str, ...]:
        """Return a line for each setting that was set, that one of these will obey, and nothing does yet."""
        found = []
        for key, given in self.given.items():
            later = settings_table()[key].setting.later
            if later is not None and later.by in obeyed and given.value not in (later.today, ()):
                section, _, name = key.partition(".")
                found.append(f"[{section}] {name} = {given.written} has no effect yet ({given.where})")
        return tuple(found)


def global_file_size(home: Path) -> int:
    """Return the size of the user's own file in bytes, 0 if there is none."""
    try:
        return (home / GLOBAL_FILE).stat().st_size
    except (OSError, ValueError):
        return 0


def load_settings(
    *,
    flags: Mapping[str, Value],
    environ: Mapping[str, str],
    home: Path,
    guard: Guard = nobody_writes,
) -> Settings:
    """Return the settings of a command.

    `flags` has the text of each given flag by the dotted key that it sets (``vm.disk``), or a tuple of texts.
    Read are: ``.claude-vm.toml`` in `home`, then the environment, then the flags. A project's own files are
    not: see `Layer`.

    Raises:
        ConfigError: With every problem of every layer.
        LinkError: The file is a link that a guest may have made, see `claude_vm.context.opening`.
    """
    problems: list[Problem] = []
    sources = [
        read_file(home / GLOBAL_FILE, Layer.GLOBAL, home, problems, guard),
        read_variables(environ, home, problems),
        read_flags(flags, home, problems),
    ]
    if problems:
        raise ConfigError(tuple(problems))
    return merge(sources)


def merge(sources: Sequence[Source]) -> Settings:
    """Lay sources over each other, in the order of their layers; a later layer wins.

    A value wins also when it equals the default. Lists that add up are joined, each item once.
    """
    chosen: dict[str, Value] = {}
    layers: dict[str, Layer] = {}
    for source in sorted(sources, key=lambda source: source.layer):
        hidden: set[str] = set()
        for group in EXCLUSIVE:
            given = [key for key in group if key in source.values]
            for key in group if given else ():
                chosen.pop(key, None)
                layers.pop(key, None)
            hidden.update(given[1:])
        for key, found in source.values.items():
            if key in hidden:
                continue
            value = found
            if settings_table()[key].setting.adds_up:
                before = chosen[key].value if key in chosen else ()
                value = msgspec.structs.replace(found, value=_joined(before, found))
            chosen[key] = value
            layers[key] = source.layer
    defaults = Sections()
    sections: dict[str, Any] = {}
    for key, found in chosen.items():
        section, dot, name = key.partition(".")
        if dot:
            before = sections.get(section) or getattr(defaults, section)
            sections[section] = msgspec.structs.replace(before, **{name: found.value})
        else:
            sections[key] = found.value
    return Settings(**sections, layers=layers, given=chosen)


def _joined(before: object, found: Value) -> tuple[object, ...]:
    items = list(before) if isinstance(before, tuple) else [before]
    for item in found.value if isinstance(found.value, tuple) else (found.value,):
        has_source = isinstance(item, MountSpec | PortSpec)
        named = msgspec.structs.replace(item, source=found.where) if has_source else item
        if named not in items:
            items.append(named)
    return tuple(items)
