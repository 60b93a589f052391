"""What a personality remembers, on a manual clock."""

from engine.sink.personality import Personality
from engine.sink.state import ProviderState, share
from engine.sink.syntax import message_id

S = 1_000_000_000


def state(**fields: object) -> ProviderState:
    return ProviderState(Personality.model_validate(fields))


def test_share_is_stable_even_and_blind_to_case() -> None:
    values = [share(f"user{n}@example.test", b"unknown") for n in range(10_000)]
    assert 0.48 < sum(values) / len(values) < 0.52
    assert share("A@Example.test", b"unknown") == share("a@example.TEST", b"unknown")
    assert share("a@example.test", b"unknown") != share("a@example.test", b"greylist")


def test_unknown_users_by_ratio_and_pattern() -> None:
    some = state(unknown={"ratio": 0.1})
    assert 900 < sum(some.is_unknown(f"u{n}@example.test") for n in range(10_000)) < 1100
    named = state(unknown={"pattern": "^nobody-"})
    assert named.is_unknown("nobody-7@example.test")
    assert not named.is_unknown("somebody@example.test")
    assert not state().is_unknown("nobody-7@example.test")


def test_rate_counts_in_a_sliding_window_per_client() -> None:
    limited = state(rate={"limit": "3/s", "reply": "421 4.7.0 slow"})
    assert [limited.charge("127.0.0.1", at) for at in (0, S // 2, S - 1, S - 1)] == [True, True, True, False]
    assert limited.charge("127.0.0.2", S - 1)
    assert limited.charge("127.0.0.1", S)  # the first has left the window
    assert not limited.charge("127.0.0.1", S + S // 2 - 1)
    assert limited.charge("127.0.0.1", S + S // 2)


def test_greylist_defers_until_its_time_has_passed() -> None:
    grey = state(greylist={"after": "5s"})
    assert grey.is_greylisted("127.0.0.1", "s", "r", 0)
    assert grey.is_greylisted("127.0.0.1", "s", "r", 5 * S - 1)
    assert grey.is_greylisted("127.0.0.1", "s", "other", 5 * S)
    assert not grey.is_greylisted("127.0.0.9", "s", "r", 5 * S)  # same /24
    assert not grey.is_greylisted("127.0.0.1", "s", "r", 6 * S)


def test_connections_are_counted_per_client() -> None:
    narrow = state(connections={"limit": 2})
    assert [narrow.connect("a") for _ in range(3)] == [True, True, False]
    assert narrow.connect("b")
    narrow.disconnect("a")
    narrow.disconnect("a")
    assert narrow.connect("a")
    for _ in range(2):
        narrow.disconnect("a")
    narrow.disconnect("b")
    assert narrow.connections == {}


def test_a_recipient_is_dropped_as_often_as_said() -> None:
    flaky = state(drop={"at": "data", "times": 2})
    assert [flaky.is_dropped("r") for _ in range(4)] == [True, True, False, False]
    assert not state().is_dropped("r")


def test_message_id_prefers_ours_and_ends_with_the_header() -> None:
    assert message_id(b"Message-ID: <a@b>\r\nX-Sendfleet-ID: 0000000000000007\r\n\r\n") == "0000000000000007"
    assert message_id(b"Subject: x\r\nmessage-id:  <a@b> \r\n\r\nX-Sendfleet-ID: 9\r\n") == "<a@b>"
    assert message_id(b"Subject: x\r\n\r\nMessage-ID: <a@b>\r\n") == ""


def test_a_block_begins_after_its_number_and_lasts_as_long_as_it_says() -> None:
    burned = state(block={"clients": ["127.0.0.11"], "reply": "550 5.7.1 (S3140)", "after": 2, "lasts": "5s"})
    assert not burned.is_blocked("127.0.0.12", 0)
    assert [burned.is_blocked("127.0.0.11", S) for _ in range(3)] == [False, False, True]
    assert burned.is_blocked("127.0.0.11", 6 * S - 1)
    assert not burned.is_blocked("127.0.0.11", 6 * S)
    forever = state(block={"clients": ["127.0.0.11"], "reply": "550 5.7.1 (S3140)"})
    assert forever.is_blocked("127.0.0.11", 0)
    assert forever.is_blocked("127.0.0.11", 10**6 * S)


def test_a_client_is_crowded_above_its_number_and_as_often_as_said() -> None:
    state = ProviderState(Personality.model_validate({"crowded": {"connections": 2, "times": 3}}))
    for client in ("127.0.0.1", "127.0.0.1", "127.0.0.9"):
        state.connect(client)
    assert not state.is_crowded("127.0.0.1")
    state.connect("127.0.0.1")
    assert not state.is_crowded("127.0.0.9")
    assert [state.is_crowded("127.0.0.1") for _ in range(4)] == [True, True, True, False]
