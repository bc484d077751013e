"""What came on a stream and was not read yet: its offsets, and what is missing in it."""

from claude_vm.supervisor.ssh.process import ReceivedOutput


def pieces(output, limit):
    """Read all that waits; return where each piece ends, and the piece."""
    found = []
    while output.waiting:
        piece = output.take(limit)
        found.append((output.read, piece))
    return found


def test_a_piece_ends_where_the_reader_is():
    output = ReceivedOutput()
    output.add(b"abc")
    output.add(b"de")
    assert (output.told, output.waiting) == (5, 5)
    assert pieces(output, 2) == [(2, b"ab"), (4, b"cd"), (5, b"e")]
    assert (output.read, output.waiting) == (5, 0)


def test_no_piece_reaches_over_what_is_missing_and_the_offset_says_how_much():
    output = ReceivedOutput()
    assert output.skip(10) == 10
    output.add(b"abc")
    assert output.skip(13) == 0
    output.add(b"de")
    assert output.skip(1000) == 985
    output.add(b"fgh")
    assert (output.told, output.waiting) == (1003, 8)
    assert pieces(output, 100) == [(15, b"abcde"), (1003, b"fgh")]


def test_what_is_missing_twice_before_anything_comes_is_passed_at_once():
    output = ReceivedOutput()
    output.add(b"a")
    assert (output.skip(5), output.skip(9)) == (4, 4)
    output.add(b"b")
    assert pieces(output, 1) == [(1, b"a"), (10, b"b")]
