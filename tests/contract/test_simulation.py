"""What only simulated guests do: they follow a script, and die with their process."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import anyio
import psutil
import pytest
from claude_vm_tests_case import open_link, printed, silent

from claude_vm.drivers.api import GuestFile, InstanceStatus
from claude_vm.drivers.errors import BootError, DriverError, GuestError
from claude_vm.drivers.sim.driver import WARNING, open_driver
from claude_vm.drivers.sim.guest import MARK
from claude_vm.drivers.sim.script import CallStep, Script

pytestmark = pytest.mark.anyio


@pytest.fixture
async def scripted(new_site):
    """Open a driver with a script, in a site of its own."""
    site = await anyio.to_thread.run_sync(new_site, "sim")

    def open_scripted(**calls):
        return open_driver(site.owner, script=Script(calls=calls))

    open_scripted.site = site
    return open_scripted


async def make(site, driver):
    (template,) = await driver.templates()
    import secrets

    from claude_vm.drivers.api import InstanceSpec

    instance_id = f"i-{secrets.token_hex(5)}"
    await driver.clone(InstanceSpec(instance_id, template.name, template.generation, 2, 1024, 8))
    return instance_id


async def printed_there(driver, instance_id, access, line):
    async with open_link(access, timeout_s=20) as link:
        return await printed(SimpleNamespace(driver=driver), instance_id, link, line)


async def test_the_first_call_gets_the_first_step_and_later_ones_just_work(scripted):
    async with scripted(start=(CallStep(fail="boot-failed"), CallStep(fail="my-own-code"))) as driver:
        instance_id = await make(scripted.site, driver)
        with pytest.raises(BootError):
            await driver.start(instance_id, silent)
        with pytest.raises(DriverError) as caught:
            await driver.start(instance_id, silent)
        assert caught.value.code == "my-own-code"
        assert DriverError.code == "driver-failed"
        assert (await driver.start(instance_id, silent)).port


async def test_the_last_step_repeats_on_request(scripted):
    script = Script(
        calls={"put_files": (CallStep(), CallStep(fail="guest-failed"))}, repeat=frozenset({"put_files"})
    )
    async with open_driver(scripted.site.owner, script=script) as driver:
        instance_id = await make(scripted.site, driver)
        await driver.start(instance_id, silent)
        await driver.put_files(instance_id, [GuestFile("x", b"")])
        for _ in range(3):
            with pytest.raises(GuestError):
                await driver.put_files(instance_id, [GuestFile("x", b"")])


async def test_a_call_hangs_until_it_is_cancelled(scripted):
    async with scripted(start=(CallStep(hang=True),)) as driver:
        instance_id = await make(scripted.site, driver)
        with anyio.move_on_after(0.1) as scope:
            await driver.start(instance_id, silent)
        assert scope.cancelled_caught
        assert await driver.poll(instance_id) is InstanceStatus.STOPPED


async def test_a_clone_whose_answer_is_lost_exists(scripted):
    async with scripted(clone=(CallStep(lose_answer=True),)) as driver:
        with anyio.move_on_after(0.1) as scope:
            await make(scripted.site, driver)
        assert scope.cancelled_caught
        (record,) = await driver.list_instances()
        await driver.delete(record.instance_id)
        assert not await driver.list_instances()


async def test_a_vm_dies_when_the_script_says_so(scripted):
    async with scripted(start=(CallStep(die_s=0.05),)) as driver:
        instance_id = await make(scripted.site, driver)
        await driver.start(instance_id, silent)
        with anyio.fail_after(10):
            assert "died" in await driver.wait_stopped(instance_id)
        assert await driver.poll(instance_id) is InstanceStatus.STOPPED


async def test_a_script_is_read_from_the_data_folder(scripted):
    site = scripted.site
    (site.home / "sim.json").write_text(json.dumps({"calls": {"clone": [{"fail": "template-missing"}]}}))
    async with open_driver(site.owner) as driver:
        with pytest.raises(DriverError, match="script"):
            await make(site, driver)
    (site.home / "sim.json").write_text('{"calls": {"clone": [{"fial": "x"}]}}')
    with pytest.raises(DriverError, match=r"sim\.json"):
        async with open_driver(site.owner):
            pass


async def test_it_says_loudly_that_nothing_is_isolated(scripted, caplog):
    said = []
    async with scripted() as driver:
        instance_id = await make(scripted.site, driver)
        await driver.start(instance_id, lambda phase, detail: said.append((phase, detail)))
        capabilities = await driver.capabilities()
    assert WARNING in caplog.text
    assert any(WARNING in detail for _, detail in said)
    assert not capabilities.isolates
    assert capabilities.accelerator_reason == WARNING


async def test_processes_of_a_guest_have_nothing_of_the_supervisors_environment(scripted, monkeypatch):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "canary")
    async with scripted() as driver:
        instance_id = await make(scripted.site, driver)
        access = await driver.start(instance_id, silent)
        assert b"canary" not in await printed_there(driver, instance_id, access, "env")


async def test_files_for_roots_folders_do_not_reach_the_host(scripted):
    async with scripted() as driver:
        instance_id = await make(scripted.site, driver)
        access = await driver.start(instance_id, silent)
        await driver.put_files(instance_id, [GuestFile("/etc/claude-vm-contract", b"x", owner="root")])
        assert not Path("/etc/claude-vm-contract").exists()
        there = "cat ../root/etc/claude-vm-contract"
        assert await printed_there(driver, instance_id, access, there) == b"x"


DIE = """
import asyncio, os, sys
from pathlib import Path
from claude_vm.drivers.api import InstanceSpec, Owner
from claude_vm.drivers.sim.driver import open_driver
from claude_vm.supervisor.ssh.launch import LaunchMode, launch_file
from claude_vm.supervisor.ssh.link import connect
from claude_vm.supervisor.ssh.shells import ShellKind, prime

async def main():
    async with open_driver(Owner(Path(sys.argv[1]), "contract", Path(sys.argv[2]))) as driver:
        (template,) = await driver.templates()
        spec = InstanceSpec("i-0123456789", template.name, template.generation, 2, 1024, 8)
        await driver.clone(spec)
        link = await connect(await driver.start(spec.instance_id, lambda *_: None), timeout_s=20)
        line = "sleep 1000 & setsid sleep 1001 & echo ready; sleep 1002"
        await driver.put_files(spec.instance_id, [launch_file("a1", mode=LaunchMode.EVAL, argv=[line])])
        process = await (await prime(link, [ShellKind.PIPES], term="dumb")).start("a1", pty=None)
        assert await process.read_stdout(100)
        os.kill(os.getpid(), 9)

asyncio.run(main())
"""


async def test_what_a_killed_supervisor_left_is_listed_and_deleted_with_its_processes(scripted):
    site = scripted.site

    def left():
        count = 0
        for process in psutil.process_iter():
            try:
                count += str(site.home) in process.environ().get(MARK, "")
            except psutil.Error:
                continue
        return count

    command = [sys.executable, "-c", DIE, str(site.home), str(site.runtime)]
    done = await anyio.to_thread.run_sync(lambda: subprocess.run(command, check=False))
    assert done.returncode == -9
    assert left()
    async with scripted() as driver:
        (record,) = await driver.list_instances()
        assert record.status is InstanceStatus.STOPPED
        await driver.delete(record.instance_id)
        assert not await driver.list_instances()
    with anyio.fail_after(10):
        while left():  # noqa: ASYNC110 - a killed process is gone when the kernel has got round to it
            await anyio.sleep(0.02)
