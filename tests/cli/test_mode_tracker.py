import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.supervisor.cli.terminal import ModeTracker


def undo_of(*pieces):
    tracker = ModeTracker()
    for piece in pieces:
        tracker.feed(piece)
    return tracker.undo()


@pytest.mark.parametrize(
    ("output", "undo"),
    [
        (b"plain text \xff\x00 and \r\n", b""),
        (b"\x1b[1;31mred\x1b[0m \x1b[2J\x1b[H\x1b[K\x1b[3;4H", b""),
        (b"\x1b[1;31mred", b"\x1b[0m"),
        (b"\x1b[38;5;0mblack\x1b[m", b""),
        (b"\x1b[?1049h", b"\x1b[?1049l"),
        (b"\x1b[?47h", b"\x1b[?47l"),
        (b"\x1b[?1049h\x1b[?1049l", b""),
        (b"\x1b[?1000;1002;1006h", b"\x1b[?1000l\x1b[?1002l\x1b[?1006l"),
        (b"\x1b[?1003h\x1b[?1003l", b""),
        (b"\x1b[?2004h", b"\x1b[?2004l"),
        (b"\x1b[?1004h", b"\x1b[?1004l"),
        (b"\x1b[?1h\x1b=", b"\x1b[?1l\x1b>"),
        (b"\x1b=\x1b>", b""),
        (b"\x1b[?25l", b"\x1b[?25h"),
        (b"\x1b[?25h", b""),
        (b"\x1b[?7l", b"\x1b[?7h"),
        (b"\x1b[4h", b"\x1b[4l"),
        (b"\x1b[4h\x1b[4l", b""),
        (b"\x1b[20h", b""),
        (b"\x1b[5 q", b"\x1b[0 q"),
        (b"\x1b[5 q\x1b[0 q", b""),
        (b"\x1b[2;10r", b"\x1b7\x1b[r\x1b8"),
        (b"\x1b[2;10r\x1b[r", b""),
        (b"\x1b[?2004r", b""),
        (b"\x1b[>4;2m", b"\x1b[>4m"),
        (b"\x1b[>4;2m\x1b[>4m", b""),
        (b"\x1b[>4;2m\x1b[>4;0m", b""),
        (b"\x1b[>1u", b"\x1b[<1u"),
        (b"\x1b[>1u\x1b[>5u", b"\x1b[<2u"),
        (b"\x1b[>1u\x1b[>5u\x1b[<u", b"\x1b[<1u"),
        (b"\x1b[>1u\x1b[<9u", b""),
        (b"\x1b[=5u", b"\x1b[=0u"),
        (b"\x1b[=5;1u\x1b[=0;1u", b""),
        (b"\x1b[>1u\x1b[?1049h\x1b[>1u\x1b[>1u", b"\x1b[<2u\x1b[?1049l\x1b[<1u"),
        (b"\x1b[?1049h\x1b[>1u\x1b[?1049l", b""),
        (b"\x1b(0lqk\x1b(B", b""),
        (b"\x1b(0lqk", b"\x1b(B"),
        (b"\x1b)0\x0elqk", b"\x0f"),
        (b"\x0elqk\x0f", b""),
        (b"\x1b[?1049h\x1b[?25l\x1b[1m\x1bc", b""),
        (b"\x1b[?25l\x1b=\x1b[1m\x1b[!p", b""),
        (b"\x1b]0;a title", b"\x18"),
        (b"\x1b]0;a title\x07", b""),
        (b"\x1b]0;a title\x1b\\", b""),
        (b"\x1bPtmux;\x1b\x1b[?25l\x1b\\", b"\x1b[?25h"),
        (b"\x1b[?104", b"\x18"),
        (b"\x1b", b"\x18"),
        (b"\x1b[?99999999999999999999h", b""),
        (b"\x1b[?;h\x1b[;m\x1b[u\x1b[s\x1b[c\x1b[>c\x1b[?u", b"\x1b[0m"),
    ],
)
def test_only_what_is_on_is_undone(output, undo):
    assert undo_of(output) == undo
    assert undo_of(*(output[i : i + 1] for i in range(len(output)))) == undo


def test_after_undoing_nothing_is_left_to_undo():
    tracker = ModeTracker()
    tracker.feed(b"\x1b[?1049h\x1b[?1003h\x1b[1m\x1b]0;title")
    assert tracker.undo()
    assert tracker.undo() == b""


PIECES = st.lists(
    st.one_of(
        st.sampled_from(
            [
                *(b"\x1b[?1049h", b"\x1b[?1049l", b"\x1b[?1006h", b"\x1b[?25l", b"\x1b[?25h", b"\x1b[1m"),
                *(
                    b"\x1b[0m",
                    b"\x1b[>1u",
                    b"\x1b[<u",
                    b"\x1b]0;x\x07",
                    b"\x1b]0;x\x1b\\",
                    b"\x1b(0",
                    b"\x1bc",
                ),
                *(
                    b"\x1b",
                    b"[",
                    b"?",
                    b"\x0e",
                    b"\x0f",
                    b"\x18",
                    b"text",
                    b"\x1bP",
                    b"\x1b[5 q",
                    b"\x1b[1;5r",
                ),
            ]
        ),
        st.binary(max_size=8),
    )
)


@given(PIECES, st.lists(st.integers(min_value=1, max_value=7), min_size=1))
def test_where_the_output_is_cut_does_not_matter(pieces, cuts):
    output = b"".join(pieces)
    chunks, at = [], 0
    while at < len(output):
        step = cuts[len(chunks) % len(cuts)]
        chunks.append(output[at : at + step])
        at += step
    assert undo_of(*chunks) == undo_of(output)


@given(PIECES)
def test_what_undoes_leaves_a_terminal_on_which_nothing_is_on(pieces):
    output = b"".join(pieces)
    assert undo_of(output, undo_of(output)) == b""


def test_a_megabyte_without_end_of_a_sequence_is_not_kept():
    tracker = ModeTracker()
    for _ in range(1000):
        tracker.feed(b"\x1b[" + b"1;" * 500)
    assert len(tracker._rest) < 1000
