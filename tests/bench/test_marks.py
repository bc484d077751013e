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


def test_sessions_of_a_burst_go_to_the_commands_in_their_order():
    rows = [row("b", ("requested", 10.2)), row("a", ("requested", 10.1))]
    assert names(join([timing(10.0, 3.0), timing(10.05, 3.0)], rows)) == ["a", "b"]


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
