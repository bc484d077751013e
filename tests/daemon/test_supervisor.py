"""What a supervisor does beside its commands."""

import pytest
from structlog.testing import capture_logs

from claude_vm.drivers import registry
from claude_vm.drivers.api import Owner
from claude_vm.drivers.errors import DriverError
from claude_vm.supervisor.daemon import supervisor
from claude_vm.supervisor.daemon.sessions.scanning import Scanner
from claude_vm.supervisor.daemon.state.reports import Reports

pytestmark = pytest.mark.anyio


class OneThatFails:
    """Stands for drivers of which one can't remove what it has found."""

    def __init__(self, owner, failing):
        self.owner = owner
        self._failing = failing
        self._name = ""

    async def get(self, name):
        self._name = name
        return self

    async def collect_garbage(self):
        if self._name == self._failing:
            raise DriverError("a file that can't be removed")
        return [f"of {self._name}"]


@pytest.mark.parametrize("failing", registry.DRIVERS)
async def test_a_driver_that_cannot_clean_up_keeps_no_other_from_it(tmp_path, failing):
    drivers = OneThatFails(Owner(tmp_path, "daemon", tmp_path), failing)
    with capture_logs() as logs:
        await supervisor._clean_up(drivers, "boot", Scanner(Reports(tmp_path)))
    others = [f"of {name}" for name in registry.DRIVERS if name != failing]
    assert [line["what"] for line in logs if line["event"] == "garbage-removed"] == others
    (told,) = (line for line in logs if line["event"] == "clean-up-failed")
    assert (told["driver"], told["error"]) == (failing, "a file that can't be removed")
