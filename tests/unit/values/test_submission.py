"""The batch codec: round trip, and refusal of what is not a batch."""

from dataclasses import replace

import msgpack
import pytest

from engine.values.message import ItemError, Message, Receipt
from engine.values.options import Options
from engine.values.stream import Stream
from engine.values.submission import (
    MalformedBatch,
    batch_key_of,
    decode_receipt,
    decode_submission,
    encode_receipt,
    encode_submission,
)

KEY = bytes(range(16))


def message(body: bytes) -> Message:
    return Message(sender="a@example.com", recipients=("b@example.org",), body=body, stream=Stream.MARKETING)


def test_bodies_stand_in_the_blob_in_the_order_of_the_items() -> None:
    header, blob = encode_submission([message(b"one"), message(b"second")], KEY)
    submission = decode_submission(header, len(blob))
    assert submission.batch_key == KEY
    assert submission.offsets == [0, 3]
    assert blob == b"onesecond"
    assert submission.items[1][7] == 6


def test_options_travel_and_a_header_of_version_1_has_none() -> None:
    wish = Options(flags=1, envid="id")
    header, blob = encode_submission([replace(message(b"one"), options=(wish,)), message(b"two")], KEY)
    submission = decode_submission(header, len(blob))
    assert [item[8] for item in submission.items] == [[list(wish.pack())], []]
    old = msgpack.packb((1, KEY, [("a@example.com", ["b@example.org"], 2, "default", "", 0, "", 3)]))
    assert decode_submission(old, 3).items[0][8] == []


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        msgpack.packb((3, KEY, [])),
        msgpack.packb((1, b"short", [])),
        msgpack.packb((1, KEY, [["a"]])),
        msgpack.packb("text"),
    ],
)
def test_anything_else_is_refused(header: bytes) -> None:
    with pytest.raises(MalformedBatch):
        decode_submission(header, 0)


def test_a_blob_of_another_size_is_refused() -> None:
    header, blob = encode_submission([message(b"one")], KEY)
    with pytest.raises(MalformedBatch, match="says 3 bytes, blob has 2"):
        decode_submission(header, len(blob) - 1)


@pytest.mark.parametrize("sizes", [(-5, 9), (4.0,), (True, 3), ("4",)])
def test_sizes_that_would_point_into_another_body_are_refused(sizes: tuple[object, ...]) -> None:
    items = [("a@example.com", ("b@example.org",), 2, "default", "", 0, "", size) for size in sizes]
    with pytest.raises(MalformedBatch, match="size of item"):
        decode_submission(msgpack.packb((1, KEY, items)), 4)


def test_receipt_round_trip() -> None:
    receipt = Receipt(
        "eu", ((1, 2), ()), (ItemError(1, "sender", "x", "expected an address"),), repeated=True
    )
    assert decode_receipt(encode_receipt(receipt)) == receipt


def test_batch_keys_do_not_depend_on_where_names_are_cut() -> None:
    assert batch_key_of("ab", "c") != batch_key_of("a", "bc")
