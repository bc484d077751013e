"""What people install is what is on the disk."""

import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from claude_vm.supervisor.wire.version import VERSION

ROOT = Path(__file__).parents[2]
PACKAGES = ("supervisor", "drivers", "context", "bench")
LAUNCHER = ROOT / "supervisor" / "cli" / "launcher" / "claude-vm"
PROGRAMS = ("claude-vm", "claude-vm-setup", "claude-vm-shell")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """An sdist of this tree, and a wheel built from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder]
    subprocess.run([*command, "--sdist", ROOT], check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    (folder / "unpacked").mkdir()
    subprocess.run(["tar", "-xzf", sdist, "-C", folder / "unpacked"], check=True)
    (tree,) = (folder / "unpacked").iterdir()
    subprocess.run([*command, "--wheel", tree], check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    return sdist, wheel


def files_on_disk():
    return {
        f"claude_vm/{path.relative_to(ROOT)}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.parent != LAUNCHER.parent
    }


def test_a_wheel_built_from_the_sdist_has_every_file_of_the_packages(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    scripts = {f"claude_vm-{VERSION}.data/scripts/{program}" for program in PROGRAMS}
    assert names == files_on_disk() | scripts


def test_a_wheel_has_the_launcher_as_each_program(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        for program in PROGRAMS:
            entry = archive.getinfo(f"claude_vm-{VERSION}.data/scripts/{program}")
            assert archive.read(entry) == LAUNCHER.read_bytes()
            assert entry.external_attr >> 16 & 0o111 == 0o111


def test_each_package_says_that_it_is_typed(built):
    _, wheel = built
    with zipfile.ZipFile(wheel) as archive:
        assert {f"claude_vm/{p}/py.typed" for p in PACKAGES} <= set(archive.namelist())


def test_the_sdist_has_what_a_packager_needs(built):
    sdist, _ = built
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[-1] for name in archive.getnames()}
    assert {"pyproject.toml", "hatch_build.py", "LICENSE-MIT", "LICENSE-APACHE", "README.md"} <= names


def test_the_version_is_said_in_one_voice():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == VERSION


@pytest.mark.timeout(300)
def test_an_installed_copy_of_the_folder_gives_working_commands_until_it_is_uninstalled(tmp_path):
    folder = tmp_path / "an environment" / "bin"
    subprocess.run([sys.executable, "-m", "venv", folder.parent], check=True)
    pip = [folder / "python", "-m", "pip", "--quiet", "--disable-pip-version-check"]
    ignored = shutil.ignore_patterns(".git", ".venv", ".dev", "*cache*", ".hypothesis")
    shutil.copytree(ROOT, tmp_path / "copy", ignore=ignored, symlinks=True)
    subprocess.run([*pip, "install", tmp_path / "copy"], check=True, capture_output=True)
    for program, word, said in zip(
        PROGRAMS,
        ("--version", "--help", "--help"),
        (VERSION, "claude-vm setup", "claude-vm shell"),
        strict=True,
    ):
        (tmp_path / program).symlink_to(folder / program)  # as pipx and uv do
        for path in (folder / program, tmp_path / program):
            done = subprocess.run(
                [path, word],
                capture_output=True,
                text=True,
                check=True,
                cwd=tmp_path,
                env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
            )
            assert said in done.stdout.splitlines()[0]
            assert done.stderr == ""
    subprocess.run([*pip, "uninstall", "--yes", "claude-vm"], check=True, capture_output=True)
    assert not list(folder.glob("claude-vm*"))
