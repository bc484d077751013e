"""What the pool keeps warm, for whom, and until when."""

import pytest

from claude_vm.supervisor.core.effects import Clone, Connect, Delete, EndSession, Run, Start
from claude_vm.supervisor.core.policy import PoolPolicy
from claude_vm.supervisor.core.pool.generations import KEPT_GENERATIONS

AHEAD = {"paused": 1, "prestart_drivers": frozenset({"sim"})}


def answer(rig, n, key=None):
    """Make what the pool asked for, as far as warm."""
    rig.warm(n, key)
    return rig.connect(n)


@pytest.mark.parametrize(
    "policy",
    [
        {"size": -1},
        {"paused": -1},
        {"max_instances": 0},
        {"idle_timeout_s": 0.0},
        {"max_age_s": 0.0},
        {"memory_budget_mib": -1},
        {"refill_delay_s": -0.1},
    ],
)
def test_a_policy_out_of_range_is_refused(policy):
    with pytest.raises(ValueError, match=f"{next(iter(policy))} must be (at least|above)"):
        PoolPolicy(**policy)


# Wishes and refills.


def test_the_first_session_with_a_key_makes_the_pool_want_it_a_moment_after_the_claim(make_rig, key_of):
    rig = make_rig(size=1)
    rig.request(1)
    assert rig.alarms == [100.5]
    assert rig.asked == []
    rig.tick(after=0.45)
    assert rig.asked == []
    rig.tick(after=0.05)
    assert rig.asked == [(key_of(), False)]
    assert rig.warm(2) == [Clone(instance_id="i2", key=key_of())]
    assert rig.connect(2) == []
    assert rig.instance_state(2) == "warm"


def test_a_claim_of_a_warm_instance_is_followed_by_a_refill_after_the_delay(make_rig, key_of):
    rig = make_rig(size=1, refill_delay_s=2.0)
    rig.make_warm(1)
    rig.now += 50
    assert rig.request(2) == [Run(instance_id="i1", session_id="s2")]
    assert rig.core.sessions()[0].source == "warm"
    assert rig.pool().next_try_at == rig.now + 2.0
    rig.tick(after=1.9)
    assert [*rig.asked, rig.tick(after=0.1), *rig.asked] == [(key_of(), False), [], (key_of(), False)]


def test_a_claim_that_follows_puts_the_refill_off(make_rig, key_of):
    rig = make_rig(size=1, refill_delay_s=2.0)
    rig.request(1)
    rig.tick(after=1.5)
    rig.request(2)
    rig.tick(after=1.9)
    assert rig.asked == []
    rig.tick(after=0.1)
    assert rig.asked == [(key_of(), False)]


def test_many_claims_in_a_row_do_not_put_the_refill_off_for_ever(make_rig, key_of):
    rig = make_rig(size=1, refill_delay_s=2.0)
    for n in range(1, 5):
        rig.request(n)
        rig.tick(after=1.9)
    assert rig.asked == []
    rig.request(5)
    rig.tick(after=0.4)
    assert rig.asked == [(key_of(), False)]


def test_there_are_never_more_than_the_size_and_one_of_a_key_is_made_at_a_time(make_rig, key_of):
    rig = make_rig(size=2)
    rig.fill()
    assert rig.asked == [(key_of(), False)]
    assert rig.warm(1) == [Clone(instance_id="i1", key=key_of())]
    rig.cloned(1)
    rig.started(1)
    assert rig.asked == []
    rig.connected(1)
    assert rig.asked == [(key_of(), False)]
    answer(rig, 2)
    assert rig.asked == []
    assert rig.pool().warm == 2


def test_two_instances_at_most_are_made_ahead_at_the_same_time(make_rig, key_of):
    rig = make_rig(size=1)
    for name in "abc":
        rig.fill(key=key_of(name))
    assert rig.asked == [(key_of("a"), False), (key_of("b"), False)]
    answer(rig, 1, key_of("a"))
    assert rig.asked == [(key_of("c"), False)]


