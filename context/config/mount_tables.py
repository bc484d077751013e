"""The kind of ``[[mounts]]``: tables with a host directory, its place in the guest, and its mode."""

from claude_vm.context.config.kinds import BadValueError, FromToml, PathBase, type_name
from claude_vm.context.errors import MountError
from claude_vm.context.mount_specs import MountSpec, parse_spec

KEYS = ("location", "mount_point", "writable")


class MountTables(FromToml):
    """Mounts, each a table or a text as of ``--mount``."""

    valid = "tables with location, and perhaps mount_point and writable; or texts as of --mount"

    def read(self, value: object, place: PathBase) -> tuple[MountSpec, ...]:  # noqa: ARG002 - paths are looked at later
        """Return the mounts. Whether the directories exist is seen when they are mounted."""
        if not isinstance(value, list):
            raise BadValueError(f"is {type_name(value)}, not an array")
        specs = []
        for index, item in enumerate(value):
            try:
                specs.append(_spec(item))
            except BadValueError as error:
                raise BadValueError(f"mount {index + 1} {error.message}", item=index) from error
        return tuple(specs)


def _spec(item: object) -> MountSpec:
    if isinstance(item, str):
        try:
            return parse_spec(item, source="mounts")
        except MountError as error:
            raise BadValueError(f"is wrong: {error.message}") from error
    if not isinstance(item, dict):
        raise BadValueError(f"is {type_name(item)}, not a table")
    unknown = [key for key in item if key not in KEYS]
    if unknown:
        raise BadValueError(f"has an unknown key '{unknown[0]}' (it has {', '.join(KEYS)})")
    location, point, writable = item.get("location"), item.get("mount_point", ""), item.get("writable", True)
    if not isinstance(location, str) or not location:
        raise BadValueError("has no location (a host directory)")
    if not isinstance(point, str) or not isinstance(writable, bool):
        raise BadValueError("has a mount_point that is no string, or a writable that is no boolean")
    if "\0" in location + point:
        raise BadValueError("has a NUL character in a path")
    return MountSpec(location, point, writable, source="mounts")
