"""Rankings and deadlines: who is first, who is due, and which alarms that takes."""

import random

from claude_vm.supervisor.core.deadlines import SLACK, Deadlines, Ranking


def test_the_lowest_rank_is_first_and_among_equals_the_one_that_was_put_first():
    ranking = Ranking()
    assert ranking.first() is None
    for item, rank in (("c", 2.0), ("b", 1.0), ("a", 1.0)):
        ranking.put(item, rank)
    assert ranking.first() == (1.0, "b")
    ranking.discard("b")
    assert ranking.first() == (1.0, "a")
    ranking.put("a", 3.0)
    assert ranking.first() == (2.0, "c")
    assert (ranking.rank("a"), ranking.rank("b")) == (3.0, None)
    assert ("a" in ranking, "b" in ranking, len(ranking)) == (True, False, 2)


def test_discarding_what_is_not_there_does_nothing():
    ranking = Ranking()
    ranking.discard("a")
    assert ranking.first() is None


def test_a_ranking_agrees_with_a_sorted_list_whatever_is_done_to_it():
    rng = random.Random(5)
    ranking, model = Ranking(), {}
    for n in range(5000):
        item = rng.randrange(40)
        if rng.random() < 0.6:
            rank = float(rng.randrange(10))
            ranking.put(item, rank)
            model[item] = (rank, n)
        else:
            ranking.discard(item)
            model.pop(item, None)
        expected = min(((rank, n, item) for item, (rank, n) in model.items()), default=None)
        assert ranking.first() == (expected and (expected[0], expected[2]))


def test_what_has_left_a_ranking_does_not_stay_in_memory():
    ranking = Ranking()
    ranking.put("stays", 0.0)
    for n in range(10_000):
        ranking.put(n, 1.0 + n)
        ranking.discard(n)
        assert len(ranking._heap) <= 2 * len(ranking) + SLACK
    for n in range(10_000):
        ranking.put("moves", 1.0 + n)
    assert len(ranking._heap) <= 2 * len(ranking) + SLACK


def test_nothing_is_due_before_its_instant_and_each_thing_once():
    deadlines = Deadlines()
    deadlines.set("a", 2.0)
    deadlines.set("b", 1.0)
    assert deadlines.at("a") == 2.0
    assert deadlines.take(0.9) is None
    assert deadlines.take(2.0) == "b"
    assert deadlines.take(2.0) == "a"
    assert deadlines.take(2.0) is None


def test_what_is_cancelled_is_not_due():
    deadlines = Deadlines()
    deadlines.set("a", 1.0)
    deadlines.discard("a")
    assert deadlines.take(9.0) is None


def test_an_earlier_alarm_is_asked_for_beside_a_later_one_and_the_later_one_only_once():
    deadlines = Deadlines()
    deadlines.set("a", 20.0)
    assert deadlines.wake() == 20.0
    deadlines.set("b", 10.0)
    assert deadlines.wake() == 10.0
    assert deadlines.wake() is None
    deadlines.rung(10.0)
    assert deadlines.take(10.0) == "b"
    assert deadlines.wake() is None
    deadlines.rung(20.0)
    assert deadlines.take(20.0) == "a"
    deadlines.set("c", 30.0)
    assert deadlines.wake() == 30.0


def test_a_deadline_that_moves_on_again_and_again_has_one_alarm_at_a_time():
    deadlines = Deadlines()
    asked = []
    for n in range(1000):
        deadlines.set("idle", 100.0 + n)
        deadlines.set("refill", n + 0.5)
        for now in (float(n), n + 0.5):
            deadlines.rung(now)
            deadlines.take(now)
            if (at := deadlines.wake()) is not None:
                asked.append(at)
    assert len([at for at in asked if at == int(at)]) <= 10