def test_an_answer_that_the_pool_did_not_ask_for_makes_nothing(make_rig, key_of):
    rig = make_rig(size=1)
    assert rig.warm(1) == []
    rig.fill()
    assert rig.warm(2, key_of("b")) == []
    assert rig.warm(3) == [Clone(instance_id="i3", key=key_of())]
    assert rig.warm(4) == []


def test_an_answer_of_the_other_kind_makes_nothing_and_the_pool_asks_again(make_rig, key_of):
    rig = make_rig(size=1)
    rig.fill()
    rig.asked.clear()
    assert rig.warm(1, paused=True) == []
    assert rig.asked == [(key_of(), False)]


def test_a_fill_has_its_own_number_and_needs_no_size_in_the_policy(make_rig, key_of):
    rig = make_rig(paused=1)
    for n in (1, 2):
        rig.fill(2)
        answer(rig, n)
    assert (rig.pool().wanted, rig.pool().warm) == (2, 2)
    rig.fill(1)
    assert (rig.pool().wanted, rig.pool().warm) == (1, 2)  # it takes nothing away
    rig.request(3)
    rig.tick(after=1)
    assert rig.asked[2:] == []


def test_a_fill_of_nothing_or_less_wants_nothing(make_rig):
    rig = make_rig(size=1)
    rig.fill(-3)
    assert (rig.asked, rig.core.pools()) == ([], [])


def test_without_a_warm_size_a_session_leaves_no_wish_and_no_alarm(rig):
    rig.run(1)
    assert rig.alarms == []
    assert (rig.pool().wanted, rig.pool().claimed) == (0, 1)
    rig.run_done(1)
    assert rig.core.pools() == []


def test_no_refill_begins_while_a_session_waits_or_at_the_ceiling(make_rig, key_of):
    rig = make_rig(size=1, max_instances=2)
    rig.run(1)
    rig.run(2)
    rig.request(3)
    rig.tick(after=1)
    rig.stop(3)
    assert rig.asked == []  # nobody waits, but it is full
    rig.request(4)
    rig.run_done(1)
    rig.deleted(1)  # the place is for those who wait
    assert rig.asked == []
    rig.run_done(2)
    rig.deleted(2)
    rig.tick(after=1)
    assert rig.asked == [(key_of(), False)]


def test_a_session_that_comes_between_the_request_and_its_answer_has_the_place(make_rig, key_of):
    rig = make_rig(size=1, max_instances=2)
    rig.run(1)
    rig.tick(after=1)
    assert rig.asked == [(key_of(), False)]
    rig.request(2)
    assert rig.warm(3) == []
    rig.run_done(1)
    rig.deleted(1)
    rig.tick(after=1)
    assert rig.asked == [(key_of(), False)]  # not forgotten


# Idle, age, drain.


def test_a_key_that_is_not_used_for_long_is_given_up_with_all_that_it_has(make_rig):
    rig = make_rig(size=1, idle_timeout_s=60.0)
    rig.make_warm(1)
    assert rig.tick(after=59) == []
    assert rig.tick(after=1) == [Delete(instance_id="i1")]
    assert rig.core.pools() == []
    rig.deleted(1)
    rig.tick(after=100)
    assert rig.asked[1:] == []


def test_each_session_and_each_running_one_renews_the_time_for_which_a_key_is_wanted(make_rig):
    rig = make_rig(size=1, idle_timeout_s=60.0)
    rig.make_warm(1)
    rig.now += 50
    rig.request(2)
    rig.tick(after=1)
    answer(rig, 3)
    assert rig.tick(after=1000) == []
    assert rig.run_done(1, session=2) == [Delete(instance_id="i1")]
    assert rig.tick(after=59) == []
    assert rig.tick(after=1) == [Delete(instance_id="i3")]


