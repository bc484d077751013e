"""Stories: what people read when something did not fit."""

import pytest

from claude_vm.supervisor.core import registry, story
from claude_vm.supervisor.core.errors import InvalidTransition
from claude_vm.supervisor.core.story import Step, Story, StoryBook


def test_a_story_reads_from_top_to_bottom(rig):
    rig.request()
    rig.now = 100.25
    rig.failed(code="disk-full", message="no space left")
    assert str(rig.core.instance_story("i1")) == (
        "  100.000 absent --make--> cloning (s1)\n"
        "  100.250 cloning --EffectFailed--> deleting (disk-full: no space left)"
    )
    assert str(rig.core.session_story("s1")) == (
        "  100.000 absent --SessionRequested--> queued\n"
        "  100.000 queued --admit--> preparing (i1)\n"
        "  100.250 preparing --EffectFailed--> ending (disk-full: no space left)"
    )


def test_an_event_that_does_not_fit_is_told_with_the_story(rig):
    rig.request()
    with pytest.raises(InvalidTransition) as caught:
        rig.started()
    assert str(caught.value) == (
        "StartDone does not fit 'i1', which is cloning\n  100.000 absent --make--> cloning (s1)"
    )
    assert caught.value.code == "invalid-transition"


def test_an_unknown_id_has_an_empty_story(rig):
    with pytest.raises(InvalidTransition) as caught:
        rig.stop()
    assert str(caught.value) == "StopRequested does not fit 's1', which is absent"
    assert caught.value.story == Story("s1", ())


def test_an_id_that_is_promised_to_a_waiting_session_is_told_so(make_rig):
    rig = make_rig(max_instances=1)
    rig.request(1)
    rig.request(2)
    with pytest.raises(InvalidTransition, match="'i2', which is promised to a session"):
        rig.found(2)


def test_notes_can_not_break_the_line_or_reach_the_terminal():
    note = "\x1b[2J\r\n\x9bcafé\u202e\ud800"
    line = str(Step(1.0, "a", "b", "c", note))
    assert line == "1.000 a --b--> c (\\x1b[2J\\r\\n\\x9bcafé\\u202e\\ud800)"


def test_a_long_note_is_cut_with_a_mark(rig):
    rig.request()
    rig.failed(message="x" * 1000)
    note = rig.core.instance_story("i1").steps[-1].note
    assert note.endswith("x…")
    assert len(note) == story.NOTE_LENGTH


def test_a_story_keeps_its_last_steps():
    book = StoryBook()
    for n in range(100):
        book.record("k", Step(n, "a", "b", "c"))
    steps = book.of("k").steps
    assert [step.at for step in steps] == list(range(100 - story.STEPS_PER_KEY, 100))


def test_the_stories_of_the_last_ended_keys_are_kept_and_no_more():
    book = StoryBook()
    for n in range(story.FINISHED_KEYS + 1):
        book.record(f"k{n}", Step(n, "a", "b", "c"))
        book.finish(f"k{n}")
    assert book.of("k0").steps == ()
    assert len(book.of("k1").steps) == 1


def test_the_ids_with_a_story_are_told_those_that_ended_too(rig):
    rig.run(1)
    rig.run_done(1)
    rig.deleted(1)
    rig.request(2)
    assert rig.core.told() == ["s1", "s2", "i1", "i2"]
    assert [rig.core.knows(name) for name in ("s1", "i1", "s2", "i2", "s3")] == [True] * 4 + [False]


def test_a_session_that_ended_long_ago_counts_as_unknown(rig, monkeypatch):
    monkeypatch.setattr(registry, "RETIRED_IDS", 2)
    for n in (1, 2, 3):
        rig.run(n)
        rig.run_done(n)
        rig.deleted(n)
    assert rig.stop(2) == []
    with pytest.raises(InvalidTransition):
        rig.stop(1)
