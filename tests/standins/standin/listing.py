"""``list`` and ``info``: what there is."""

import json
import sys
from pathlib import Path

from . import VERSION, document, names
from .defaults import machine
from .errors import LimaError, NotFoundError, os_error_text
from .instance import Instance, broken, inspect, without_empty
from .log import LOG, quoted
from .sizes import format_size
from .table import table


def list_instances(wanted: list[str], *, as_json: bool, quiet: bool) -> None:
    """Print one line for each instance.

    Raises:
        LimaError: one that was asked for does not exist.
    """
    if quiet and as_json:
        raise LimaError("option --quiet can only be used with '--format table'")
    _look_for_strangers()
    every = names.instance_names()
    if not wanted and not every:
        LOG.warning("No instance found. Run `limactl create` to create an instance.")
        return
    unmatched = [name for name in wanted if name not in every]
    for name in unmatched:
        LOG.warning(f"No instance matching {name} found.")
    chosen = [name for name in wanted if name in every] if wanted else every
    if quiet:
        _print(chosen)
    else:
        found = [one for one in map(_inspect, chosen) if one is not None]
        if wanted:
            there = {one.name for one in found}
            unmatched += [name for name in chosen if name not in there]
        for one in found:
            if one.errors:
                errors = "[" + " ".join(one.errors) + "]"
                LOG.warning(f"instance {quoted(one.name)} has errors", errors=errors)
        _print(
            [json.dumps(one.listing(), separators=(",", ":")) for one in found] if as_json else _table(found)
        )
    if unmatched:
        raise LimaError("unmatched instances")


def print_info(prefix: Path) -> None:
    """Print facts about this installation.

    Raises:
        LimaError: it has no template ``default``.
    """
    data = read_template("default", prefix)
    found = {
        "version": VERSION,
        "templates": [
            {"name": str(path.relative_to(folder).with_suffix("")), "location": str(path)}
            for folder in template_folders(prefix)
            for path in sorted(folder.rglob("*.yaml"))
        ],
        "defaultTemplate": without_empty(document.load(data, Path())),
        "limaHome": str(names.home()),
        "vmTypes": ["qemu"],
        "vmTypesEx": {"qemu": {}},
        "guestAgents": {},
        "shellEnvBlock": [],
        "hostOS": "linux",
        "hostArch": machine(),
        "identityFile": str(names.config_dir() / "user"),
        "plugins": [],
        "libexecPaths": [],
        "sharePaths": [str(folder.parent) for folder in template_folders(prefix)],
    }
    _print([json.dumps(found, indent=4)])


def template_folders(prefix: Path) -> list[Path]:
    """Return the folders that hold templates: the user's first."""
    folders = (names.home() / "_templates", prefix / "share" / "lima" / "templates")
    return [folder for folder in folders if folder.is_dir()]


def read_template(name: str, prefix: Path) -> bytes:
    """Return a template's text.

    Raises:
        LimaError: there is none of that name.
    """
    if ".." in name:
        raise LimaError(f"template name {quoted(name)} must not contain `..`")
    suffix = Path(name).suffix
    full = name + ".yaml" if len(suffix) < 2 or suffix[1].isdigit() else name
    for folder in template_folders(prefix):
        if (folder / full).exists():
            return (folder / full).read_bytes()
    raise LimaError(f"template {quoted(full)} not found")


def _look_for_strangers() -> None:
    for name in names.instance_names():
        try:
            (names.home() / name / "lima.yaml").stat()
        except OSError as error:
            reason = os_error_text(error, "stat")
            LOG.warning(
                f"The directory {quoted(names.home())} does not look like a valid Lima directory: {reason}"
            )
            return


def _inspect(name: str) -> Instance | None:
    try:
        return inspect(name)
    except NotFoundError as error:
        found = broken(name, str(error))
        if found is None:
            LOG.warning(f"Skipping instance {quoted(name)}: {error} (being cloned or deleted?)")
        return found
    except LimaError as error:
        raise LimaError(f"unable to load instance {name}: {error}") from None


def _table(found: list[Instance]) -> list[str]:
    rows = [["NAME", "STATUS", "SSH", "VMTYPE", "ARCH", "CPUS", "MEMORY", "DISK", "DIR"]]
    home = str(Path.home())
    for one in found:
        listed = one.listing()
        folder = str(one.folder)
        rows.append(
            [
                one.name,
                one.status,
                f"{'127.0.0.1' if one.config else ''}:{one.ssh_port}",
                listed["vmType"],
                listed["arch"],
                str(listed.get("cpus", 0)),
                format_size(listed.get("memory", 0)),
                format_size(listed.get("disk", 0)),
                folder.replace(home, "~", 1) if folder.startswith(home) else folder,
            ]
        )
    return table(rows)


def _print(lines: list[str]) -> None:
    sys.stdout.write("".join(line + "\n" for line in lines))
    sys.stdout.flush()
