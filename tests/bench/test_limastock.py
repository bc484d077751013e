"""What the bench says when Lima, or what it needs, does not do what it is asked."""

import pytest

from claude_vm.bench import limastock
from claude_vm.bench.errors import BenchError


def test_a_command_that_takes_too_long_is_told(monkeypatch):
    monkeypatch.setattr(limastock, "COMMAND_S", 0.01)
    with pytest.raises(BenchError, match="sleep 1000 takes longer than 0 s"):
        limastock.run(["/bin/sleep", "1000"])


def test_a_command_that_fails_is_told_with_its_last_line():
    with pytest.raises(BenchError, match=r"last$"):
        limastock.run(["sh", "-c", "echo first >&2; echo last >&2; exit 3"])


def test_a_command_that_is_not_there_is_told():
    with pytest.raises(BenchError, match="no-such-limactl"):
        limastock.run(["no-such-limactl", "start"])


def test_a_disk_that_is_not_there_is_told_by_the_program_that_wants_it(tmp_path):
    with pytest.raises(BenchError, match=r"qemu-img convert .*No such file"):
        limastock.copy_disk(tmp_path / "none", tmp_path / "disk.qcow2")
