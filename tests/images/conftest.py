"""A stand-in for mmdebstrap, so that the cache around it can be tested in milliseconds."""

import sys
from pathlib import Path

import pytest

STAND_IN = """\
#!{python}
# The parts of mmdebstrap that the driver relies on: a folder in $TMPDIR, results in the working directory,
# the disk through a descriptor. The file "behaviour" says what goes wrong.
import os, subprocess, sys, tempfile, time
here = os.path.dirname(os.path.abspath(__file__))
if sys.argv[1] == "--unshare-helper":
    sys.exit(subprocess.run(sys.argv[2:]).returncode)
with open(here + "/runs", "a") as runs:
    runs.write("run\\n")
with open(here + "/argv", "w") as out:
    out.write("\\0".join(sys.argv))
root = tempfile.mkdtemp(prefix="mmdebstrap.")
os.makedirs(root + "/etc/deep")
open(root + "/etc/deep/file", "w").close()
behaviour = open(here + "/behaviour").read()
if behaviour == "fail":
    print("I: working", file=sys.stderr)
    print("E: NO_PUBKEY 0123456789ABCDEF", file=sys.stderr)
    sys.exit(25)
if behaviour == "hang":
    print("I: hanging", file=sys.stderr, flush=True)
    time.sleep(600)
for name in ("kernel", "initrd", "terminfo", "locales"):
    with open(name, "w") as out:
        out.write("C.utf8 C\\n" if name == "locales" else name + "\\n")
if behaviour != "empty":
    os.write(int(os.environ["DISK_FD"]), b"a file system")
subprocess.run(["rm", "-rf", root], check=True)
"""


class StandIn:
    """What the stand-in is told and what it tells."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.behave("well")

    def behave(self, how):
        (self.folder / "behaviour").write_text(how)

    @property
    def runs(self):
        path = self.folder / "runs"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def argv(self):
        return (self.folder / "argv").read_text().split("\0")


@pytest.fixture
def mmdebstrap(tmp_path, monkeypatch):
    """mmdebstrap and the programs that it needs, as stand-ins on the path."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("mmdebstrap", "mke2fs", "newuidmap", "newgidmap"):
        (folder / name).write_text(
            STAND_IN.format(python=sys.executable) if name == "mmdebstrap" else "#!/bin/sh\n"
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return StandIn(folder)


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """The folder in which builds make their scratch folders."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.setattr("claude_vm.drivers.images.bootstrap.scratch_root", lambda _: folder)
    return folder
