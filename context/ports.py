"""Which of a guest's ports the host's loopback gets (feature S9).

A specification is ``[HOST:]GUEST``, two port numbers of TCP; the host's is the guest's unless it is said.
Ports below 1024 are the host's own business, and SSH's port in the guest is ours.
"""

import re
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from claude_vm.context.errors import ContextError

FORM = "[HOST:]GUEST, such as 3000 or 8080:80"

FLAG = "--publish"
"""What asks for a port on the command line, and is the source of one that was asked for there."""

AUTO = "auto"
"""Instead of a port: those that a guest listens at, as they come and go."""

NONE = "none"
"""Instead of ports: none of them, also if a farther layer says otherwise."""

LOWEST = 1024
"""The lowest port on the host that is ever published."""

HIGHEST = 65535

SSH = 22
"""Where a guest's SSH is. Who reached it could try keys, so it is never published."""


class PortError(ContextError):
    """Ports can't be published as asked."""

    code = "bad-port"


class PortSpec(msgspec.Struct, frozen=True):
    """A guest's port and the host's port that leads to it. `source` says who asked, for messages."""

    guest: int
    host: int
    source: str = FLAG

    def __str__(self) -> str:
        """The specification, as short as it can be written."""
        return str(self.guest) if self.host == self.guest else f"{self.host}:{self.guest}"


class Publish(msgspec.Struct, frozen=True):
    """What a session publishes: these ports, and with `auto` whatever its guest listens at."""

    ports: tuple[PortSpec, ...] = ()
    auto: bool = False

    @property
    def words(self) -> list[str]:
        """The specifications of all of it, as `parse_publish` takes them."""
        return [*(str(port) for port in self.ports), *([AUTO] if self.auto else [])]


def refusal(guest: int, host: int) -> str:
    """Return why a pair of ports can't be published; "" when it can."""
    if not 0 < guest <= HIGHEST or not 0 < host <= HIGHEST:
        return f"has a number that is not a port (1-{HIGHEST})"
    if guest == SSH:
        return f"is the guest's SSH port, {SSH}, which is never published"
    if host < LOWEST:
        return f"would take a port below {LOWEST} on the host; write it as {host + 8000}:{guest}"
    return ""


def parse_port(text: str, *, source: str = FLAG) -> PortSpec:
    """Return a specification's ports.

    Raises:
        PortError: It is not of the form, or can't be published.
    """
    found = re.fullmatch(r"(?:([0-9]{1,5}):)?([0-9]{1,5})", text)
    if found is None:
        problem = "is not of this form; the port is always on the host's loopback"
    else:
        guest = int(found[2])
        host = int(found[1]) if found[1] else guest
        problem = refusal(guest, host)
        if not problem:
            return PortSpec(guest, host, source)
    raise PortError(problem, hint=f"write it as {FORM}")


def parse_publish(words: Sequence[str]) -> Publish:
    """Return what `Publish.words` came from; words that mean nothing are left out."""
    ports: list[PortSpec] = []
    for word in words:
        with suppress(PortError):
            if word != AUTO:
                ports.append(parse_port(word, source="journal"))
    return Publish(tuple(ports), AUTO in words)


def plan_ports(wanted: Sequence[PortSpec | str]) -> Publish:
    """Return what a session publishes, each pair once. `AUTO` may stand among them, and so may `NONE`.

    Raises:
        PortError: Two ports of the guest would have one port of the host.
    """
    chosen: dict[int, PortSpec] = {}
    problems: list[str] = []
    for spec in wanted:
        if isinstance(spec, str):
            continue
        first = chosen.setdefault(spec.host, spec)
        if first.guest != spec.guest:
            problems.append(
                f"{spec.source}: the host's port {spec.host} would lead both to the guest's {first.guest}"
                f" ({first.source}) and to its {spec.guest}"
            )
    if problems:
        raise PortError.of(problems, "the ports", hint=f"write a port as {FORM}")
    return Publish(tuple(chosen.values()), AUTO in wanted)
