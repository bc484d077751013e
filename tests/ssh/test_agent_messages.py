"""Which messages of the agent's protocol a guest may send, and how a stream is cut into them."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from claude_vm.supervisor.ssh.agent_messages import (
    MAX_BINDINGS,
    MAX_MESSAGE,
    Binding,
    Messages,
    Rights,
    forwarding,
)
from claude_vm.supervisor.ssh.errors import AgentProtocolError

BODIES = st.lists(st.binary(min_size=1, max_size=300), max_size=20)


def string(data):
    return struct.pack(">I", len(data)) + data


def message(kind, body=b""):
    return string(bytes([kind]) + body)


def extension(name, body=b""):
    return message(27, string(name) + body)


@given(BODIES, st.data())
def test_a_stream_is_the_same_messages_however_it_is_cut(bodies, data):
    stream = b"".join(map(string, bodies))
    cuts = sorted(data.draw(st.sets(st.integers(0, len(stream)), max_size=10)) | {0, len(stream)})
    taken, got = Messages(), []
    for start, end in zip(cuts, [*cuts[1:], len(stream)], strict=True):
        got += taken.take(stream[start:end])
    assert got == [string(body) for body in bodies]


@given(BODIES, st.sampled_from([0, MAX_MESSAGE + 1, 0xFFFFFFFF]))
def test_a_message_of_no_length_or_too_much_is_an_error_before_it_has_come(bodies, length):
    taken = Messages()
    taken.take(b"".join(map(string, bodies)))
    with pytest.raises(AgentProtocolError):
        taken.take(struct.pack(">I", length))


def test_the_longest_message_passes():
    whole = string(b"\x0d" + bytes(MAX_MESSAGE - 1))
    taken = Messages()
    assert taken.take(whole[:-1]) == []
    assert taken.take(whole[-1:]) == [whole]


@given(st.integers(0, 255), st.binary(max_size=100))
def test_of_all_requests_a_guest_has_listing_and_signing(kind, body):
    if kind != 27:
        assert Rights().allow(message(kind, body)) == (kind in {11, 13})


@given(st.binary(max_size=100))
def test_of_all_extensions_a_guest_has_the_query_and_the_next_hop(body):
    named = (string(b"query"), string(b"session-bind@openssh.com"))
    assert Rights().allow(message(27, body)) == (body == named[0] or body.startswith(named[1]))


@pytest.mark.parametrize(
    "request_",
    [
        extension(b"query", b"more"),
        extension(b"query "),
        extension(b"session-bind@openssh.com\0"),
        extension(b"restrict-destination-v00@openssh.com"),
        message(27, b"\0\0\0\xff" + b"query"),
        message(27, b"query"),
        message(27),
    ],
)
def test_what_only_looks_like_an_allowed_extension_is_refused(request_):
    assert not Rights().allow(request_)


def test_a_guest_may_tell_few_hops():
    rights = Rights()
    hop = extension(b"session-bind@openssh.com", b"anything")
    assert [rights.allow(hop) for _ in range(MAX_BINDINGS + 5)] == [True] * MAX_BINDINGS + [False] * 5
    assert rights.allow(message(11))


def test_the_agent_is_told_what_forwards_it():
    (told,) = Messages().take(forwarding(Binding(b"key", b"id", b"signature")))
    name = string(b"session-bind@openssh.com")
    assert told[4:] == b"\x1b" + name + string(b"key") + string(b"id") + string(b"signature") + b"\1"
