"""What comes back about delivered mail, as far as no spool is needed: when nothing is done about it."""

import asyncio
from typing import Any, cast

import pytest

from engine.bounces.classifier import shipped_classifier
from engine.bounces.report import Failure
from engine.bounces.signal import Effect, Signal, SignalKind
from engine.config.suppression import SuppressionConfig
from engine.region.late import LateReports
from engine.spool.sent import Sent
from engine.values.reply import Reply

NOW_MS = 1_800_000_000_000
ROW = Sent(NOW_MS + 1, 0, "anna@example.org", 2, "acme", "", 1, "mx:example.org", NOW_MS - 1000)
GONE = Failure(("anna@example.org",), Reply(550, "5.1.1", "User unknown"))
ELSEWHERE = Failure(("bob@d.example",), Reply(550, "5.1.1", "User unknown"))


class Store:
    def __init__(self, row: Sent | None, *, is_queued: bool = False) -> None:
        self.row = row
        self.is_queued = is_queued
        self.acted: list[Any] = []

    def sent(self, message_id: int) -> Sent | None:
        return self.row

    def message(self, message_id: int) -> object | None:
        return object() if self.is_queued else None

    async def act(self, *arguments: Any) -> bool:
        self.acted.append(arguments)
        return False


def take(store: Store, signal: Signal) -> Effect:
    late = LateReports(
        store=store,
        act=store.act,
        classifier=shipped_classifier(),
        config=SuppressionConfig(),
        observer=cast(Any, None),
        tenants=cast(Any, None),
    )
    return asyncio.run(late.take(signal))


def bounce(*failures: Failure, is_partial: bool = False) -> Signal:
    return Signal(SignalKind.BOUNCE, 7, NOW_MS, failures, is_partial)


COMPLAINT = Signal(SignalKind.COMPLAINT, 7, NOW_MS)


@pytest.mark.parametrize("signal", [bounce(GONE), COMPLAINT])
@pytest.mark.parametrize(
    ("row", "is_queued", "effect"),
    [
        (None, False, Effect.UNKNOWN),
        (None, True, Effect.EARLY),
        (ROW._replace(expires_ms=NOW_MS), False, Effect.UNKNOWN),
    ],
)
def test_nothing_is_done_about_what_is_not_known(
    signal: Signal, row: Sent | None, is_queued: bool, effect: Effect
) -> None:
    store = Store(row, is_queued=is_queued)
    assert take(store, signal) is effect
    assert store.acted == []


def test_who_is_listed_and_for_what() -> None:
    for signal, reasons in (
        (bounce(GONE), ["hard-bounce"]),
        (bounce(Failure((), Reply(550, "5.7.1", "blocked using zen.spamhaus.org"))), []),
        (bounce(ELSEWHERE), []),
        (COMPLAINT, ["complaint"]),
    ):
        store = Store(ROW)
        assert take(store, signal) is Effect.REPEATED
        [(_, _, event, rows, _)] = store.acted
        assert [str(row.reason) for row in rows] == reasons
        assert event[2]["recipient"] == "anna@example.org"


def test_a_list_some_of_whose_members_have_failed_is_no_bounce() -> None:
    store = Store(ROW)
    assert take(store, bounce(ELSEWHERE, is_partial=True)) is Effect.IGNORED
    assert store.acted == []