def test_what_is_too_old_is_given_up_and_replaced(make_rig, key_of):
    rig = make_rig(size=1, max_age_s=60.0)
    rig.make_warm(1)
    rig.asked.clear()
    assert rig.tick(after=60) == [Delete(instance_id="i1")]
    assert rig.asked == [(key_of(), False)]


def test_what_a_session_has_never_becomes_too_old(make_rig):
    rig = make_rig(size=1, max_age_s=60.0)
    rig.make_warm(1)
    rig.request(2)
    rig.tick(after=61)
    assert rig.instance_state(1) == "leased"


def test_draining_gives_up_what_there_is_and_forgets_the_wish_until_the_next_session(make_rig, key_of):
    rig = make_rig(size=2)
    rig.make_warm(1)
    rig.warm(2)
    rig.make_warm(3, key_of("b"))
    rig.asked.clear()
    assert {type(effect).__name__ for effect in rig.drain(key_of())} == {"Delete", "Cancel"}
    assert rig.pool() is None
    assert rig.pool(key_of("b")).warm == 1
    rig.tick(after=10)
    assert (key_of(), False) not in rig.asked
    rig.request(4)
    rig.warm(5, key_of("b"))
    rig.tick(after=1)
    assert (key_of(), False) in rig.asked


def test_draining_all_gives_up_all_that_is_unclaimed_but_no_session(make_rig, key_of):
    rig = make_rig(size=1)
    rig.run(1)
    rig.make_warm(2, key_of("b"))
    rig.make_warm(3, key_of("c"))
    assert rig.drain() == [Delete(instance_id="i2"), Delete(instance_id="i3")]
    assert [(view.key, view.claimed) for view in rig.core.pools()] == [(key_of(), 1)]
    assert rig.drain(key_of("never-heard-of")) == []


# Failures.


def test_failures_in_a_row_are_waited_for_ever_longer_and_can_be_seen(make_rig):
    rig = make_rig(size=1)
    rig.fill()
    for n, pause in enumerate((1, 2, 4, 8, 16, 32, 60, 60), 1):
        assert len(rig.asked) == 1
        rig.warm(n)
        rig.failed(n, code="disk-full", message="no space left")
        view = rig.pool()
        assert (view.failures, view.last_error) == (n, "disk-full: no space left")
        assert view.next_try_at == rig.now + pause
        rig.deleted(n)
        rig.tick(after=pause - 0.5)
        assert rig.asked == []
        rig.tick(after=0.5)


@pytest.mark.parametrize("words", [["warm"], ["warm", "cloned"], ["warm", "cloned", "started"]])
def test_an_instance_that_dies_while_it_is_made_counts_as_a_failure(make_rig, words):
    rig = make_rig(size=1)
    rig.fill()
    for word in words:
        getattr(rig, word)()
    rig.died(reason="killed by signal 9")
    assert (rig.pool().failures, rig.pool().last_error) == (1, "vm-died: killed by signal 9")


def test_a_warm_instance_that_dies_is_replaced_after_a_pause(make_rig, key_of):
    rig = make_rig(size=1)
    rig.make_warm(1)
    rig.asked.clear()
    assert rig.died(1) == [Delete(instance_id="i1")]
    assert rig.asked == []
    rig.tick(after=1)
    assert rig.asked == [(key_of(), False)]


def test_what_dies_soon_after_it_was_ready_goes_on_with_the_row_and_later_begins_a_new_one(make_rig):
    rig = make_rig(size=1)
    for n in (1, 2):
        rig.make_warm(n) if n == 1 else answer(rig, n)
        rig.tick(after=10)
        rig.died(n)
        assert rig.pool().failures == n
        rig.tick(after=10)
    answer(rig, 3)
    rig.tick(after=60)
    rig.died(3)
    assert rig.pool().failures == 1


def test_a_claim_of_what_the_pool_made_ends_the_row(make_rig):
    rig = make_rig(size=1)
    rig.demand(1)
    rig.failed(1)
    rig.tick(after=1)
    answer(rig, 2)
    assert rig.pool().failures == 1
    rig.request(3)
    assert (rig.pool().failures, rig.pool().last_error) == (0, "")


