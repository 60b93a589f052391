"""Copies for other regions on disk: kept, changed, dropped, adopted, and what the owner does when it returns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.failover.effects import Export
from engine.failover.messages import Copy, Drop, Update
from engine.failover.spans import Spans, intersect, size, union
from engine.failover.standby import FENCED
from engine.failover.store import (
    Accept,
    Adopt,
    Apply,
    DropCopies,
    GiveUp,
    Inspect,
    IsEmpty,
    LookUp,
    Mark,
    OpenSession,
    Operation,
    Queued,
    Release,
    SaveClean,
    SaveEpoch,
    SaveStandby,
    TakeQueued,
)
from engine.spool import standby
from engine.spool.audit import audit
from engine.spool.batches import AcceptBatch, AcceptItem, Settlement
from engine.spool.records import MAYBE_SENT
from engine.spool.standby import TIME_BEGINS_S
from engine.spool.store import Spool, SpoolOptions
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply
from tests.support.clock import ManualClock

NUMBERS = {"a": 5, "b": 2, "c": 7}
KEY = b"k" * 16


def batch(key: bytes = KEY, *, due_ms: int = 1, count: int = 3) -> AcceptBatch:
    body = b"Subject: x\r\n\r\nhello\r\n"
    recipients = tuple(f"r{n}@example.org" for n in range(count))
    item = AcceptItem(
        "s@example.com", recipients, ("example.org",) * count, 1, "t", "", 0, len(body), due_ms, 10**12
    )
    return AcceptBatch(key, [item], body)


class Pair:
    """Region a (number 5) with its standby b (number 2): adopted ids lie behind those of b."""

    def __init__(self, path: Path) -> None:
        self.clock = ManualClock()
        self.path = path
        self.spools: dict[str, Spool] = {}
        for name in NUMBERS:
            self.open(name)
        self.do("b", SaveEpoch(3))
        self.do("a", SaveEpoch(1))

    def open(self, name: str) -> None:
        options = SpoolOptions(map_size=64 << 20, min_free=0)
        self.spools[name] = Spool.open(
            self.path / name, region_number=NUMBERS[name], clock=self.clock, options=options
        )

    def close(self) -> None:
        for spool in self.spools.values():
            spool.close()

    def do(self, name: str, operation: Operation) -> Any:
        return self.spools[name].failover(operation, NUMBERS).result(10)

    def accept(self, key: bytes = KEY, *, is_safe: bool = False, due_ms: int = 1) -> Spans:
        accepted, _ = self.do("a", Accept(key, batch(key, due_ms=due_ms)))
        spans: Spans = accepted.spans
        if is_safe:
            self.do("a", Release(key, spans))
        return spans

    def copy(self, spans: Spans, key: bytes = KEY) -> str:
        found, payload = self.spools["a"].exporter().messages(spans, [key])
        return str(self.do("b", Apply("a", 1, 1, 0, Copy(found, payload, key))))

    def assert_clean(self) -> None:
        for name in NUMBERS:
            self.spools[name].close()
            report = audit(self.path / name)
            self.open(name)
            assert report.is_clean, report.problems


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    pair = Pair(tmp_path)
    yield pair
    pair.close()


def test_a_batch_is_not_due_before_its_release(pair: Pair) -> None:
    spans = pair.accept()
    assert [first for *_, first in pair.spools["a"].queues()] == [None]
    assert pair.do("a", TakeQueued(unsafe=False, tag=0)).spans == ()
    assert pair.do("a", TakeQueued(unsafe=True, tag=0)).spans == spans
    assert pair.spools["a"].durable(NUMBERS).unsafe == ((KEY, spans),)
    pair.assert_clean()
    assert len(pair.do("a", Release(KEY, spans))) == 3
    spool = pair.spools["a"]
    assert [first for *_, first in spool.queues()] == [1]
    assert spool.durable(NUMBERS).unsafe == ()
    pair.assert_clean()


def test_what_is_queued_is_listed_in_parts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is an operation between others: with millions a region would answer no beat for seconds."""
    monkeypatch.setattr(standby, "LISTED_AT_ONCE", 4)
    safe = pair.accept(is_safe=True)
    unsafe = pair.accept(b"u" * 16)
    later = pair.accept(b"l" * 16, is_safe=True)
    for is_whole, wanted in ((True, union(safe, unsafe, later)), (False, union(safe, later))):
        parts = [pair.do("a", TakeQueued(is_whole, 0))]
        while parts[-1].last >= 0:
            parts.append(pair.do("a", TakeQueued(is_whole, 0, parts[-1].last)))
        assert union(*(part.spans for part in parts)) == wanted
        assert len(parts) == 3
    assert pair.do("b", TakeQueued(unsafe=True, tag=0)) == Queued(())


