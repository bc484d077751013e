"""The kinds of ``[network] publish`` and of one of ``[[ports]]``: what the host's loopback gets."""

from claude_vm.context.config.kinds import BadValueError, PathBase, SettingKind, table, type_name
from claude_vm.context.errors import ContextError
from claude_vm.context.ports import AUTO, NONE, PortSpec, parse_port, refusal

KEYS = ("guest", "host")


class PortList(SettingKind):
    """Ports as ``[HOST:]GUEST``, and perhaps ``auto``; or one of the words alone."""

    valid = 'auto, none, or a list of ports as "[HOST:]GUEST" (auto may be among them)'
    words = {  # noqa: RUF012 - never changed
        AUTO: "the ports that the guest listens at",
        NONE: "no port, whatever the configuration says",
    }

    def read(self, value: object, place: PathBase) -> tuple[PortSpec | str, ...]:  # noqa: ARG002 - see Integer
        """Return the ports, and the word `AUTO` if it is there."""
        if isinstance(value, str):
            if value not in {AUTO, NONE}:
                raise BadValueError("is not one of these words; put ports into a list")
            return (AUTO,) if value == AUTO else ()
        if not isinstance(value, list | tuple):
            raise BadValueError(f"is {type_name(value)}, not an array")
        found: list[PortSpec | str] = []
        for index, item in enumerate(value):
            if item == NONE:
                if len(value) > 1:
                    raise BadValueError("can't be combined with ports or auto", item=index)
                return ()
            found.append(AUTO if item == AUTO else _port(item, index))
        return tuple(found)


class PortTable(SettingKind):
    """A port, as a table with the guest's and perhaps the host's number."""

    valid = "a table with guest and optionally host, both port numbers"

    def read(self, value: object, place: PathBase) -> PortSpec:  # noqa: ARG002 - see Integer
        """Return the port."""
        given = table(value, KEYS)
        guest, host = given.get("guest"), given.get("host", given.get("guest"))
        if type(guest) is not int or type(host) is not int:
            raise BadValueError("needs a port number as guest, and as host if there is one")
        if problem := refusal(guest, host):
            raise BadValueError(problem)
        return PortSpec(guest, host, source="ports")


def _port(item: object, index: int) -> PortSpec:
    if not isinstance(item, str):
        raise BadValueError(f"item {index + 1} is {type_name(item)}, not a string", item=index)
    try:
        return parse_port(item)
    except ContextError as error:
        raise BadValueError(error.message, item=index) from error