def test_a_session_is_not_held_up_by_failures_of_the_pool_and_its_own_ones_do_not_count(make_rig, key_of):
    rig = make_rig(size=1)
    rig.demand(1)
    rig.failed(1)
    assert rig.request(2) == [Clone(instance_id="i2", key=key_of())]
    rig.failed(2)
    assert rig.pool().failures == 1


def test_a_fill_tries_at_once_in_spite_of_failures(make_rig, key_of):
    rig = make_rig(size=1)
    rig.demand(1)
    rig.failed(1)
    rig.asked.clear()
    rig.fill()
    assert rig.asked == [(key_of(), False)]
    assert rig.pool().failures == 0


# Memory.


def test_the_budget_bounds_the_memory_of_all_that_is_unclaimed_and_sessions_do_not_count(make_rig, key_of):
    rig = make_rig(size=2, memory_budget_mib=1024)
    rig.run(9)
    rig.make_warm(1, key_of("a"))
    assert rig.asked == [(key_of("a"), False)] * 2
    answer(rig, 2, key_of("a"))
    rig.request(8, key_of("a"))  # takes one of them
    rig.tick(after=1)
    assert len(rig.asked) == 1
    assert rig.core.pools()[0].key == key_of()


def test_a_key_that_is_used_later_has_the_memory_of_one_that_was_used_before(make_rig, key_of):
    rig = make_rig(size=1, memory_budget_mib=1024)
    for n, name in enumerate("ab", 1):
        rig.make_warm(n, key_of(name))
        rig.now += 1
    rig.asked.clear()
    assert rig.fill(key=key_of("c")) == [Delete(instance_id="i1")]
    assert rig.asked == [(key_of("c"), False)]
    answer(rig, 3, key_of("c"))
    rig.tick(after=10)
    assert rig.asked == []  # the one of "a" does not come back at the cost of those that were used later
    rig.drain(key_of("b"))
    assert rig.asked == [(key_of("a"), False)]


def test_as_many_as_it_takes_give_way_to_a_key_that_is_used_later(make_rig, key_of):
    rig = make_rig(size=1, memory_budget_mib=1024)
    for n, name in enumerate("ab", 1):
        rig.make_warm(n, key_of(name))
        rig.now += 1
    rig.asked.clear()
    gone = rig.fill(key=key_of("big", memory_mib=1024))
    assert gone == [Delete(instance_id="i1"), Delete(instance_id="i2")]
    assert rig.asked == [(key_of("big", memory_mib=1024), False)]


def test_nothing_is_given_up_for_a_key_that_would_still_not_fit(make_rig, key_of):
    rig = make_rig(size=1, memory_budget_mib=1024)
    big = key_of("big", memory_mib=1024)
    rig.make_warm(1, key_of("a"))
    rig.make_warm(2, key_of("b"))
    rig.fill(0, key=big)
    rig.now += 1
    rig.fill(key=key_of("b"))  # used after the big one
    rig.obey(size=1, memory_budget_mib=1025)
    assert [view.warm for view in rig.core.pools()][:2] == [1, 1]


def test_a_wish_for_other_sizes_than_the_rebuilt_templates_ends(make_rig, key_of):
    rig = make_rig(size=1)
    rig.make_warm(1)
    rig.make_warm(2, key_of(memory_mib=1024))
    rig.asked.clear()
    gone = rig.change("g2", sizes=(2, 512, 4))
    assert gone == [Delete(instance_id="i1"), Delete(instance_id="i2")]
    rig.tick(after=10)
    assert [key.sizes for key, _ in rig.asked] == [(2, 512, 4)]


