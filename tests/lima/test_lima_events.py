import json

from hypothesis import given
from hypothesis import strategies as st

from claude_vm.drivers.lima import events

EARLY, LATE = "2026-01-01T10:00:00Z", "2026-01-01T11:00:00.5+00:00"
NOON = 1767263400.0  # between the two


def write(path, *lines):
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))


def test_the_last_state_counts_and_what_a_copied_file_says_does_not(tmp_path):
    write(
        tmp_path / events.STATES,
        {"time": EARLY, "status": {"running": True, "sshLocalPort": 1}},
        "torn",
        {"time": LATE, "status": {"sshLocalPort": 2}},
        {"time": LATE, "status": {"running": True, "degraded": True, "errors": ["no ssh"], "new": 1}},
    )
    assert events.state(tmp_path, NOON) == events.State(running=True, errors=("no ssh",))
    assert events.state(tmp_path, NOON + 7200) is None
    assert events.state(tmp_path / "nowhere", 0) is None


def test_phases_have_their_times(tmp_path):
    write(
        tmp_path / events.PHASES,
        {"time": EARLY, "level": "info", "msg": "of another start"},
        {"time": LATE, "level": "info", "msg": "Starting QEMU"},
        {"time": LATE, "level": "debug", "msg": "details"},
    )
    assert list(events.phases(tmp_path, NOON)) == [(1767265200.5, "Starting QEMU")]


def test_complaints_are_those_of_qemu_and_the_host_agents_warnings(tmp_path):
    write(
        tmp_path / events.PHASES,
        {"time": LATE, "level": "debug", "msg": "qemu[stderr]: no \x1b[31mmemory"},
        {"time": LATE, "level": "info", "msg": "well"},
        {"time": LATE, "level": "warning", "msg": "not well", "error": "because"},
    )
    assert events.said(tmp_path) == "no ?[31mmemory\nnot well: because"


@given(st.lists(st.binary(max_size=80)))
def test_whatever_is_in_the_files_is_no_error(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("host agent")
    for name in (events.STATES, events.PHASES):
        (folder / name).write_bytes(b"\n".join(lines))
    events.state(folder, 0)
    assert list(events.phases(folder, 0)) == []
    assert all(char.isprintable() or char == "\n" for char in events.said(folder))
