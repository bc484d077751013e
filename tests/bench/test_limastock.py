"""What the bench says when Lima, or what it needs, does not do what it is asked."""

import pytest

from claude_vm.bench import limastock
from claude_vm.bench.errors import BenchError
from claude_vm.bench.limastock import Ordinary


@pytest.fixture
def ordinary(tmp_path):
    return Ordinary(tmp_path, {"PATH": "/usr/bin:/bin"})


def test_a_command_that_takes_too_long_is_told(ordinary, monkeypatch):
    monkeypatch.setattr(limastock, "COMMAND_S", 0.01)
    with pytest.raises(BenchError, match="sleep 1000 takes longer than 0 s"):
        ordinary.do("/bin/sleep", "1000")


def test_a_command_that_fails_is_told_with_its_last_line(ordinary):
    with pytest.raises(BenchError, match=r"last$"):
        ordinary.do("sh", "-c", "echo first >&2; echo last >&2; exit 3")


def test_a_command_that_is_not_there_is_told(ordinary):
    with pytest.raises(BenchError, match="no-such-limactl"):
        ordinary.do("no-such-limactl", "start")


def test_a_disk_that_is_not_there_is_told_by_the_program_that_wants_it(tmp_path):
    with pytest.raises(BenchError, match=r"qemu-img convert .*No such file"):
        limastock.copy_disk(tmp_path / "none", tmp_path / "disk.qcow2")
