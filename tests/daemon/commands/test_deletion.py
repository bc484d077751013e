"""`clean`: what becomes of the VMs that are kept ready of a template. VMs in memory, virtual time."""

from types import SimpleNamespace

import anyio
import pytest
import trio
from claude_vm_tests_memory import NAME, MemoryDriver, in_virtual_time, key, settled

from claude_vm.drivers import registry
from claude_vm.drivers.errors import TemplateInUseError
from claude_vm.supervisor.core.events import FillRequested
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.daemon.commands.templates import clean_all
from claude_vm.supervisor.grammar.commands.templates import CleanAll
from claude_vm.supervisor.grammar.flags import Flags

pytestmark = pytest.mark.usefixtures("memory_only")
POOL = PoolPolicy(size=1)


@pytest.fixture
def memory_only(monkeypatch):
    monkeypatch.setattr(registry, "DRIVERS", {NAME: registry.DRIVERS[NAME]})


class Deletion:
    """A command that deletes all templates, for a client that agrees."""

    flags = Flags()

    def __init__(self, world, supervisor):
        driver = MemoryDriver(world.cloud)

        async def get(name):
            return driver

        self.supervisor = SimpleNamespace(
            dispatcher=supervisor.dispatcher,
            sessions=supervisor.sessions,
            drivers=SimpleNamespace(get=get),
        )
        self.said = []

    async def out(self, text):
        self.said.append(text)

    async def run(self):
        return await clean_all(self, CleanAll(yes=True))


async def one_is_ready(supervisor):
    supervisor.dispatcher.post(FillRequested(at=anyio.current_time(), key=key(), size=1))
    await settled()
    assert supervisor.dispatcher.warm_count == 1


async def one_is_ready_again(supervisor):
    supervisor.dispatcher.post(FillRequested(at=anyio.current_time(), key=key(), size=1))
    await trio.sleep(10)
    await settled()
    assert supervisor.dispatcher.warm_count == 1


def test_a_template_that_can_not_be_deleted_has_vms_ready_again(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            await one_is_ready(supervisor)
            world.cloud.failures["delete_template"] = [TemplateInUseError("it is used", instances=("i-1",))]
            with pytest.raises(TemplateInUseError):
                await Deletion(world, supervisor).run()
            await one_is_ready_again(supervisor)

    in_virtual_time(main)


def test_a_client_that_leaves_while_a_template_is_deleted_leaves_it_with_vms_ready(world):
    async def main():
        async with world.supervisor(POOL) as supervisor:
            await one_is_ready(supervisor)
            world.cloud.gate("delete_template")
            with anyio.move_on_after(60):
                await Deletion(world, supervisor).run()
            await one_is_ready_again(supervisor)

    in_virtual_time(main)
