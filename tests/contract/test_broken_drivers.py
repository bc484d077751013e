"""Drivers that break the contract on purpose: the suite must see each of them."""

import contextlib

import anyio
import msgspec
import pytest
from claude_vm_tests_suite import CHECKS

from claude_vm.drivers.api import InstanceRecord, InstanceStatus, tell_nobody
from claude_vm.drivers.directories import remove_tree
from claude_vm.drivers.errors import GuestError
from claude_vm.drivers.sim.driver import SimDriver
from claude_vm.drivers.sim.script import Script
from claude_vm.drivers.vm.phases import VmPhase

pytestmark = pytest.mark.anyio


class DeletesNothing(SimDriver):
    async def delete(self, instance_id):
        pass


class DeleteLeavesAFile(SimDriver):
    async def delete(self, instance_id):
        await super().delete(instance_id)
        (self._owner.home / f"{instance_id}.log").write_text("forgotten")


class DeleteLeavesASocket(SimDriver):
    async def delete(self, instance_id):
        await super().delete(instance_id)
        (self._owner.runtime / instance_id[:6]).touch()


class DeleteLeavesTheVm(SimDriver):
    async def delete(self, instance_id):
        remove_tree(self._store.folder(instance_id))


class DeleteIsNotIdempotent(SimDriver):
    async def delete(self, instance_id):
        if self._store.read_instance(instance_id) is None:
            raise KeyError(instance_id)
        await super().delete(instance_id)


class ListForgets(SimDriver):
    async def list_instances(self):
        return []


class ListForgetsWhatDoesNotRun(SimDriver):
    async def list_instances(self):
        return [r for r in await super().list_instances() if r.status is InstanceStatus.RUNNING]


class ListsStrangers(SimDriver):
    async def list_instances(self):
        everyone = self._owner.home.glob("sim/*/i-*")
        records = {record.instance_id: record for record in await super().list_instances()}
        return [records.get(p.name) or _record(p.name) for p in everyone]


def _record(instance_id):
    return InstanceRecord(instance_id, "contract", InstanceStatus.STOPPED)


class DeletesStrangers(SimDriver):
    async def delete(self, instance_id):
        await super().delete(instance_id)
        for path in self._owner.home.glob(f"sim/*/{instance_id}/instance.json"):
            path.unlink()
            path.parent.rmdir()


class CancelledCloneHides(SimDriver):
    async def clone(self, spec):
        part = self._owner.home / f".part-{spec.instance_id}"
        part.mkdir()
        await anyio.lowlevel.checkpoint()
        await super().clone(spec)
        part.rmdir()


class CancelledStartForgets(SimDriver):
    async def start(self, instance_id, progress):
        try:
            await anyio.lowlevel.checkpoint()
            return await super().start(instance_id, progress)
        except BaseException:
            self._guests.pop(instance_id, None)
            remove_tree(self._store.folder(instance_id))
            raise


class PrestartLeavesATrace(SimDriver):
    async def prestart(self, instance_id):
        await super().prestart(instance_id)
        (self._owner.runtime / f"{instance_id[2:]}.m").touch()


class PrestartHides(SimDriver):
    async def prestart(self, instance_id):
        await super().prestart(instance_id)
        folder = self._store.folder(instance_id)
        folder.rename(folder.with_name(f"ahead-{instance_id}"))


class PrestartsTwice(SimDriver):
    async def prestart(self, instance_id):
        with contextlib.suppress(Exception):
            await super().prestart(instance_id)


class PrestartBlocksTheStart(SimDriver):
    async def start(self, instance_id, progress):
        if self._known(instance_id).prestarted:
            raise GuestError("it was started already")
        return await super().start(instance_id, progress)


class PrestartIsDeniedAndDone(SimDriver):
    async def capabilities(self):
        return msgspec.structs.replace(await super().capabilities(), prestart=False)


class SharedKeys(SimDriver):
    access = None

    async def start(self, instance_id, progress):
        access = await super().start(instance_id, progress)
        if SharedKeys.access is None:
            SharedKeys.access = access
        return msgspec.structs.replace(access, host_key=SharedKeys.access.host_key)


class AnyHostKey(SimDriver):
    """As if the key of the template were used by each clone."""

    async def start(self, instance_id, progress):
        access = await super().start(instance_id, progress)
        self.first = getattr(self, "first", access)
        return msgspec.structs.replace(access, port=self.first.port, host_key=self.first.host_key)


