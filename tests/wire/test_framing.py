import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.supervisor.wire.errors import ProtocolError
from claude_vm.supervisor.wire.framing import (
    FrameReader,
    decode_json,
    decode_number,
    decode_size,
    encode,
    encode_json,
    encode_numbers,
    encode_size,
)
from claude_vm.supervisor.wire.messages import (
    FROM_CLIENT,
    FROM_SERVER,
    MAX_DATA,
    MAX_INVOKE,
    SIZES,
    FrameType,
)

EVERY_TYPE = frozenset(FrameType)


@st.composite
def frames(draw):
    kind = draw(st.sampled_from(sorted(FrameType)))
    smallest, largest = SIZES[kind]
    return kind, draw(st.binary(min_size=smallest, max_size=min(largest, smallest + 40)))


def fed(reader, data, cuts):
    found, at = [], 0
    for cut in sorted(c % (len(data) + 1) for c in cuts):
        found += reader.feed(data[at:cut])
        at = max(at, cut)
    return found + reader.feed(data[at:])


@given(st.lists(frames()), st.lists(st.integers(min_value=0)))
def test_frames_come_back_however_their_bytes_are_cut(sent, cuts):
    data = b"".join(encode(kind, payload) for kind, payload in sent)
    reader = FrameReader(EVERY_TYPE)
    assert fed(reader, data, cuts) == sent
    assert reader.pending == 0


@given(st.binary(max_size=300), st.lists(st.integers(min_value=0)))
def test_any_bytes_give_frames_or_a_protocol_error_and_bounded_memory(data, cuts):
    reader = FrameReader(FROM_CLIENT)
    try:
        found = fed(reader, data, cuts)
    except ProtocolError:
        assert reader.pending == 0
        with pytest.raises(ProtocolError):
            reader.feed(encode(FrameType.STDIN_EOF))
        return
    assert sum(5 + len(payload) for _, payload in found) + reader.pending == len(data)


@given(st.integers(min_value=0, max_value=255), st.integers(min_value=0, max_value=2**32 - 1))
def test_a_header_is_judged_before_its_payload_comes(number, length):
    header = bytes([number]) + length.to_bytes(4, "big")
    allowed = number in FROM_SERVER and SIZES[FrameType(number)][0] <= length <= SIZES[FrameType(number)][1]
    reader = FrameReader(FROM_SERVER)
    if allowed:
        reader.feed(header)
    else:
        with pytest.raises(ProtocolError):
            reader.feed(header)


def test_each_direction_has_its_own_types():
    assert FROM_CLIENT | FROM_SERVER == EVERY_TYPE
    for kind in EVERY_TYPE:
        data = encode(kind, bytes(SIZES[kind][0]))
        for accepts in (FROM_CLIENT, FROM_SERVER):
            if kind in accepts:
                assert FrameReader(accepts).feed(data) == [(kind, bytes(SIZES[kind][0]))]
            else:
                with pytest.raises(ProtocolError):
                    FrameReader(accepts).feed(data)


@pytest.mark.parametrize("kind", sorted(FrameType))
def test_no_frame_is_made_that_would_not_be_read(kind):
    smallest, largest = SIZES[kind]
    with pytest.raises(ProtocolError):
        encode(kind, bytes(largest + 1))
    if smallest:
        with pytest.raises(ProtocolError):
            encode(kind, bytes(smallest - 1))


def test_the_largest_frames_pass():
    reader = FrameReader(FROM_CLIENT)
    data = encode(FrameType.INVOKE, bytes(MAX_INVOKE)) + encode(FrameType.STDIN, bytes(MAX_DATA))
    found = []
    for at in range(0, len(data), 65536):
        found += reader.feed(data[at : at + 65536])
    assert [len(p) for _, p in found] == [MAX_INVOKE, MAX_DATA]


@given(st.binary())
def test_text_of_any_bytes_passes_json(data):
    text = data.decode("utf-8", "surrogateescape")
    message = {"text": text, text: [text]}
    assert decode_json(FrameType.NOTE, encode_json(FrameType.NOTE, message)[5:]) == message


@pytest.mark.parametrize("payload", [b"", b"{", b"[]", b"7", b"\xff", b"{]", b"[" * 100_000, b'{"a":1}x'])
def test_what_is_no_json_object_is_a_protocol_error(payload):
    with pytest.raises(ProtocolError):
        decode_json(FrameType.NOTE, payload)


def test_a_surrogate_that_stands_for_no_byte_is_not_sent():
    with pytest.raises(ProtocolError):
        encode_json(FrameType.NOTE, {"text": "\ud800"})


@given(*[st.integers(min_value=0, max_value=65535)] * 4)
def test_sizes_pass(rows, columns, width, height):
    assert decode_size(encode_size(rows, columns, width, height)[5:]) == (rows, columns, width, height)


def test_sizes_out_of_range_become_the_nearest():
    assert decode_size(encode_size(-1, 70_000)[5:]) == (0, 65535, 0, 0)


def test_numbers_pass():
    frame = encode_numbers(FrameType.AGENT_ACK, 7, 2**32 - 1)
    assert (decode_number(frame[5:]), decode_number(frame[5:], 4)) == (7, 2**32 - 1)
