import json
import os
import select
import subprocess
import sys
from contextlib import suppress

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
def at(name):
    return f"/proc/self/fd/{os.open(name, os.O_PATH | os.O_NOFOLLOW)}"
attempt("plain", lambda: os.chmod("f", 0o755))
attempt("setuid", lambda: os.chmod("f", 0o4755))
descriptor = os.open(".", os.O_RDONLY)
attempt("setuid by descriptor", lambda: os.chmod("f", 0o4755, dir_fd=descriptor))
attempt("setuid by file", lambda: os.fchmod(os.open("f", os.O_RDWR), 0o4755))
attempt("created setuid", lambda: os.open("g", os.O_CREAT | os.O_WRONLY, 0o4755))
attempt("created setgid", lambda: os.open("h", os.O_CREAT | os.O_WRONLY, 0o2755))
attempt("made setuid", lambda: os.mknod("i", stat.S_IFREG | 0o4755))
attempt("setgid", lambda: os.chmod(at("f"), 0o2755))
attempt("setgid that calls it a directory", lambda: os.chmod(at("f"), stat.S_IFDIR | 0o2755))
attempt("setgid without execution", lambda: os.chmod(at("f"), 0o2644))
attempt("setgid by descriptor", lambda: os.chmod("f", 0o2755, dir_fd=descriptor))
attempt("setgid by file", lambda: os.fchmod(os.open("f", os.O_RDWR), 0o2755))
attempt("setgid by a name that may change", lambda: os.chmod("d", 0o2755))
attempt("setuid directory", lambda: os.chmod(at("d"), 0o6755))
attempt("made setgid", lambda: os.mknod("j", stat.S_IFREG | 0o2755))
attempt("setgid of nothing", lambda: os.chmod("/proc/self/fd/12345", 0o2755))
attempt("setgid directory", lambda: os.chmod(at("d"), 0o2755))
attempt("setgid directory by file", lambda: os.fchmod(os.open("d", os.O_RDONLY), 0o2775))
os.mkdir("d/below")
found["inherited"] = bool(os.stat("d/below").st_mode & stat.S_ISGID)
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
found["effective"] = int(status["CapEff"], 16)
found["umask"] = os.umask(0)
print(json.dumps(found))
"""


# Who answers the kernel's questions: seen by the program that it is about.
LOOK = """
import json, os, sys
(pid,) = map(int, open(f"/proc/self/task/{os.getpid()}/children").read().split())
while b"LOOK" in (words := open(f"/proc/{pid}/cmdline", "rb").read()):
    pass  # it has not come to that yet
links = [os.readlink(f"/proc/{pid}/fd/{number}") for number in os.listdir(f"/proc/{pid}/fd")]
print(json.dumps({"pid": pid, "words": words.strip(b"\\0").decode(), "links": links}))
"""
CONFINE = [sys.executable, "-I", "-S", confine.__file__]


def run_confined(folder, drop="keep", script=TRY, around=()):
    argv = [*around, *CONFINE, drop, sys.executable, "-c", script, str(folder)]
    done = subprocess.run(argv, capture_output=True, check=True, timeout=30)
    return json.loads(done.stdout)


@linux
def test_a_confined_program_can_not_make_files_that_run_as_their_owner_or_group(tmp_path):
    found = run_confined(tmp_path)

    refused = [name for name in found if "setuid" in name or "setgid" in name]
    refused = [name for name in refused if not name.startswith("setgid directory")]
    assert len(refused) == 15
    assert {name: found[name] for name in refused} == dict.fromkeys(refused, "Operation not permitted")
    assert not any(path.stat().st_mode & 0o6000 for path in tmp_path.iterdir() if path.is_file())


@linux
def test_a_confined_program_can_do_what_git_does(tmp_path):
    found = run_confined(tmp_path)

    assert found["plain"] == "done"
    assert found["setgid directory"] == found["setgid directory by file"] == "done"
    assert found["inherited"]


@linux
def test_who_is_asked_about_directories_holds_nothing_bears_no_mark_and_ends_with_the_program(tmp_path):
    found = run_confined(tmp_path, script=LOOK)

    assert found["words"] == "claude-vm-modes"
    assert found["links"] == ["anon_inode:seccomp notify"]
    with suppress(ProcessLookupError):  # gone already
        descriptor = os.pidfd_open(found["pid"])
        assert select.select([descriptor], [], [], 10)[0]
        os.close(descriptor)


@linux
def test_where_nobody_can_be_asked_no_directory_gets_the_set_group_id_bit_either(tmp_path):
    found = run_confined(tmp_path, around=[*CONFINE, "keep"])  # there can be one who answers

    assert found["setgid directory"] == found["setgid"] == found["setuid"] == "Operation not permitted"
    assert found["plain"] == "done"


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