class ReadableKey(SimDriver):
    async def start(self, instance_id, progress):
        access = await super().start(instance_id, progress)
        access.client_key.chmod(0o644)
        return access


class DeathUnnoticed(SimDriver):
    async def wait_stopped(self, instance_id):
        await anyio.sleep_forever()


class DeathToldTooEarly(SimDriver):
    async def wait_stopped(self, instance_id):
        return "it will surely stop"


class AlwaysRunning(SimDriver):
    async def poll(self, instance_id):
        return InstanceStatus.RUNNING


class UnknownIsABug(SimDriver):
    async def start(self, instance_id, progress):
        self._guests.get(instance_id) or self._store.read_instance(instance_id).spec
        return await super().start(instance_id, progress)


class UnknownIsIgnored(SimDriver):
    async def put_files(self, instance_id, files):
        if instance_id in self._guests:
            await super().put_files(instance_id, files)


class ModesIgnored(SimDriver):
    async def put_files(self, instance_id, files):
        await super().put_files(instance_id, [msgspec.structs.replace(file, mode=0o600) for file in files])


class AppendIgnored(SimDriver):
    async def put_files(self, instance_id, files):
        await super().put_files(instance_id, [msgspec.structs.replace(file, append=False) for file in files])


class ShrinksDisks(SimDriver):
    async def clone(self, spec):
        await super().clone(msgspec.structs.replace(spec, disk_gib=1000))


class ClonesFromNowhere(SimDriver):
    async def clone(self, spec):
        (template,) = await self.templates()
        await super().clone(
            msgspec.structs.replace(spec, template=template.name, generation=template.generation)
        )


class ClonesTwice(SimDriver):
    async def clone(self, spec):
        with contextlib.suppress(Exception):
            await super().clone(spec)


class RemovesUsedTemplates(SimDriver):
    async def delete_template(self, name):
        self._store.remove_template(name)


class ForgetsUse(SimDriver):
    async def touch_template(self, name):
        pass


class BuildLeavesAFolder(SimDriver):
    async def build_template(self, spec, progress):
        folder = self._owner.home / "templates" / spec.name / "sim" / "half-built"
        folder.mkdir(exist_ok=True)
        await anyio.sleep(1)
        folder.rmdir()
        return await super().build_template(spec, progress)


class TellsAnotherWay(SimDriver):
    async def start(self, instance_id, progress, reachable=tell_nobody):
        access = await super().start(instance_id, progress)
        reachable(msgspec.structs.replace(access, user="somebody"))
        return access


class OneAtATime(SimDriver):
    busy = False

    async def start(self, instance_id, progress):
        if self.busy:
            raise GuestError("busy")
        self.busy = True
        try:
            await anyio.lowlevel.checkpoint()
            return await super().start(instance_id, progress)
        finally:
            self.busy = False


class ReadOnlyThatIsNot(SimDriver):
    """Claims to be a machine; its "guest" writes wherever it likes."""

    async def capabilities(self):
        return msgspec.structs.replace(await super().capabilities(), isolates=True)


class MountsWhateverIsThere(SimDriver):
    async def clone(self, spec):
        mounts = tuple(msgspec.structs.replace(mount, device=0, inode=0) for mount in spec.mounts)
        await super().clone(msgspec.structs.replace(spec, mounts=mounts))


class SaysNothing(SimDriver):
    async def capabilities(self):
        return msgspec.structs.replace(await super().capabilities(), accelerator="magic")


class NamesNoAddress(SimDriver):
    async def capabilities(self):
        return msgspec.structs.replace(await super().capabilities(), host_address="the host")


class TellsAgentsALot(SimDriver):
    async def capabilities(self):
        return msgspec.structs.replace(await super().capabilities(), instructions="Think. " * 50)


class TellsItsPhasesBackwards(SimDriver):
    async def capabilities(self):
        phases = (VmPhase.RESTORE, VmPhase.IDENTITY)
        return msgspec.structs.replace(await super().capabilities(), phases=phases)

    async def start(self, instance_id, progress):
        for phase in (VmPhase.IDENTITY, VmPhase.RESTORE):
            progress(phase, "")
        return await super().start(instance_id, progress)


class TakesNothing(SimDriver):
    async def taken_mib(self, instance_id):
        return 0


class TakesMemoryForEver(SimDriver):
    async def taken_mib(self, instance_id):
        return 100


