"""What is logged of lines that come again and again."""

import json
import logging

import pytest
import structlog

from claude_vm.supervisor.daemon.process import logfile
from claude_vm.supervisor.daemon.process.log_pace import BURST, EVERY_S, KINDS, Pace


class Log:
    """Lines at the times that a test says."""

    def __init__(self):
        self.now = 0.0
        self.pace = Pace(lambda: self.now)

    def line(self, event, **fields):
        """Return a line's fields if it is logged."""
        record = logging.LogRecord("x", 20, "f", 1, {"event": event, **fields}, (), None)
        return record.msg if self.pace.filter(record) else None


@pytest.fixture
def log():
    return Log()


def test_a_guest_that_flaps_for_a_day_leaves_few_lines_and_the_number_of_the_others(log):
    logged = []
    for second in range(86_400):
        log.now = second
        logged.append(log.line("port", session="s-1", text=f"port {second}"))
    passed = [line for line in logged if line]
    assert all(logged[:BURST])
    assert len(passed) <= BURST * 1.2 + 86_400 / EVERY_S
    assert len(passed) + sum(line.get("left_out", 0) for line in passed) >= 86_400 - EVERY_S


def test_one_guest_takes_no_line_from_another_nor_from_other_events(log):
    while log.line("port", session="s-1"):
        pass
    assert log.line("port", session="s-2")
    assert log.line("port", instance="i-1")
    assert log.line("session-ended", session="s-1")
    assert log.line("port") == {"event": "port"}


def test_after_a_rest_all_is_as_before(log):
    while log.line("port"):
        pass
    log.now = BURST * EVERY_S
    assert log.line("port") == {"event": "port", "left_out": 1}
    assert all(log.line("port") for _ in range(BURST - 1))
    assert not log.line("port")


def test_so_many_kinds_are_known_at_a_time_and_no_more(log):
    for number in range(3 * KINDS):
        assert log.line("port", session=str(number))
    assert len(log.pace._kinds) == KINDS


@pytest.fixture
def configured(tmp_path):
    """The log as a supervisor has it; the test's own is restored afterwards."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    logfile.configure(tmp_path / "log")
    yield tmp_path / "log"
    for handler in root.handlers:
        handler.close()
    root.handlers[:] = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_the_log_of_a_supervisor_keeps_the_pace_for_ours_and_for_libraries(configured):
    log = structlog.get_logger()
    for number in range(BURST + 50):
        log.info("port", text=str(number))
        logging.getLogger("library").warning("the peer sent %s", number)
    lines = [json.loads(line)["event"] for line in configured.read_text().splitlines()]
    assert lines.count("port") == BURST
    assert len(lines) == 2 * BURST
