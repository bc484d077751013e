"""How often the client tells the daemon what it has written."""

import os

import pytest

from claude_vm.supervisor.cli.outputs import ACKNOWLEDGE, OutputWriter
from claude_vm.supervisor.wire.messages import WINDOW


@pytest.fixture
def output(tmp_path):
    descriptor = os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT)
    yield OutputWriter(descriptor)
    os.close(descriptor)


def test_small_pieces_are_acknowledged_together_and_nothing_is_lost(output):
    piece = b"x" * 1000
    told = []
    for _ in range(3 * ACKNOWLEDGE // len(piece)):
        output.put(piece, counted=True)
        output.write()
        if count := output.take_acknowledged():
            told.append(count)
    assert len(told) == 2
    assert all(ACKNOWLEDGE <= count < ACKNOWLEDGE + len(piece) for count in told)


def test_what_is_not_acknowledged_leaves_room_for_more():
    # Else both sides would wait for ever.
    assert ACKNOWLEDGE <= WINDOW // 2
