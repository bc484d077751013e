"""What a simulated hypervisor keeps on disk: templates, and a record for each instance.

<home>/templates/<name>/sim/<generation>/template.json      immutable
<home>/templates/<name>/sim/current                         a link to one of them, swapped by a rename
<home>/templates/<name>/sim/last-used                       empty; its time counts
<home>/sim/<supervisor id>/<instance id>/instance.json      and the guest's files beside it
"""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec

from claude_vm.drivers.api import InstanceSpec, TemplateRecord
from claude_vm.drivers.errors import TemplateMissingError
from claude_vm.drivers.process import ProcessIdentity

_BUILDING = ".building-"


class SimRecord(msgspec.Struct, frozen=True):
    """An instance as its folder tells it. `host` is the process in which its guest runs, once started."""

    spec: InstanceSpec
    host: ProcessIdentity | None = None
    running: bool = False
    prestarted: bool = False


class Store:
    """The folders of one home and one supervisor."""

    def __init__(self, home: Path, supervisor_id: str) -> None:
        self._templates = home / "templates"
        self._everyone = home / "sim"
        self._instances = self._everyone / supervisor_id

    def folder(self, instance_id: str) -> Path:
        """Return where an instance is, or would be. An id with a slash in it is nobody's."""
        return self._instances / instance_id.replace("/", "_")

    def write_instance(self, instance: SimRecord) -> None:
        """Write an instance's record, all or nothing. Makes its folder."""
        folder = self.folder(instance.spec.instance_id)
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _replace(folder / "instance.json", msgspec.json.encode(instance))

    def read_instance(self, instance_id: str) -> SimRecord | None:
        """Return an instance's record. None: there is no such, or it was not written to its end."""
        return _read_instance(self.folder(instance_id))

    def instance_ids(self) -> list[str]:
        """Return the ids of this supervisor's instances, finished or not."""
        with contextlib.suppress(FileNotFoundError):
            return sorted(path.name for path in self._instances.iterdir() if path.is_dir())
        return []

    def remove_instance(self, instance_id: str) -> None:
        """Remove an instance's folder.

        Raises:
            OSError: Something in it can't be removed.
        """
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.folder(instance_id))

    def users_of(self, name: str) -> tuple[str, ...]:
        """Return the instances of any supervisor that were cloned from a template."""
        return tuple(
            instance.spec.instance_id for instance in self._all_instances() if instance.spec.template == name
        )

    def generation(self, name: str, generation: str) -> tuple[Path, TemplateRecord]:
        """Return a generation's folder and record.

        Raises:
            TemplateMissingError: It is not there.
        """
        folder = self._templates / name / "sim" / generation
        try:
            return folder, msgspec.json.decode((folder / "template.json").read_bytes(), type=TemplateRecord)
        except (OSError, msgspec.DecodeError) as error:
            raise TemplateMissingError(f"the template {name} has no generation {generation}") from error

    def templates(self) -> list[TemplateRecord]:
        """Return the current generation of each template, by name."""
        found = []
        for link in sorted(self._templates.glob("*/sim/current")):
            with contextlib.suppress(OSError, TemplateMissingError):
                _, record = self.generation(link.parents[1].name, os.readlink(link))  # noqa: PTH115 - a name
                with contextlib.suppress(FileNotFoundError):
                    used = (link.parent / "last-used").stat().st_mtime
                    record = msgspec.structs.replace(record, last_used_at=used)
                found.append(record)
        return found

    @contextlib.contextmanager
    def building(self, name: str) -> Iterator[Path]:
        """Give a folder to build a generation in; remove what is still there afterwards."""
        parent = self._templates / name / "sim"
        parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = parent / f"{_BUILDING}{os.getpid()}-{secrets.token_hex(4)}"
        folder.mkdir(mode=0o700)
        try:
            _replace(folder / "builder.json", msgspec.json.encode(ProcessIdentity.of(os.getpid())))
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            for empty in (parent, parent.parent):
                with contextlib.suppress(OSError):
                    empty.rmdir()

    def publish(self, folder: Path, record: TemplateRecord) -> None:
        """Make a finished folder the current generation."""
        _replace(folder / "template.json", msgspec.json.encode(record))
        (folder / "builder.json").unlink()
        target = folder.with_name(record.generation)
        folder.rename(target)
        link = folder.with_name(f".current-{secrets.token_hex(4)}")
        link.symlink_to(record.generation)
        link.replace(folder.with_name("current"))

    def touch(self, name: str) -> None:
        """Note that a template is used now."""
        folder = self._templates / name / "sim"
        if folder.is_dir():
            (folder / "last-used").touch()

    def remove_template(self, name: str) -> None:
        """Remove all generations."""
        folder = self._templates / name / "sim"
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(folder)
        with contextlib.suppress(OSError):
            folder.parent.rmdir()

    def remove_garbage(self) -> list[str]:
        """Remove generations that are neither current nor used, and what dead builders left."""
        used = {(instance.spec.template, instance.spec.generation) for instance in self._all_instances()}
        removed = []
        for folder in sorted(self._templates.glob("*/sim/*")):
            if folder.is_symlink() or not folder.is_dir():
                continue
            name, current = folder.parents[1].name, folder.with_name("current")
            if folder.name.startswith(_BUILDING):
                keep = _is_being_built(folder)
            else:
                is_current = current.is_symlink() and os.readlink(current) == folder.name  # noqa: PTH115
                keep = is_current or (name, folder.name) in used
            if not keep:
                shutil.rmtree(folder, ignore_errors=True)
                removed.append(f"{name}/{folder.name}")
        return removed

    def _all_instances(self) -> Iterator[SimRecord]:
        for record in self._everyone.glob("*/*/instance.json"):
            instance = _read_instance(record.parent)
            if instance is not None:
                yield instance


def _read_instance(folder: Path) -> SimRecord | None:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((folder / "instance.json").read_bytes(), type=SimRecord)
    return None


def _is_being_built(folder: Path) -> bool:
    with contextlib.suppress(OSError, msgspec.DecodeError):
        return msgspec.json.decode((folder / "builder.json").read_bytes(), type=ProcessIdentity).is_alive()
    return False


def _replace(path: Path, data: bytes) -> None:
    part = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    part.write_bytes(data)
    part.replace(path)
