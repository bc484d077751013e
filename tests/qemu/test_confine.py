import json
import os
import subprocess
import sys

import pytest

from claude_vm.drivers.vm import confine
from claude_vm.drivers.vm.spawn import confined

linux = pytest.mark.skipif(sys.platform != "linux", reason="system call filters are Linux's")

TRY = """
import json, os, stat, sys
os.chdir(sys.argv[1])
found = {}
def attempt(name, work):
    try:
        work()
    except OSError as error:
        found[name] = error.strerror
    else:
        found[name] = "done"
open("f", "w").close()
os.mkdir("d")
attempt("plain", lambda: os.chmod("f", 0o755))
attempt("setuid", lambda: os.chmod("f", 0o4755))
descriptor = os.open(".", os.O_RDONLY)
attempt("setuid by descriptor", lambda: os.chmod("f", 0o4755, dir_fd=descriptor))
attempt("setuid by file", lambda: os.fchmod(os.open("f", os.O_RDWR), 0o4755))
attempt("created setuid", lambda: os.open("g", os.O_CREAT | os.O_WRONLY, 0o4755))
attempt("created setgid", lambda: os.open("h", os.O_CREAT | os.O_WRONLY, 0o2755))
attempt("made setuid", lambda: os.mknod("i", stat.S_IFREG | 0o4755))
attempt("setgid directory", lambda: os.chmod("d", 0o2755))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
found["effective"] = int(status["CapEff"], 16)
found["umask"] = os.umask(0)
print(json.dumps(found))
"""


def run_confined(folder, drop="keep"):
    argv = [sys.executable, "-I", "-S", confine.__file__, drop, sys.executable, "-c", TRY, str(folder)]
    done = subprocess.run(argv, capture_output=True, check=True, timeout=30)
    return json.loads(done.stdout)


@linux
def test_a_confined_program_can_not_make_set_user_id_files(tmp_path):
    found = run_confined(tmp_path)

    refused = [
        "setuid",
        "setuid by descriptor",
        "setuid by file",
        "created setuid",
        "created setgid",
        "made setuid",
    ]
    assert {name: found[name] for name in refused} == dict.fromkeys(refused, "Operation not permitted")
    assert not any(path.stat().st_mode & 0o4000 for path in tmp_path.iterdir())


@linux
def test_a_confined_program_can_do_what_git_does(tmp_path):
    found = run_confined(tmp_path)

    assert found["plain"] == "done"
    assert found["setgid directory"] == "done"


@linux
def test_files_of_a_confined_program_are_nobody_elses(tmp_path):
    assert run_confined(tmp_path)["umask"] == 0o077


@linux
def test_root_loses_the_capabilities_that_9p_would_lend_to_a_guest(tmp_path):
    # Who is not root has none to lose, and may not drop any.
    found = run_confined(tmp_path, "drop" if os.geteuid() == 0 else "keep")

    for number in (0, 1, 2, 3, 4, 6, 7, 8, 27, 31):
        assert not found["effective"] >> number & 1


def test_only_a_qemu_that_stays_root_drops_capabilities(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert confined(["qemu"], root_guest=True)[-2:] == ["drop", "qemu"]
    assert confined(["qemu"], root_guest=False)[-2:] == ["keep", "qemu"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert confined(["qemu"], root_guest=True)[-2:] == ["keep", "qemu"]


def test_an_architecture_without_a_table_has_no_filter():
    assert confine.program("riscv64") == b""
    assert len(confine.program("aarch64")) % 8 == 0
