"""What a simulated hypervisor keeps on disk: templates, and a record for each instance.

<home>/templates/<name>/sim/<generation>/template.json      see `claude_vm.drivers.templates`
<home>/sim/<supervisor id>/<instance id>/instance.json      and the guest's files beside it
"""

import contextlib
from pathlib import Path

import msgspec

from claude_vm.drivers import files
from claude_vm.drivers.api import InstanceSpec, TemplateRecord
from claude_vm.drivers.process import ProcessIdentity
from claude_vm.drivers.templates import Templates, Use


class SimRecord(msgspec.Struct, frozen=True):
    """An instance as its folder tells it. `host` is the process in which its guest runs, once started."""

    spec: InstanceSpec
    host: ProcessIdentity | None = None
    running: bool = False
    prestarted: bool = False


class SimTemplates(Templates[tuple[Path, TemplateRecord]]):
    """The simulated templates of a home. Of a generation there are its folder and its record."""

    def read(self, folder: Path) -> tuple[Path, TemplateRecord]:
        """Return the generation in a folder; see `Templates.read`."""
        return folder, msgspec.json.decode((folder / "template.json").read_bytes(), type=TemplateRecord)


class Store:
    """The instances of one home and one supervisor."""

    def __init__(self, home: Path, supervisor_id: str) -> None:
        self._everyone = home / "sim"
        self._instances = self._everyone / supervisor_id

    def folder(self, instance_id: str) -> Path:
        """Return where an instance is, or would be. An id with a slash in it is nobody's."""
        return self._instances / instance_id.replace("/", "_")

    def write_instance(self, instance: SimRecord) -> None:
        """Write an instance's record, all or nothing. Makes its folder."""
        folder = self.folder(instance.spec.instance_id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        files.replace(folder / "instance.json", msgspec.json.encode(instance))

    def read_instance(self, instance_id: str) -> SimRecord | None:
        """Return an instance's record. None: there is no such, or it was not written to its end."""
        return _read_instance(self.folder(instance_id))

    def instance_ids(self) -> list[str]:
        """Return the ids of this supervisor's instances, finished or not."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(path.name for path in self._instances.iterdir() if path.is_dir())
        return []

    def users(self) -> list[Use]:
        """Return what the instances of all supervisors were cloned from."""
        found = [_read_instance(record.parent) for record in self._everyone.glob("*/*/instance.json")]
        specs = [instance.spec for instance in found if instance is not None]
        return [Use(spec.instance_id, spec.template, spec.generation) for spec in specs]


def _read_instance(folder: Path) -> SimRecord | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((folder / "instance.json").read_bytes(), type=SimRecord)
    return None
