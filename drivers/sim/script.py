"""What a simulated hypervisor shall do wrong, and how long it shall take."""

from pathlib import Path

import msgspec

from claude_vm.drivers.errors import DriverError


class CallStep(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What happens to one call of one method.

    After `delay_s` the call fails with the error of the code `fail`, or never returns (`hang`), or does its
    work. With `lose_answer` it does its work and never returns. With `die_s` (of ``start`` only) the VM dies
    so long after its start; ``taken_mib`` returns `memory_mib`, and does not fail.
    """

    delay_s: float = 0.0
    fail: str = ""
    hang: bool = False
    lose_answer: bool = False
    die_s: float | None = None
    memory_mib: int = 200


class Script(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Steps for the calls of each method, by the method's name: the first call gets the first step.

    Calls after the last step just work, unless the method is in `repeat`: then they get the last step. With
    `prestart` it says that starting ahead is of use, which it is for tests of that only.
    """

    calls: dict[str, tuple[CallStep, ...]] = {}
    repeat: frozenset[str] = frozenset()
    prestart: bool = False


def read_script(home: Path) -> Script:
    """Return the script in ``sim.json`` of the data folder, for a supervisor in another process.

    Raises:
        DriverError: The file is no script.
    """
    path = home / "sim.json"
    try:
        return msgspec.json.decode(path.read_bytes(), type=Script)
    except FileNotFoundError:
        return Script()
    except (OSError, msgspec.DecodeError) as error:
        raise DriverError(f"{path} is not a script for simulated guests", detail=str(error)) from error


class Prompter:
    """Hands out the steps of a script."""

    def __init__(self, script: Script) -> None:
        self.prestart = script.prestart
        self._script = script
        self._count: dict[str, int] = {}

    def next_step(self, method: str) -> CallStep:
        """Return the step for this call of a method."""
        steps = self._script.calls.get(method, ())
        number = self._count.get(method, 0)
        self._count[method] = number + 1
        if number < len(steps):
            return steps[number]
        return steps[-1] if steps and method in self._script.repeat else CallStep()


def scripted_error(method: str, code: str) -> DriverError:
    """Return the error that has this code; an unknown code gives one that bears it."""
    for kind in DriverError.__subclasses__():
        if kind.code == code and kind.__init__ is DriverError.__init__:
            return kind(f"{method} fails, as the script says")
    error = DriverError(f"{method} fails, as the script says")
    error.code = code
    return error