def test_copies_are_dropped_in_parts(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standby, "ADOPTED_AT_ONCE", 2)
    for key in (KEY, b"2" * 16):
        pair.copy(pair.accept(key), key)
    left = []
    while pair.do("b", DropCopies("a")):
        left.append(size(pair.do("b", OpenSession("a", 1, 2))))
    assert left == [4, 2, 0]
    assert pair.do("b", OpenSession("a", 1, 2)) == ()
    pair.assert_clean()


def test_a_long_question_is_answered_over_the_pages_of_the_ledger(pair: Pair) -> None:
    count = 3000  # of pages with 2,048
    keys = [bytes([n]) * 16 for n in range(4)]
    spans: Spans = ()
    for key in keys:
        accepted, _ = pair.do("a", Accept(key, batch(key, count=count)))
        spans = union(spans, accepted.spans)
        if key in keys[1:3]:
            pair.copy(accepted.spans, key)
    (first, total) = spans[0]
    adopted: Spans = ()
    while (found := pair.do("b", Adopt("a", 2, 3))).spans:
        adopted = union(adopted, found.spans)
    assert adopted == ((first + count, 2 * count),)
    for asked in (
        spans,
        ((first, 1), (first + count - 1, 2), (first + 3 * count - 1, 2), (first + total, 5000)),
    ):
        assert pair.do("b", Inspect("a", 2, 0, asked)).mine == intersect(asked, adopted)


def test_copies_are_adopted_with_their_ids_and_bodies_and_marked(pair: Pair) -> None:
    spans = pair.accept()
    later = pair.accept(b"l" * 16, due_ms=pair.clock.wall_ms() + 10**9)
    assert pair.copy(spans) == pair.copy(later, b"l" * 16) == ""
    pair.spools["b"].accept(batch(b"own" + bytes(13))).result(10)
    adopted = pair.do("b", Adopt("a", 2, 3))
    assert adopted.spans == (*spans[:0], (spans[0][0], 6))
    spool = pair.spools["b"]
    first = spool.message(spans[0][0])
    assert first is not None
    assert first.flags & MAYBE_SENT
    assert spool.reader().body(first.content) == b"Subject: x\r\n\r\nhello\r\n"
    scheduled = spool.message(later[0][0])
    assert scheduled is not None
    assert not scheduled.flags & MAYBE_SENT
    status = spool.status(spans[0][0])
    assert status is not None
    assert status["state"] == "queued"
    pair.spools["b"].accept(batch(b"after" + bytes(11))).result(10)  # below the adopted ids
    assert pair.do("b", LookUp(KEY, "", 0)).spans == spans
    pair.assert_clean()


def test_a_superseded_owner_writes_no_more(pair: Pair) -> None:
    spans = pair.accept()
    pair.do("b", Adopt("a", 2, 3))
    assert pair.copy(spans) == FENCED
    assert pair.do("b", OpenSession("a", 1, 1)) is None
    assert pair.do("b", OpenSession("a", 2, 1)) == ()


def test_an_adopter_that_has_a_new_epoch_itself_adopts_nothing(pair: Pair) -> None:
    pair.copy(pair.accept())
    pair.do("b", SaveEpoch(4))
    assert pair.do("b", Adopt("a", 2, 3)).spans == ()