def test_a_key_that_never_fits_says_so_and_holds_nobody_up(make_rig, key_of):
    rig = make_rig(size=1, memory_budget_mib=1024)
    big = key_of("big", memory_mib=2048)
    rig.fill(key=big)
    rig.fill(key=key_of("b"))
    assert rig.asked == [(key_of("b"), False)]
    assert rig.pool(big).last_error == ("memory-budget: 2048 MiB are needed, 1024 MiB are the whole budget")
    rig.obey(size=1, memory_budget_mib=4096)
    assert rig.asked == [(big, False)]
    assert rig.pool(big).last_error == ""


def test_among_those_without_memory_the_one_that_fits_comes_first(make_rig, key_of):
    rig = make_rig(size=1, memory_budget_mib=1024)
    rig.make_warm(1, key_of("a"))
    rig.make_warm(2, key_of("b"))
    rig.fill(key=key_of("big", memory_mib=1024))
    rig.fill(key=key_of("small"))
    rig.asked.clear()
    rig.drain(key_of("a"))
    assert rig.asked == [(key_of("small"), False)]


@pytest.mark.parametrize("bound", [{"memory_budget_mib": 1200}, {"max_instances": 2}])
def test_a_paused_instance_gives_way_to_a_warm_one_of_its_own_key(make_rig, key_of, bound):
    rig = make_rig(size=1, **bound, **AHEAD)
    rig.make_warm(1)
    rig.make_paused(2)
    rig.asked.clear()
    assert rig.fill(2) == [Delete(instance_id="i2")]
    rig.deleted(2)
    assert rig.asked == [(key_of(), False)]
    answer(rig, 3)
    rig.tick(after=10)
    assert (rig.pool().warm, rig.pool().paused, rig.pool().making) == (2, 0, 0)
    assert rig.asked == []


def test_only_as_many_paused_ones_give_way_as_places_are_needed(make_rig):
    rig = make_rig(size=1, max_instances=3, paused=2, prestart_drivers=frozenset({"sim"}))
    rig.make_warm(1)
    rig.make_paused(2)
    rig.make_paused(3)
    assert rig.fill(2) == [Delete(instance_id="i2")]
    assert rig.tick(after=10) == []
    assert rig.instance_state(3) == "paused"


def test_no_paused_one_gives_way_for_a_place_that_a_waiting_session_would_have(make_rig, key_of):
    policy = {"size": 1, "paused": 2, "prestart_drivers": frozenset({"sim"})}
    rig = make_rig(max_instances=4, **policy)
    rig.make_warm(1)
    rig.make_paused(2)
    rig.make_paused(3)
    rig.request(4, key_of("b"))
    assert rig.request(5, key_of("b")) == [Delete(instance_id="i2")]
    rig.obey(max_instances=3, **policy)
    assert rig.fill(2) == []
    assert rig.session_state(5) == "queued"
    assert rig.instance_state(3) == "paused"


# Generations.


def test_a_changed_template_gives_up_what_is_old_and_the_wish_goes_over(make_rig, key_of):
    rig = make_rig(size=1)
    rig.make_warm(1)
    rig.make_warm(2, key_of("other"))
    rig.asked.clear()
    assert rig.change("2") == [Delete(instance_id="i1")]
    rig.tick(after=1)
    assert rig.asked == [(key_of(generation="2"), False)]
    assert rig.pool() is None
    assert rig.instance_state(2) == "warm"


def test_what_is_being_made_of_an_old_generation_is_given_up_too(make_rig, key_of):
    rig = make_rig(size=1)
    rig.demand(1)
    rig.fill(key=key_of(generation="2"))
    rig.change("2")
    assert rig.instance_state(1) == "abandoned"
    assert rig.asked[-1] == (key_of(generation="2"), False)


def test_a_number_that_was_filled_to_and_the_last_use_go_over_to_the_new_generation(make_rig, key_of):
    rig = make_rig(size=1, idle_timeout_s=60.0)
    rig.fill(3)
    rig.now += 50
    rig.change("2")
    view = rig.pool(key_of(generation="2"))
    assert (view.wanted, view.last_used_at) == (3, 100.0)
    rig.tick(after=11)
    assert rig.pool(key_of(generation="2")) is None


