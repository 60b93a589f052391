"""Admission of per-message options: kept per recipient, or refused with the field."""

import pytest

from engine.config.schema import LimitsConfig
from engine.region.admission import Admission
from engine.values.message import ItemError, Message
from engine.values.options import Flag, Options
from engine.values.submission import Submission, decode_submission, encode_submission

NOW_MS = 1_700_000_000_000


def admit(options: tuple[Options, ...]) -> tuple[tuple[Options | None, ...] | None, list[ItemError]]:
    message = Message(
        sender="a@example.com",
        recipients=("b@example.org", "c@example.org"),
        body=b"Subject: x\r\n\r\n",
        options=options,
    )
    header, blob = encode_submission([message], bytes(16))
    admission = Admission(
        limits=LimitsConfig(), streams=frozenset({0, 1, 2}), expire_ms={0: 9000, 1: 9000, 2: 9000}
    )
    admitted = admission.admit(decode_submission(header, len(blob)), NOW_MS)
    return (admitted.items[0].options if admitted.items else None), admitted.errors


def test_none_one_or_one_per_recipient() -> None:
    one, other = Options(flags=Flag.VERP), Options(notify=1)
    assert admit(()) == ((), [])
    assert admit((one,)) == ((one, one), [])
    assert admit((one, other)) == ((one, other), [])
    strict = Options(flags=Flag.REQUIRE_TLS)
    assert admit((strict,)) == ((strict, strict), [])


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ((Options(envid="x\r\nDATA"),), "options.envid"),
        ((Options(),) * 3, "options"),
        ((Options(ret="ALL"), Options()), "options.ret"),
    ],
)
def test_refused_with_the_field(options: tuple[Options, ...], field: str) -> None:
    items, errors = admit(options)
    assert items is None
    assert [error.field for error in errors] == [field]


@pytest.mark.parametrize("send_at_ms", [NOW_MS * 1000, NOW_MS + 11 * 365 * 86_400_000, 1 << 60])
def test_a_send_time_in_a_wrong_unit_is_refused_by_itself(send_at_ms: int) -> None:
    def message(send_at_ms: int) -> Message:
        return Message("a@example.com", ("b@example.org",), b"Subject: x\r\n\r\n", send_at_ms=send_at_ms)

    header, blob = encode_submission([message(send_at_ms), message(NOW_MS + 1000)], bytes(16))
    admission = Admission(limits=LimitsConfig(), streams=frozenset({0}), expire_ms={0: 9000})
    admitted = admission.admit(decode_submission(header, len(blob)), NOW_MS)
    assert [(error.index, error.field) for error in admitted.errors] == [(0, "send_at_ms")]
    assert admitted.positions == [1]


@pytest.mark.parametrize("stream", [None, True, "0", 1.0, [], {}, [[0]], 7])
def test_a_stream_that_is_none_is_refused_by_itself(stream: object) -> None:
    item = ["a@example.com", ["b@example.org"], 0, "default", "", 0, "", 5, []]
    odd = [*item[:2], stream, *item[3:]]
    admission = Admission(limits=LimitsConfig(), streams=frozenset({0}), expire_ms={0: 9000})
    admitted = admission.admit(Submission(bytes(16), [odd, item], [0, 5]), NOW_MS)
    assert [(error.index, error.field) for error in admitted.errors] == [(0, "stream")]
    assert admitted.positions == [1]