def test_what_is_dropped_or_changed_before_is_adopted_so(pair: Pair) -> None:
    spans = pair.accept()
    pair.copy(spans)
    first = spans[0][0]
    pair.do("b", Apply("a", 1, 1, 1, Drop(((first, 1),))))
    pair.do("a", Release(KEY, spans))
    key = pair.spools["a"].due_key_of(first + 1)
    assert key is not None
    outcome = Outcome(
        first + 1, OutcomeKind.DEFERRED, Scope.RECIPIENT, Reply(450, "4.2.1", "later"), 0, "", 5
    )
    pair.spools["a"].settle([Settlement(key, outcome, 0, next_due_ms=77)]).result(10)
    found, payload = pair.spools["a"].exporter().updates(((first + 1, 1),))
    pair.do("b", Apply("a", 1, 1, 2, Update(found, payload)))
    assert pair.do("b", Adopt("a", 2, 3)).spans == ((first + 1, 2),)
    changed = pair.spools["b"].message(first + 1)
    assert changed is not None
    assert (changed.attempts, changed.due_ms) == (1, 77)
    pair.assert_clean()


def test_a_returning_owner_gives_up_what_others_own(pair: Pair) -> None:
    spans = pair.accept()
    pair.copy(spans)
    pair.do("a", Release(KEY, spans))
    pair.do("b", Adopt("a", 2, 3))
    pair.do("a", SaveEpoch(2))
    inspected = pair.do("b", Inspect("a", 2, 0, pair.do("a", TakeQueued(unsafe=True, tag=0)).spans))
    assert inspected.mine == spans
    assert inspected.highest == spans[0][0] + 2
    pair.do("a", GiveUp(inspected.mine, "b"))
    assert pair.do("a", TakeQueued(unsafe=True, tag=0)).spans == ()
    status = pair.spools["a"].status(spans[0][0])
    assert status is not None
    assert status["state"] == "moved"
    pair.assert_clean()
    again = pair.do("b", Inspect("b", 9, 0, ()))
    assert again.mine == ()


def test_what_is_left_of_a_batch_without_a_receipt_waits_for_its_release(pair: Pair) -> None:
    (first, count), *_ = pair.accept()
    pair.do("a", GiveUp(((first, 1),), "b"))
    left = ((first + 1, count - 1),)
    assert pair.spools["a"].durable(NUMBERS).unsafe == ((KEY, left),)
    assert len(pair.do("a", Release(KEY, left))) == count - 1
    assert pair.spools["a"].durable(NUMBERS).unsafe == ()
    pair.assert_clean()


def test_what_is_given_up_to_one_that_has_its_standby_here_is_kept_as_its_copy(pair: Pair) -> None:
    spans = pair.accept()
    pair.copy(spans)
    pair.do("a", Release(KEY, spans))
    pair.do("b", Adopt("a", 2, 3))
    pair.do("a", SaveEpoch(2))
    pair.do("a", GiveUp(spans, "b", is_standby=True))
    assert pair.do("a", TakeQueued(unsafe=True, tag=0)).spans == ()
    pair.assert_clean()
    assert pair.do("a", OpenSession("b", 3, 1)) == spans
    assert pair.do("a", Adopt("b", 4, 2)).spans == spans  # b is lost, with its disk
    record = pair.spools["a"].message(spans[0][0])
    assert record is not None
    assert pair.spools["a"].reader().body(record.content) == b"Subject: x\r\n\r\nhello\r\n"
    pair.assert_clean()


HOUR_MS = 3_600_000


def settle(pair: Pair, name: str, id_: int, kind: OutcomeKind, next_due_ms: int | None = None) -> None:
    spool = pair.spools[name]
    key = spool.due_key_of(id_)
    assert key is not None
    outcome = Outcome(id_, kind, Scope.MESSAGE, Reply(451, "4.7.1", "later"), 0, "mx", pair.clock.wall_ms())
    assert spool.settle([Settlement(key, outcome, 0, next_due_ms=next_due_ms)]).result(10).stale == 0