def test_a_running_session_keeps_the_wish_for_the_new_generation_fresh(make_rig, key_of):
    rig = make_rig(size=1, idle_timeout_s=60.0)
    rig.run(1)
    rig.now += 500
    rig.change("2")
    assert rig.pool(key_of(generation="2")).last_used_at == 600.0
    assert rig.pool().claimed == 1


def test_the_same_generation_again_changes_nothing(make_rig):
    rig = make_rig(size=1)
    rig.make_warm(1)
    assert rig.change("1") == []
    assert rig.instance_state(1) == "warm"


def test_a_deleted_template_is_not_wanted_any_more_whoever_asks(make_rig):
    rig = make_rig(size=1)
    rig.make_warm(1)
    rig.asked.clear()
    assert rig.change("") == [Delete(instance_id="i1")]
    rig.fill()
    rig.request(2)
    rig.tick(after=1)
    assert rig.asked == []
    assert rig.session_state(2) == "preparing"


def test_a_session_with_an_old_generation_gets_no_new_instance_and_makes_the_pool_want_a_new_one(
    make_rig, key_of
):
    rig = make_rig(size=1)
    rig.change("2")
    rig.make_warm(1, key_of(generation="2"))
    assert rig.request(2) == [Clone(instance_id="i2", key=key_of())]
    rig.tick(after=1)
    assert rig.asked[1:] == []
    assert rig.pool().wanted == 0
    assert rig.pool(key_of(generation="2")).warm == 1


@pytest.mark.parametrize("who", ["session", "fill", "found"])
def test_a_key_of_a_later_generation_tells_that_somebody_else_has_built_the_template_again(
    make_rig, key_of, who
):
    rig = make_rig(size=1, max_instances=9)
    rig.change("1")
    rig.make_warm(1)
    new = key_of(generation="2")
    given_up = {
        "session": lambda: rig.request(2, new),
        "fill": lambda: rig.fill(key=new),
        "found": lambda: rig.warm_found(2, new),
    }[who]()
    assert Delete(instance_id="i1") in given_up
    assert rig.pool() is None
    rig.tick(after=1)
    assert (rig.pool(new).wanted, rig.pool(new).making) == (1, 1)


def test_what_is_made_ahead_of_an_old_generation_is_given_up_for_a_key_of_a_later_one(make_rig, key_of):
    rig = make_rig(size=1, **AHEAD)
    rig.make_warm(1)
    rig.make_paused(2)
    rig.demand(3, size=2)
    new = key_of(generation="2")
    rig.request(4, new)
    assert [rig.instance_state(n) for n in (1, 2, 3)] == ["deleting", "deleting", "abandoned"]
    assert rig.pool(new).claimed == 1


def test_a_key_that_was_read_just_before_a_build_ended_does_not_bring_the_old_generation_back(
    make_rig, key_of
):
    rig = make_rig(size=1, idle_timeout_s=60.0)
    new = key_of(generation="2")
    rig.make_warm(1, new)
    assert rig.request(2) == [Clone(instance_id="i2", key=key_of())]
    rig.fill()
    assert rig.instance_state(1) == "warm"
    assert (rig.pool().wanted, rig.pool(new).wanted) == (0, 1)


def test_a_template_that_somebody_else_builds_after_its_deletion_is_wanted_again(make_rig, key_of):
    rig = make_rig(size=1)
    rig.make_warm(1)
    rig.change("")
    rig.asked.clear()
    new = key_of(generation="2")
    rig.fill(key=new)
    assert rig.asked == [(new, False)]


def test_a_generation_that_was_told_holds_even_if_it_is_not_the_latest_of_all(make_rig, key_of):
    rig = make_rig(size=1)
    rig.make_warm(1, key_of(generation="2"))
    assert rig.change("1") == [Delete(instance_id="i1")]
    rig.tick(after=1)
    assert rig.asked[-1] == (key_of(), False)


