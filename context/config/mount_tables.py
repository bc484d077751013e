"""The kind of an item of ``[[mounts]]``: a host directory, its place in the guest, and its mode."""

from claude_vm.context.config.kinds import BadValueError, PathBase, SettingKind, table
from claude_vm.context.errors import MountError
from claude_vm.context.mount_specs import MountSpec, parse_spec

KEYS = ("location", "mount_point", "writable")


class MountTable(SettingKind):
    """A mount, as a table or as a text as of ``--mount``."""

    valid = "a table with location and optionally mount_point and writable; or a string as for --mount"

    def read(self, value: object, place: PathBase) -> MountSpec:  # noqa: ARG002 - paths are looked at later
        """Return the mount. Whether the directory exists is seen when it is mounted."""
        if isinstance(value, str):
            try:
                return parse_spec(value, source="mounts")
            except MountError as error:
                raise BadValueError(f"is wrong: {error.message}") from error
        given = table(value, KEYS)
        location, point = given.get("location"), given.get("mount_point", "")
        writable = given.get("writable", True)
        if not isinstance(location, str) or not location:
            raise BadValueError("has no location (a host directory)")
        if not isinstance(point, str) or not isinstance(writable, bool):
            raise BadValueError("has a mount_point that is not a string, or a writable that is not a boolean")
        if "\0" in location + point:
            raise BadValueError("has a NUL character in a path")
        return MountSpec(location, point, writable, source="mounts")