BROKEN = {
    TakesNothing: "what_runs_takes_memory_and_what_does_not_run_takes_none",
    TakesMemoryForEver: "what_runs_takes_memory_and_what_does_not_run_takes_none",
    DeletesNothing: "deleting_a_clone_leaves_nothing",
    DeleteLeavesAFile: "deleting_a_clone_leaves_nothing",
    DeleteLeavesASocket: "deleting_a_clone_leaves_nothing",
    DeleteLeavesTheVm: "deleting_a_running_vm_ends_all_that_it_had",
    DeleteIsNotIdempotent: "deleting_twice_or_what_never_was_is_fine",
    ListForgets: "a_clone_is_listed_as_stopped_until_it_is_deleted",
    ListForgetsWhatDoesNotRun: "a_cancelled_clone_is_untouched_or_listed",
    ListsStrangers: "other_owners_instances_are_untouched",
    DeletesStrangers: "other_owners_instances_are_untouched",
    CancelledCloneHides: "a_cancelled_clone_is_untouched_or_listed",
    CancelledStartForgets: "a_cancelled_start_leaves_an_instance_that_is_listed_and_can_be_deleted",
    PrestartLeavesATrace: "a_prestarted_instance_is_listed_and_deleted_without_a_trace",
    PrestartHides: "a_prestarted_instance_is_found_and_deleted_by_the_next_supervisor",
    PrestartsTwice: "a_prestarted_instance_is_listed_and_deleted_without_a_trace",
    PrestartBlocksTheStart: "a_prestarted_instance_starts_like_any_other",
    PrestartIsDeniedAndDone: "a_prestarted_instance_is_listed_and_deleted_without_a_trace",
    SharedKeys: "no_two_clones_share_a_key",
    AnyHostKey: "no_two_clones_share_a_key",
    ReadableKey: "a_started_instance_is_reached_by_its_own_key_only",
    DeathUnnoticed: "the_death_of_a_vm_is_noticed",
    DeathToldTooEarly: "the_death_of_a_vm_is_noticed",
    AlwaysRunning: "unknown_instances_are_absent_or_refused",
    UnknownIsABug: "unknown_instances_are_absent_or_refused",
    UnknownIsIgnored: "unknown_instances_are_absent_or_refused",
    ModesIgnored: "files_arrive_in_the_guest_as_they_were_given",
    AppendIgnored: "files_arrive_in_the_guest_as_they_were_given",
    ShrinksDisks: "a_disk_never_shrinks",
    ClonesFromNowhere: "a_missing_template_is_told",
    ClonesTwice: "a_started_instance_is_reached_by_its_own_key_only",
    RemovesUsedTemplates: "a_template_that_an_instance_uses_stays",
    ForgetsUse: "templates_tell_when_they_were_used",
    BuildLeavesAFolder: "a_cancelled_build_leaves_the_former_generation_and_nothing_else",
    TellsAnotherWay: "who_connects_as_soon_as_it_is_told_how_is_answered_by_a_whole_guest",
    OneAtATime: "several_instances_start_at_the_same_time",
    ReadOnlyThatIsNot: "read_only_holds_against_root_in_the_guest",
    MountsWhateverIsThere: "another_directory_under_the_name_of_a_mount_is_refused",
    SaysNothing: "a_driver_says_what_it_can_do",
    NamesNoAddress: "a_driver_says_what_it_can_do",
    TellsAgentsALot: "a_driver_says_what_it_can_do",
    TellsItsPhasesBackwards: "a_started_instance_is_reached_by_its_own_key_only",
}


@pytest.fixture
def own_site(new_site):
    """A site that may be ruined."""
    return new_site("sim")


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.__name__)
async def test_a_broken_driver_fails_the_suite(own_site, project, broken, monkeypatch):
    def open_broken(owner):
        return contextlib.aclosing(broken(owner, Script(prestart=True)))

    monkeypatch.setattr(own_site, "open_driver", open_broken)
    async with own_site.case(project) as case:
        case.patience_s = 2
        failure = None
        try:
            await CHECKS[BROKEN[broken]](case)
        except (Exception, BaseExceptionGroup, pytest.fail.Exception) as error:  # noqa: BLE001 - any failure counts
            failure = error
        assert failure is not None
        # A check fails by its own assertion or by the driver's error, not by a mistake in the check.
        assert not isinstance(failure, NameError | TypeError), failure