def test_of_templates_that_were_not_heard_of_for_long_any_generation_is_believed(make_rig, key_of):
    rig = make_rig(size=1)
    rig.change("2", "old")
    rig.change("2", "used")
    for n in range(KEPT_GENERATIONS - 1):
        rig.fill(0, key_of("used"))
        rig.change("1", f"other{n}")
    for name in ("old", "used"):
        rig.fill(key=key_of(name))
    assert {view.key for view in rig.core.pools()} == {key_of("used", "2"), key_of("old")}


# Started ahead.


def test_instances_started_ahead_wait_paused_and_go_on_for_a_session(make_rig, key_of):
    rig = make_rig(**AHEAD)
    rig.fill()
    assert rig.asked == [(key_of(), True)]
    rig.make_paused(1)
    assert rig.instance_state(1) == "paused"
    assert rig.pool().paused == 1
    assert rig.request(2) == [Start(instance_id="i1")]
    assert rig.core.sessions()[0].source == "paused"
    assert rig.started(1) == [Connect(instance_id="i1")]
    assert rig.connected(1) == [Run(instance_id="i1", session_id="s2")]


def test_warm_ones_are_made_before_paused_ones_and_claimed_before_them(make_rig, key_of):
    rig = make_rig(size=1, **AHEAD)
    rig.make_warm(1)
    assert rig.asked == [(key_of(), False), (key_of(), True)]
    rig.make_paused(2)
    assert rig.request(3) == [Run(instance_id="i1", session_id="s3")]
    assert rig.request(4) == [Start(instance_id="i2")]


def test_nothing_is_started_ahead_with_a_driver_that_can_not(make_rig):
    rig = make_rig(size=1, paused=1, prestart_drivers=frozenset({"lima"}))
    rig.make_warm(1)
    assert len(rig.asked) == 1


def test_a_paused_instance_of_another_key_gives_way_before_a_warm_one(make_rig, key_of):
    rig = make_rig(size=1, max_instances=2, **AHEAD)
    rig.make_warm(1)
    rig.make_paused(2)
    rig.now += 1
    assert rig.request(3, key_of("b")) == [Delete(instance_id="i2")]


def test_the_key_that_was_not_used_for_longest_gives_way_first(make_rig, key_of):
    rig = make_rig(size=1, max_instances=2)
    rig.make_warm(1, key_of("a"))
    rig.make_warm(2, key_of("b"))
    rig.now += 1
    rig.fill(key=key_of("a"))
    assert rig.request(3, key_of("c")) == [Delete(instance_id="i2")]


# A supervisor's restart.


def test_a_warm_instance_that_is_found_is_connected_to_and_can_be_claimed(make_rig, key_of):
    rig = make_rig(size=1)
    assert rig.warm_found(1, made_at=50.0) == [Connect(instance_id="i1")]
    assert rig.core.instances()[0].made_at == 50.0
    assert rig.asked == []
    assert (rig.pool().wanted, rig.pool().making) == (1, 1)
    rig.connected(1)
    assert rig.request(2) == [Run(instance_id="i1", session_id="s2")]
    rig.tick(after=1)
    assert rig.asked == [(key_of(), False)]


def test_a_found_instance_that_can_not_be_connected_to_is_deleted_and_replaced(make_rig, key_of):
    rig = make_rig(size=1)
    rig.warm_found(1)
    assert rig.failed(1) == [Delete(instance_id="i1")]
    rig.tick(after=1)
    assert rig.asked == [(key_of(), False)]


def test_a_found_instance_is_as_old_as_it_was(make_rig):
    rig = make_rig(size=1, max_age_s=60.0)
    rig.warm_found(1, made_at=50.0)
    rig.connected(1)
    assert rig.tick(after=10) == [Delete(instance_id="i1")]


