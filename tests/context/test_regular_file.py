"""Small files of strangers."""

import os

import pytest

from claude_vm.context.regular_file import read_regular


def test_file_is_read_up_to_the_limit_and_not_beyond(tmp_path):
    (tmp_path / "f").write_bytes(b"12345")
    assert read_regular(tmp_path / "f", 5) == b"12345"
    assert read_regular(tmp_path / "f", 4) is None


def test_what_is_no_regular_file_is_none(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "dangling").symlink_to("nothing")
    for name in ("fifo", "dangling", "nothing", ".", "nul\0"):
        assert read_regular(tmp_path / name, 5) is None
    assert read_regular(tmp_path / "x" / "/dev/zero", 5) is None


def test_a_device_does_not_notice_that_somebody_looked(monkeypatch, tmp_path):
    """Some do things when they are opened: a watchdog, a serial port, a tape."""
    (tmp_path / "config").symlink_to("/dev/zero")
    flags = []
    plain = os.open
    monkeypatch.setattr(os, "open", lambda path, how, *more: flags.append(how) or plain(path, how, *more))
    assert read_regular(tmp_path / "config", 5) is None
    assert len(flags) == 1
    assert flags[0] & os.O_PATH


def test_symlink_is_followed(tmp_path):
    (tmp_path / "f").write_bytes(b"1")
    (tmp_path / "link").symlink_to("f")
    assert read_regular(tmp_path / "link", 5) == b"1"


def test_no_descriptor_is_left_open_also_after_an_error(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"1")
    opened = []
    plain = os.open

    def remember(*words, **named):
        opened.append(plain(*words, **named))
        return opened[-1]

    def fail(*_):
        raise OSError(5, "no")

    monkeypatch.setattr(os, "open", remember)
    read_regular(tmp_path, 5)
    read_regular(tmp_path / "f", 5)
    monkeypatch.setattr(os, "read", fail)
    assert read_regular(tmp_path / "f", 5) is None
    monkeypatch.undo()
    assert len(opened) == 5  # a file is looked at, then read
    for descriptor in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(descriptor)
