"""Events in bulk, by the kernel, are what they are one by one: whatever they say, and whatever is not an event."""

from typing import Any

import msgpack
import orjson
from hypothesis import given
from hypothesis import strategies as st

from engine.region.outbox import _KIND_NAMES, _STREAM_NAMES, event_line, event_lines
from engine.values.outcome import OutcomeKind
from engine.values.stream import Stream
from native.events import message_lines

texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
numbers = st.one_of(st.integers(0, 300), st.integers(0, 2**64 - 1))
messages = st.tuples(
    numbers,
    st.sampled_from([int(kind) for kind in OutcomeKind]),
    st.integers(0, 2**64 - 1),
    st.integers(0, 999),
    texts,
    texts,
    texts,
    st.integers(0, 0xFFFF),
    st.integers(0, 255),
    numbers,
    texts,
    st.sampled_from([int(stream) for stream in Stream]),
    texts,
    texts,
    texts,
    st.booleans(),
    texts,
)
others = st.tuples(numbers, texts, st.dictionaries(st.sampled_from(["source", "site"]), texts))


@given(sequence=numbers, events=st.lists(messages, max_size=10))
def test_events_about_messages_are_the_lines_that_they_are_one_by_one(
    sequence: int, events: list[tuple[Any, ...]]
) -> None:
    made = message_lines(sequence, msgpack.packb(events), _KIND_NAMES, _STREAM_NAMES)
    assert made == b"".join(event_line(sequence, list(event)) for event in events)
    for line in (made or b"").splitlines():
        orjson.loads(line)


@given(events=st.lists(st.one_of(messages, others, messages.map(lambda event: event[:-3])), max_size=10))
def test_a_chunk_may_hold_events_of_every_layout(events: list[tuple[Any, ...]]) -> None:
    expected = b"".join(event_line(5, list(event)) for event in events)
    assert event_lines(5, msgpack.packb(events)) == expected


@given(
    events=st.lists(messages, min_size=1, max_size=2),
    at=st.integers(0, 10_000),
    octet=st.integers(0, 255),
    cut=st.booleans(),
)
def test_what_is_not_such_a_chunk_is_left_alone(
    events: list[tuple[Any, ...]], at: int, octet: int, cut: bool
) -> None:
    """A changed or missing octet: either it is another chunk of the same layout, or there are no lines."""
    chunk = bytearray(msgpack.packb(events))
    at %= len(chunk)
    if cut:
        del chunk[at:]
    else:
        chunk[at] = octet
    made = message_lines(5, bytes(chunk), _KIND_NAMES, _STREAM_NAMES)
    try:
        read = msgpack.unpackb(bytes(chunk), unicode_errors="surrogateescape")
    except (ValueError, msgpack.UnpackException):
        assert made is None
        return
    if made is not None:
        assert isinstance(read, list)
        assert made.count(b"\n") == len(read)


def test_a_text_that_is_not_utf8_is_shown_as_it_is() -> None:
    event = [1, 2, 3, 250, "", "Ok \ud800", "", 3, 0, 1, "u@example.com", 2, "", "", "", False, ""]
    line = event_lines(5, msgpack.packb([event], unicode_errors="surrogatepass"))
    assert "u@example.com" in orjson.loads(line)["raw"]