@pytest.mark.parametrize("why", ["no size", "full", "too old", "no memory", "old generation"])
def test_a_found_instance_for_which_there_is_no_place_is_deleted(make_rig, why):
    rig = make_rig(
        size=0 if why == "no size" else 1,
        paused=1,
        max_instances=1,
        max_age_s=60.0,
        memory_budget_mib=511 if why == "no memory" else None,
    )
    if why == "full":
        rig.run(9)
    if why == "old generation":
        rig.change("2")
    assert rig.warm_found(1, made_at=40.0 if why == "too old" else 41.0) == [Delete(instance_id="i1")]
    assert rig.core.instances()[-1].made_at is None


def test_a_session_that_is_found_runs_on_to_its_end(make_rig, key_of):
    rig = make_rig(size=1)
    assert rig.session_found(1) == [Run(instance_id="i1", session_id="s1")]
    (view,) = rig.core.sessions()
    assert (view.state, view.source, view.instance_id) == ("running", "resumed", "i1")
    assert (rig.pool().claimed, rig.pool().wanted) == (1, 0)
    assert rig.run_done(1, status=3) == [Delete(instance_id="i1")]
    assert rig.deleted(1) == [EndSession(session_id="s1", status=3)]
    assert rig.core.pools() == []


def test_a_session_that_is_found_counts_against_the_ceiling(make_rig):
    rig = make_rig(max_instances=1)
    rig.session_found(1)
    assert rig.request(2) == []
    assert rig.session_state(2) == "queued"


# Other settings.


def test_a_larger_size_takes_effect_at_once_for_keys_that_are_wanted(make_rig, key_of):
    rig = make_rig(size=1)
    rig.make_warm(1)
    rig.asked.clear()
    rig.obey(size=2)
    assert rig.asked == [(key_of(), False)]


def test_the_same_policy_again_changes_nothing(make_rig):
    rig = make_rig(size=1)
    rig.make_warm(1)
    before = rig.snapshot()
    assert rig.obey(size=1) == []
    assert rig.snapshot() == before


def test_what_a_smaller_size_has_no_room_for_is_given_up_the_unfinished_first(make_rig):
    rig = make_rig(size=3)
    rig.make_warm(1)
    answer(rig, 2)
    rig.warm(3)
    assert {type(effect).__name__ for effect in rig.obey(size=2)} == {"Cancel"}
    assert rig.obey(size=1) == [Delete(instance_id="i1")]
    assert rig.obey() == [Delete(instance_id="i2")]
    assert rig.core.pools() == []


def test_what_a_smaller_budget_has_no_room_for_is_given_up_the_least_used_key_first(make_rig, key_of):
    rig = make_rig(size=1)
    for n, name in enumerate("abc", 1):
        rig.make_warm(n, key_of(name))
        rig.now += 1
    gone = rig.obey(size=1, memory_budget_mib=600)
    assert gone == [Delete(instance_id="i1"), Delete(instance_id="i2")]


def test_shorter_times_count_for_what_is_there_already(make_rig, key_of):
    rig = make_rig(size=1)
    rig.make_warm(1, key_of("a"))
    rig.now += 100
    rig.make_warm(2, key_of("b"))
    rig.obey(size=1, idle_timeout_s=50.0)
    assert rig.alarms[-1] == rig.now
    assert rig.tick(after=0) == [Delete(instance_id="i1")]
    rig.obey(size=1, idle_timeout_s=50.0, max_age_s=20.0)
    assert rig.tick(after=20) == [Delete(instance_id="i2")]


# What can be seen.


def test_the_pools_are_listed_least_recently_used_first(make_rig, key_of):
    rig = make_rig(size=1)
    for n, name in enumerate("ab", 1):
        rig.make_warm(n, key_of(name))
        rig.now += 1
    rig.request(3, key_of("a"))
    one, two = rig.core.pools()
    assert (one.key, one.wanted, one.warm, one.claimed, one.last_used_at) == (key_of("b"), 1, 1, 0, 101.0)
    assert (two.key, two.warm, two.making, two.claimed) == (key_of("a"), 0, 0, 1)
    rig.tick(after=1)
    assert rig.pool(key_of("a")).making == 1
