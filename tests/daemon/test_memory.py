"""The VMs in memory keep what the drivers' contract demands, as far as there is no guest in it."""

import contextlib
import importlib.util
from pathlib import Path

import pytest
from claude_vm_tests_memory import Cloud, MemoryDriver, in_virtual_time, template

from claude_vm.drivers.api import Owner

KEPT = (
    "a_clone_is_listed_as_stopped_until_it_is_deleted",
    "deleting_a_clone_leaves_nothing",
    "deleting_twice_or_what_never_was_is_fine",
    "unknown_instances_are_absent_or_refused",
    "a_missing_template_is_told",
    "a_cancelled_clone_is_untouched_or_listed",
    "the_death_of_a_vm_is_noticed",
    "a_prestarted_instance_is_listed_and_deleted_without_a_trace",
    "a_prestarted_instance_is_found_and_deleted_by_the_next_supervisor",
)


@pytest.fixture
def contract():
    spec = importlib.util.spec_from_file_location(
        "claude_vm_tests_contract", Path(__file__).parents[1] / "contract" / "conftest.py"
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.suite


@pytest.mark.parametrize("name", KEPT)
def test_vms_in_memory_keep_the_contract(contract, tmp_path, name):
    cloud = Cloud(tmp_path)
    cloud.templates["t"] = "g1"

    @contextlib.asynccontextmanager
    async def open_driver(owner):
        yield MemoryDriver(cloud)

    async def kill(driver, instance_id):
        cloud.vms[instance_id].die()

    async def main():
        case = contract.Case(
            MemoryDriver(cloud),
            Owner(tmp_path, "test", tmp_path / "run"),
            template("t", "g1"),
            tmp_path,
            open_driver,
            kill,
            None,
        )
        case.traces = lambda: set(cloud.vms)  # nothing of them is on a disk
        await contract.CHECKS[name](case)

    in_virtual_time(main)
