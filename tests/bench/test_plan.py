import pytest

from claude_vm.bench.plan import BURST, STAGGER, Unit, plan, unit

FAST = [Unit("warm"), Unit("ssh"), Unit("clone")]
SLOW = Unit("cold", slow=True)


def test_every_round_has_every_unit_so_that_noise_hits_all():
    turns = list(plan(FAST, rounds=20, warm_up=2))
    for index in range(-2, 20):
        assert sorted(t.unit.mode for t in turns if t.round == index) == ["clone", "ssh", "warm"]


def test_the_order_changes_from_round_to_round():
    turns = list(plan(FAST, rounds=20))
    orders = {tuple(t.unit.mode for t in turns if t.round == index) for index in range(20)}
    assert len(orders) > 3


def test_the_same_seed_gives_the_same_plan():
    assert list(plan(FAST, rounds=5, seed=7)) == list(plan(FAST, rounds=5, seed=7))
    assert list(plan(FAST, rounds=5, seed=7)) != list(plan(FAST, rounds=5, seed=8))


def test_turns_are_numbered_in_their_order():
    assert [t.number for t in plan(FAST, rounds=3)] == list(range(12))


def test_slow_units_come_seldom_and_over_the_whole_run():
    rounds = [t.round for t in plan([*FAST, SLOW], rounds=20, slow_rounds=5) if t.unit is SLOW]
    assert rounds == [-1, 0, 4, 8, 12, 16]


def test_slow_units_come_in_each_of_few_rounds():
    rounds = [t.round for t in plan([SLOW], rounds=2, slow_rounds=5, warm_up=0)]
    assert rounds == [0, 1]


def test_patterns_have_their_starts():
    assert unit("warm", "sequential").starts == (0.0,)
    assert unit("warm", "burst").starts == (0.0,) * BURST
    staggered = unit("warm", "staggered").starts
    assert len(staggered) == STAGGER
    assert staggered[:3] == (0.0, 0.25, 0.5)
    with pytest.raises(ValueError, match="no pattern 'fast'"):
        unit("warm", "fast")