def deferred_where_it_was_adopted_from(pair: Pair) -> int:
    """a is called dead with a message on the wire; b adopts and delivers it; a's transaction ends with 451."""
    spans = pair.accept()
    pair.copy(spans)
    pair.do("a", Release(KEY, spans))
    id_ = spans[0][0]
    pair.do("b", Adopt("a", 2, 3))
    settle(pair, "b", id_, OutcomeKind.DELIVERED)
    settle(pair, "a", id_, OutcomeKind.DEFERRED, pair.clock.wall_ms() + HOUR_MS)
    pair.do("a", SaveEpoch(2))
    return id_


def is_marked(pair: Pair, name: str, id_: int) -> bool:
    record = pair.spools[name].message(id_)
    assert record is not None
    return bool(record.flags & MAYBE_SENT)


def test_what_was_deferred_is_marked_if_its_adopter_cannot_be_asked(pair: Pair) -> None:
    id_ = deferred_where_it_was_adopted_from(pair)
    pair.do("a", Mark(pair.do("a", TakeQueued(unsafe=True, tag=0)).spans))
    pair.do("a", SaveClean(2, 0, (("b", 4),)))
    assert is_marked(pair, "a", id_)


def test_what_was_deferred_is_marked_when_its_adopter_dies_after_the_return(pair: Pair) -> None:
    id_ = deferred_where_it_was_adopted_from(pair)
    inspected = pair.do("b", Inspect("a", 2, 0, pair.do("a", TakeQueued(unsafe=True, tag=0)).spans))
    pair.do("a", GiveUp(inspected.mine, "b", is_standby=True))
    pair.do("a", SaveClean(2, 0))
    pair.do("a", Adopt("b", 4, 2))  # before b's next session has dropped it here
    assert is_marked(pair, "a", id_)


def test_what_is_scheduled_and_was_never_tried_is_not_marked(pair: Pair) -> None:
    spans = pair.accept(is_safe=True, due_ms=pair.clock.wall_ms() + HOUR_MS)
    pair.do("a", SaveEpoch(2))
    pair.do("a", Mark(spans))
    assert not is_marked(pair, "a", spans[0][0])
    pair.do("a", GiveUp(spans, "b", is_standby=True))
    pair.do("a", SaveClean(2, 0))
    pair.do("a", Adopt("b", 4, 2))
    assert not is_marked(pair, "a", spans[0][0])


def test_after_a_return_the_same_fence_adopts_nothing(pair: Pair) -> None:
    pair.copy(pair.accept())
    pair.do("b", Inspect("a", 2, 0, ()))
    assert pair.do("b", Adopt("a", 2, 3)).spans == ()
    assert pair.do("b", Adopt("a", 2, 3, forced=True)).spans != ()


def test_who_asked_on_its_return_is_remembered_until_it_is_called_dead_again(pair: Pair) -> None:
    pair.do("b", Inspect("a", 2, 1, ()))
    assert pair.spools["b"].durable(NUMBERS).asked == (("a", 2),)
    pair.do("b", Adopt("a", 3, 3))
    assert pair.spools["b"].durable(NUMBERS).asked == ()


@pytest.mark.parametrize("ahead", [0, 1])
def test_a_region_on_an_empty_disk_does_not_give_old_ids_again(pair: Pair, ahead: int) -> None:
    """Those that others know of may be above those that the time stands for."""
    at_the_time = pair.clock.wall_ms() // 1000 - TIME_BEGINS_S << 17
    pair.do("a", SaveClean(1, (5 << 48) + at_the_time + 5000 * (1 if ahead else -1)))
    spans = pair.accept()
    assert spans[0][0] == (5 << 48) + at_the_time + 5001 * ahead
    pair.assert_clean()


