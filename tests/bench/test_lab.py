"""What a run is about: the project, its template, the driver that has it."""

import os

import anyio
import pytest

from claude_vm.bench.errors import BenchError
from claude_vm.bench.lab import find_facts
from claude_vm.context.project import template_name
from claude_vm.drivers import registry
from claude_vm.drivers.api import Owner, TemplateSpec


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project in a data folder of its own, where the drivers lima and sim can be used."""
    folder = tmp_path / "project"
    folder.mkdir()
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("CLAUDE_VM_HOME", str(tmp_path / "home"))

    async def usable(_programs):
        return ["lima", "sim"]

    monkeypatch.setattr(registry, "usable", usable)
    return folder


def make_template(project):
    """Build the project's template with the driver sim."""
    home = project.parent / "home"
    spec = TemplateSpec(
        template_name(project),
        str(project),
        cpus=1,
        memory_mib=64,
        disk_gib=1,
        uid=os.getuid(),
        gid=os.getgid(),
    )
    owner = Owner(home, "builder", project.parent / "run")

    async def build():
        async with registry.open_driver("sim", owner) as driver:
            await driver.build_template(spec, lambda *_: None)

    anyio.run(build)


@pytest.mark.parametrize("environ", [{}, {"CLAUDE_VM_DRIVER": "auto"}, {"CLAUDE_VM_DRIVER": "sim"}])
def test_the_driver_is_the_first_usable_one_that_has_the_template_or_the_one_that_is_named(project, environ):
    make_template(project)
    assert find_facts(project, environ, {}).record.driver == "sim"


@pytest.mark.parametrize("environ", [{}, {"CLAUDE_VM_DRIVER": "lima"}])
def test_a_project_without_a_template_is_told(project, environ):
    with pytest.raises(BenchError, match="has no template"):
        find_facts(project, environ, {})
