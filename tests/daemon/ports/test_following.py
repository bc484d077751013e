"""Which ports follow a guest: pure, so that every guest can be played."""

from hypothesis import given
from hypothesis import strategies as st

from claude_vm.supervisor.daemon.ports.following import MOST, MOST_EVER, Following

ports = st.frozensets(st.one_of(st.integers(1, 65535), st.integers(1020, 1030), st.just(22)), max_size=40)


def test_what_appears_is_opened_and_what_goes_is_closed():
    following = Following(set())
    assert following.changes({3000, 8080}).open == (3000, 8080)
    again = following.changes({3000, 8080})
    assert (again.open, again.close) == ((), ())
    changed = following.changes({8080, 9000})
    assert (changed.open, changed.close) == ((9000,), (3000,))
    assert following.changes({3000, 8080, 9000}).open == (3000,)


def test_low_ports_ssh_and_what_is_published_anyway_do_not_follow():
    following = Following({5000})
    assert following.candidates({22, 80, 1023, 1024, 5000}) == [1024]
    assert following.changes({22, 80, 1023, 5000}).open == ()


def test_more_than_may_follow_at_a_time_is_told_once_and_room_is_used_again():
    following = Following(set())
    many = set(range(2000, 2000 + MOST + 3))
    first = following.changes(many)
    assert (len(first.open), first.overflow) == (MOST, True)
    second = following.changes(many - {2000})
    assert (second.open, second.close, second.overflow) == ((2000 + MOST,), (2000,), False)


def test_a_guest_that_listens_at_ever_other_ports_comes_to_an_end():
    following = Following(set())
    opened = [port for start in range(1024, 60000) for port in following.changes({start}).open]
    assert len(opened) == MOST_EVER
    assert following.changes({1024}).open == (1024,)  # one that it had before may come back


@given(st.lists(ports, max_size=30), st.frozensets(st.integers(1, 65535), max_size=3))
def test_whatever_a_guest_says_the_bounds_hold(answers, fixed):
    following = Following(fixed)
    current, ever = set(), set()
    for listening in answers:
        changes = following.changes(listening)
        assert not set(changes.close) - current
        current -= set(changes.close)
        assert not current & set(changes.open)
        current |= set(changes.open)
        ever |= current
        assert current <= listening
        assert all(port >= 1024 and port not in fixed for port in current)
        assert len(current) <= MOST
        assert len(ever) <= MOST_EVER
        room = len(current) < MOST and len(ever) < MOST_EVER
        assert not room or current == set(following.candidates(listening))