def test_a_new_disk_begins_its_ids_at_the_time(pair: Pair) -> None:
    """Somebody may have had higher ids of it than those that are known now."""
    pair.do("a", SaveClean(1, (5 << 48) + 5000, (("b", 3),)))
    spans = pair.accept()
    seconds = pair.clock.wall_ms() // 1000 - TIME_BEGINS_S
    assert spans[0][0] == (5 << 48) + (seconds << 17)
    assert pair.spools["a"].durable(NUMBERS).unasked == (("b", 3),)
    pair.assert_clean()
    pair.do("a", SaveClean(2, 0, ()))
    assert pair.spools["a"].durable(NUMBERS).unasked == ()
    assert pair.accept(b"2" * 16)[0][0] == spans[0][0] + 3


def test_a_spool_remembers_in_which_epoch_its_region_was_live_last(pair: Pair) -> None:
    pair.do("a", SaveClean(1, 0))
    pair.do("a", SaveEpoch(4))
    pair.do("a", SaveClean(3, 0))  # overtaken by the epoch: it was never live in it
    pair.spools["a"].close()
    pair.open("a")
    durable = pair.spools["a"].durable(NUMBERS)
    assert (durable.epoch, durable.clean, durable.lived) == (4, False, 1)


def test_everything_survives_a_restart(pair: Pair) -> None:
    spans = pair.accept()
    pair.copy(spans)
    pair.do("b", OpenSession("a", 1, 1))
    for name in NUMBERS:
        pair.spools[name].close()
        pair.open(name)
    durable = pair.spools["a"].durable(NUMBERS)
    assert (durable.epoch, durable.clean, durable.unsafe) == (1, False, ((KEY, spans),))
    assert dict(pair.spools["b"].durable(NUMBERS).held)["a"] == 1
    assert pair.do("b", OpenSession("a", 1, 2)) == spans
    payload, cursor = pair.spools["a"].exporter().keys(b"")
    assert cursor == b""
    assert KEY not in payload
    assert pair.do("b", Adopt("a", 2, 3)).spans == spans
    pair.assert_clean()


def test_a_copy_that_comes_twice_counts_once(pair: Pair) -> None:
    spans = pair.accept()
    pair.copy(spans)
    pair.copy(spans)
    pair.do("b", Apply("a", 1, 1, 1, Drop(spans)))
    assert pair.do("b", OpenSession("a", 1, 1)) == ()


def test_an_export_of_what_is_settled_is_empty(pair: Pair) -> None:
    assert pair.spools["a"].exporter().messages(((1, 5),), [])[0] == ()
    assert Export(()).keys is False


def test_a_standby_is_changed_without_need_only_while_nothing_is_owned(pair: Pair) -> None:
    assert pair.do("a", IsEmpty())
    assert pair.do("a", SaveStandby("b", only_if_empty=True))
    pair.accept()  # not safe yet, but owned
    assert not pair.do("a", IsEmpty())
    assert pair.do("a", SaveStandby("c", only_if_empty=True)) is False
    assert pair.spools["a"].durable(NUMBERS).standby == "b"
    assert pair.do("a", SaveStandby("c"))
    assert pair.spools["a"].durable(NUMBERS).standby == "c"


def test_a_release_that_came_too_late_is_taken_back_with_the_new_epoch(pair: Pair) -> None:
    """What was queued of it: the batch has no receipt, and is asked for after a restart."""
    spans = pair.accept()
    pair.do("a", Release(KEY, spans))
    pair.do("a", SaveEpoch(2, ((KEY, spans),)))
    assert pair.spools["a"].durable(NUMBERS).unsafe == ((KEY, spans),)
    assert pair.do("a", TakeQueued(unsafe=False, tag=0)).spans == ()
    pair.assert_clean()
    assert len(pair.do("a", Release(KEY, spans))) == 3
    pair.assert_clean()


def test_a_damaged_body_holds_up_no_copy_of_another_message(pair: Pair) -> None:
    spans = pair.accept()
    last = pair.accept(b"l" * 16)
    segment = next((pair.path / "a" / "bodies").glob("*.seg"))
    with segment.open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"?")
    found, _ = pair.spools["a"].exporter().messages((*spans, *last), [])
    assert found == spans
