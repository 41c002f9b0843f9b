"""The SPDY/3.1 state machine, as a conversation between its two sides."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localkube.node.streaming.spdy import (
    DICTIONARY,
    ConnectionEnding,
    DataReceived,
    SpdyConnection,
    SpdyError,
    StreamAccepted,
    StreamOpened,
    StreamReset,
)


def test_the_dictionary_is_the_protocols() -> None:
    """zlib names a preset dictionary by its checksum; SPDY/3's is this one."""
    assert len(DICTIONARY) == 1423
    assert zlib.adler32(DICTIONARY) == 0xE3C6A7C2


def test_a_stream_from_open_to_end() -> None:
    client, server = SpdyConnection(client=True), SpdyConnection()
    stream = client.open_stream({"streamType": "data", "port": "80"})
    opened = server.receive(client.data_to_send())
    assert opened == [StreamOpened(stream, {"streamtype": "data", "port": "80"}, False)]
    server.accept_stream(stream)
    server.send(stream, b"hello", fin=True)
    assert client.receive(server.data_to_send()) == [
        StreamAccepted(stream, {}),
        DataReceived(stream, b"hello", True),
    ]


def test_header_compression_is_shared_by_all_streams() -> None:
    client, server = SpdyConnection(client=True), SpdyConnection()
    sizes = []
    for number in range(3):
        client.open_stream({"streamtype": "stdin", "requestid": "7", "x": "y" * 50})
        data = client.data_to_send()
        sizes.append(len(data))
        (event,) = server.receive(data)
        assert isinstance(event, StreamOpened)
        assert event.stream == 2 * number + 1
    assert sizes[1] < sizes[0]


@given(st.binary(max_size=100_000), st.integers(1, 5000))
def test_any_cut_of_the_bytes_gives_the_same_data(data: bytes, step: int) -> None:
    client, server = SpdyConnection(client=True), SpdyConnection()
    stream = client.open_stream({})
    client.send(stream, data, fin=True)
    wire = client.data_to_send()
    events = []
    for start in range(0, len(wire), step):
        events += server.receive(wire[start : start + step])
    received = [e for e in events if isinstance(e, DataReceived)]
    assert b"".join(e.data for e in received) == data
    assert [e.fin for e in received] == [False] * (len(received) - 1) + [True]


def test_reset_goodbye_and_ping() -> None:
    client, server = SpdyConnection(client=True), SpdyConnection()
    client.reset(1, 5)
    client.go_away()
    assert server.receive(client.data_to_send()) == [StreamReset(1, 5), ConnectionEnding(0)]
    ping = b"\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x09"
    assert server.receive(ping) == []
    assert server.data_to_send() == ping


@pytest.mark.parametrize(
    "frame",
    [
        b"\x80\x02\x00\x01\x00\x00\x00\x00",  # SPDY/2
        b"\x80\x03\x00\x01\x00\x00\x00\x02\x00\x00",  # a stream without a number
        b"\x80\x03\x00\x01\x00\x00\x00\x0e\x00\x00\x00\x01" + b"\xff" * 10,  # not zlib
    ],
)
def test_a_broken_frame_is_an_error(frame: bytes) -> None:
    with pytest.raises(SpdyError):
        SpdyConnection().receive(frame)
