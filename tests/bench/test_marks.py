from claude_vm.bench.children import Timing
from claude_vm.bench.marks import instants_of, join, relative


def row(name, *marks):
    return {"session": name, "marks": [{"name": n, "at": at} for n, at in marks]}


def timing(begun, exited):
    return Timing(begun, {"exited": exited}, 0)


def names(found):
    return [r and r["session"] for r in found]


def test_a_session_belongs_to_the_command_that_ran_when_it_was_requested():
    rows = [row("old", ("requested", 5.0)), row("mine", ("requested", 11.0), ("ended", 12.0))]
    assert names(join([timing(10.0, 3.0)], rows)) == ["mine"]


def test_sessions_of_a_burst_are_told_apart_by_their_output():
    """Two were warm, two had to wait; the daemon took them in another order than they were started in."""
    rows = [
        row("warm1", ("requested", 10.16), ("first-output", 10.43), ("ended", 10.76)),
        row("warm2", ("requested", 10.17), ("first-output", 10.97), ("ended", 11.04)),
        row("made1", ("requested", 10.18), ("first-output", 21.64), ("ended", 21.71)),
        row("made2", ("requested", 10.15), ("first-output", 19.04), ("ended", 19.12)),
    ]
    shown = {"made1": 11.66, "made2": 9.06, "warm2": 0.98, "warm1": 0.45}
    timings = [Timing(10.0, {"shown": at, "exited": at + 0.8}, 0) for at in shown.values()]
    assert names(join(timings, rows)) == list(shown)
    assert names(join(timings[::-1], rows[::-1])) == list(shown)[::-1]


def test_a_session_whose_output_came_after_what_a_command_showed_is_not_that_commands():
    late = row("late", ("requested", 10.1), ("first-output", 12.0), ("ended", 12.1))
    assert join([Timing(10.0, {"shown": 1.0, "exited": 3.0}, 0)], [late]) == [None]


def test_a_session_that_ended_later_than_a_command_is_not_that_commands():
    rows = [
        row("long", ("requested", 10.1), ("ended", 15.0)),
        row("short", ("requested", 10.2), ("ended", 11.0)),
    ]
    assert names(join([timing(10.0, 2.0), timing(10.05, 6.0)], rows)) == ["short", "long"]


def test_a_command_without_a_session_gets_none():
    assert join([timing(10.0, 1.0)], [row("x", ("requested", 20.0)), {"session": "y"}]) == [None]


def test_what_is_no_mark_is_left_out_and_the_first_of_a_name_counts():
    strange = {"marks": [{"name": "a", "at": 1}, {"name": "a", "at": 2}, {"name": "b"}, "c", None]}
    assert instants_of(strange) == {"a": 1.0}
    assert instants_of({"marks": "none"}) == {}
    assert relative(row("s", ("requested", 10.5)), 10.0) == {"requested": 0.5}
