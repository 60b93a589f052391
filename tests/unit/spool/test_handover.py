"""Hand-over on disk: what is offered is not sent, what is taken is whole, and each step is done once."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.failover.handover import MakeOffer, Offer, Recall, SettleOffer
from engine.failover.messages import Copy
from engine.failover.spans import Spans, ids_of, of_ids
from engine.failover.store import Adopt, Apply, Inspect, SaveClean, SaveEpoch
from engine.spool.audit import audit
from engine.spool.handover import Decide, Decided, HandoverOperation, Identify, KeepKeys, Knows
from engine.spool.records import MAYBE_SENT, Record
from engine.spool.store import Spool
from engine.values.options import Notify, Options
from engine.values.outcome import OutcomeKind
from tests.support.spools import (
    CAMPAIGN,
    HOUR_MS,
    NOW_MS,
    PATIENCE_S,
    Gate,
    accept,
    as_one_group,
    assert_conserved,
    batch,
    chunk,
    due,
    id_of,
    letter,
    open_spool,
    packed,
    settlement,
)

NUMBERS = {"a": 1, "b": 2, "c": 3}
KEY = b"k" * 16


class Trio:
    """Three regions' spools."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.spools: dict[str, Spool] = {}
        self.disks: dict[str, bytes] = {}
        for name in NUMBERS:
            self.open(name)

    def open(self, name: str) -> None:
        self.spools[name] = open_spool(self.path / name, region=NUMBERS[name])
        self.disks[name] = self.do(name, Identify(f"disk {name}".encode()))

    def reopen(self, name: str) -> None:
        self.spools[name].close()
        self.open(name)

    def do(self, name: str, operation: HandoverOperation) -> Any:
        return self.spools[name].hand_over(operation, NUMBERS).result(PATIENCE_S)

    def check(self, name: str, **counts: int) -> None:
        """Conservation on a disk, which is opened again."""
        self.spools[name].close()
        assert_conserved(self.path / name, **counts)
        self.open(name)

    def offer(self, spans: Spans, number: int = 7, *, giver: str = "a", taker: str = "b") -> Offer:
        offered = self.do(giver, MakeOffer(number, taker, self.disks[taker], spans))
        found, payload = self.spools[giver].exporter().messages(offered, [])
        assert found == offered
        return Offer(giver, 0, number, self.disks[taker], offered, payload)

    def take(self, offer: Offer, name: str = "b", *, is_willing: bool = True) -> Decided:
        decided = self.do(name, Decide(offer, is_willing))
        assert isinstance(decided, Decided)
        return decided

    def record(self, name: str, id_: int) -> Record:
        record = self.spools[name].message(id_)
        assert record is not None
        return record

    def body(self, name: str, id_: int) -> bytes:
        return self.spools[name].reader().body(self.record(name, id_).content)


@pytest.fixture
def trio(tmp_path: Path) -> Iterator[Trio]:
    made = Trio(tmp_path)
    yield made
    for name, spool in made.spools.items():
        spool.close()
        report = audit(tmp_path / name)
        assert report.is_clean, report.problems


def spans_of(keys: list[bytes]) -> Spans:
    return of_ids(map(id_of, keys))


def test_what_is_offered_is_queued_and_neither_due_nor_dispatched(trio: Trio) -> None:
    keys = accept(trio.spools["a"], batch(letters=[letter(n) for n in range(3)]))
    ids = [id_of(key) for key in keys]
    offer = trio.offer(spans_of(keys[:2]))
    assert ids_of(offer.spans) == ids[:2]
    assert due(trio.spools["a"]) == keys[2:]
    assert trio.spools["a"].dispatch(1, packed(ids), {}).result(PATIENCE_S) == ids[:2]
    trio.check("a", queued=3)
    assert due(trio.spools["a"]) == keys[2:]
    (row,) = trio.spools["a"].offers().offers
    assert (row.number, row.peer, row.disk, row.spans) == (7, "b", trio.disks["b"], offer.spans)


def test_an_outcome_of_a_message_that_is_offered_is_stale(trio: Trio) -> None:
    keys = accept(trio.spools["a"], batch(letters=[letter(1)], recipients=2))
    trio.offer(of_ids([id_of(keys[0])]))
    result = trio.spools["a"].settle([settlement(key) for key in keys]).result(PATIENCE_S)
    assert result.stale == 1
    trio.check("a", queued=1, delivered=1)


def test_a_message_is_taken_with_all_that_is_known_of_it(trio: Trio) -> None:
    giver, taker = trio.spools["a"], trio.spools["b"]
    wish = Options(notify=Notify.FAILURE, envid="x1")
    plain = batch(letters=[letter(1, 3000)], domain="one.example", tenant="shop", campaign="sale")
    plain = replace(plain, items=[plain.items[0]._replace(options=(wish,))])
    (key,) = accept(giver, plain)
    (deferred,) = (
        giver.settle(
            [settlement(key, OutcomeKind.DEFERRED, next_due_ms=NOW_MS + HOUR_MS, possible_duplicate=True)]
        )
        .result(PATIENCE_S)
        .due_keys
    )
    number = giver.put_campaign(CAMPAIGN).result(PATIENCE_S)
    parts = list(giver.accept_chunk(chunk(number, 1, 2)).result(PATIENCE_S).due_keys)
    before = {id_of(k): trio.record("a", id_of(k)) for k in (deferred, *parts)}
    body = trio.body("a", id_of(key))
    decided = trio.take(trio.offer(spans_of([deferred, *parts])))
    assert decided.verdict.taken == spans_of([deferred, *parts])
    for id_, was in before.items():
        now = trio.record("b", id_)
        assert now._replace(queue=was.queue, content=was.content) == was
        assert taker.queue(now.queue) == giver.queue(was.queue)
    assert trio.record("b", id_of(key)).flags & MAYBE_SENT
    assert trio.record("b", id_of(key)).last is not None
    assert trio.body("b", id_of(key)) == body
    campaign_no, fields = trio.record("b", id_of(parts[0])).content
    assert taker.campaign(campaign_no).template == CAMPAIGN.template
    assert fields == ["n1.0"]
    assert sorted(due(taker)) == sorted(decided.due_keys)
    assert trio.do("a", SettleOffer(7, decided.verdict.taken)).due_keys == []
    trio.check("a", moved=3)
    trio.check("b", queued=3)
    assert (trio.spools["a"].status(id_of(key)) or {})["state"] == "moved"


def test_an_offer_that_comes_twice_is_taken_once_and_its_word_stays(trio: Trio) -> None:
    keys = accept(trio.spools["a"], batch(letters=[letter(n) for n in range(3)]))
    offer = trio.offer(spans_of(keys))
    first = trio.take(offer)
    trio.spools["b"].settle([settlement(first.due_keys[0])]).result(PATIENCE_S)
    trio.reopen("b")
    assert trio.take(offer).due_keys == []
    assert trio.take(offer).verdict == first.verdict
    assert trio.do("b", Decide(Recall("a", 0, 7, offer.spans), True)).verdict == first.verdict
    trio.check("b", queued=2, delivered=1)
    trio.do("a", SettleOffer(7, first.verdict.taken))


def test_what_was_asked_about_or_refused_is_not_taken_any_more(trio: Trio) -> None:
    keys = accept(trio.spools["a"], batch(letters=[letter(n) for n in range(2)]))
    offer = trio.offer(spans_of(keys[:1]))
    asked = trio.do("b", Decide(Recall("a", 0, 7, offer.spans), True))
    assert asked.verdict.taken == ()
    assert trio.take(offer).verdict.taken == ()
    settled = trio.do("a", SettleOffer(7, ()))
    assert settled.due_keys == keys[:1]
    assert not trio.record("a", id_of(keys[0])).flags & MAYBE_SENT
    refused = trio.offer(spans_of(keys), 8)
    assert trio.take(refused, is_willing=False).verdict.taken == ()
    assert trio.take(refused).verdict.taken == ()
    assert trio.do("a", SettleOffer(8, (), marked=True)).is_done
    assert trio.record("a", id_of(keys[0])).flags & MAYBE_SENT
    assert sorted(due(trio.spools["a"])) == sorted(keys)


def test_a_giver_that_counts_from_below_is_told_what_is_closed(trio: Trio) -> None:
    keys = accept(trio.spools["a"], batch(letters=[letter(n) for n in range(2)]))
    assert trio.take(trio.offer(spans_of(keys[:1]), 900)).verdict.closed == 900
    below = trio.offer(spans_of(keys[1:]), 8)
    verdict = trio.take(below).verdict
    assert (verdict.taken, verdict.closed) == ((), 900)
    trio.do("a", SettleOffer(8, ()))
    again = trio.offer(spans_of(keys[1:]), verdict.closed + 1)
    assert trio.take(again).verdict.taken == again.spans


def test_an_offer_to_another_disk_is_not_taken(trio: Trio) -> None:
    keys = accept(trio.spools["a"], batch())
    offer = trio.offer(spans_of(keys))
    decided = trio.take(replace(offer, disk=b"the disk before"))
    assert (decided.verdict.taken, decided.verdict.disk) == ((), trio.disks["b"])


def test_what_is_known_here_already_is_not_taken(trio: Trio) -> None:
    """A giver that began anew on an empty disk gives old ids again: they stand for other messages."""
    first = accept(trio.spools["a"], batch(letters=[letter(1)]))
    trio.take(trio.offer(spans_of(first)))
    trio.spools["a"].close()
    (trio.path / "a").rename(trio.path / "gone")
    trio.open("a")
    again = accept(trio.spools["a"], batch(letters=[letter(2), letter(3)]))
    decided = trio.take(trio.offer(spans_of(again), 9))
    assert decided.verdict.taken == spans_of(again[1:])
    assert trio.do("a", SettleOffer(9, decided.verdict.taken)).due_keys == again[:1]
    assert trio.body("a", id_of(again[0])) == letter(2)
    assert trio.body("b", id_of(first[0])) == letter(1)


def test_a_third_region_is_asked_what_it_has_and_says_nothing_while_it_gives_it_away(trio: Trio) -> None:
    keys = accept(trio.spools["a"], batch(letters=[letter(n) for n in range(2)]))
    offer = trio.offer(spans_of(keys))
    trio.take(offer)
    question = Decide(Recall("c", 0, 3, offer.spans, True), True)
    assert trio.do("b", question).verdict.taken == offer.spans
    assert trio.do("c", question).verdict.taken == ()
    onward = trio.offer(spans_of(keys), 1, giver="b", taker="c")
    assert trio.do("b", question) is None
    trio.take(onward, "c")
    trio.do("b", SettleOffer(1, onward.spans))
    assert trio.do("b", question).verdict.taken == ()
    trio.do("a", SettleOffer(7, offer.spans))


def test_a_superseded_giver_is_not_answered(trio: Trio) -> None:
    keys = accept(trio.spools["a"], batch())
    offer = trio.offer(spans_of(keys))
    trio.spools["b"].failover(SaveEpoch(1), NUMBERS).result(PATIENCE_S)
    trio.spools["b"].failover(Adopt("a", 5, 1), NUMBERS).result(PATIENCE_S)
    assert trio.do("b", Decide(replace(offer, epoch=4), True)) is None
    assert trio.do("b", Decide(replace(offer, epoch=5), True)).verdict.taken == offer.spans
    trio.do("a", SettleOffer(7, offer.spans))


def test_a_taker_that_returns_keeps_what_is_offered_to_it_and_ends_the_decision_without_it(
    trio: Trio,
) -> None:
    keys = accept(trio.spools["a"], batch(letters=[letter(n) for n in range(2)]))
    offer = trio.offer(spans_of(keys[:1]))
    giver = trio.spools["a"]
    giver.failover(SaveEpoch(1), NUMBERS).result(PATIENCE_S)
    giver.failover(SaveClean(1, 0), NUMBERS).result(PATIENCE_S)
    without = SettleOffer(7, (), marked=True, dead=("b", 5))
    assert not trio.do("a", without).is_done  # not called dead under that epoch, as far as this disk knows
    giver.failover(Adopt("b", 5, 1), NUMBERS).result(PATIENCE_S)
    inspected = giver.failover(Inspect("b", 5, 1, spans_of(keys)), NUMBERS).result(PATIENCE_S)
    assert inspected.mine == spans_of(keys[1:])
    assert not trio.do("a", without).is_done
    giver.failover(Adopt("b", 6, 1), NUMBERS).result(PATIENCE_S)
    assert trio.do("a", replace(without, dead=("b", 6))).due_keys == keys[:1]
    assert offer.spans == spans_of(keys[:1])


def test_keys_and_parts_are_known_where_they_were_accepted_or_handed_over(trio: Trio) -> None:
    giver = trio.spools["a"]
    keys = accept(giver, batch(KEY, letters=[letter(1)], keys=["one"]))
    number = giver.put_campaign(CAMPAIGN).result(PATIENCE_S)
    giver.accept_chunk(chunk(number, 4)).result(PATIENCE_S)
    row = number.to_bytes(4, "big") + (4).to_bytes(4, "big")
    assert trio.do("a", Knows(KEY))
    assert trio.do("a", Knows(chunk=row))
    assert not trio.do("b", Knows(KEY))
    assert not trio.do("a", Knows(bytes(16), bytes(8)))
    payload, following = giver.exporter().keys(b"")
    assert following == b""
    trio.do("b", KeepKeys(payload))
    trio.do("b", KeepKeys(payload))
    again = trio.spools["b"].accept(batch(KEY)).result(PATIENCE_S)
    assert (again.repeated, [list(ids) for ids in again.ids]) == (True, [[id_of(keys[0])]])
    by_item = trio.spools["b"].accept(batch(letters=[letter(1)], keys=["one"])).result(PATIENCE_S)
    assert [list(ids) for ids in by_item.ids] == [[id_of(keys[0])]]


def test_what_is_settled_in_the_same_commit_is_not_claimed_from_the_taker(tmp_path: Path) -> None:
    """The taker returns and asks while its word is being written down here: it must not give up what it has taken."""
    trio = Trio(tmp_path)
    keys = accept(trio.spools["a"], batch(letters=[letter(n) for n in range(2)]))
    offer = trio.offer(spans_of(keys[:1]))
    trio.spools["a"].close()
    gate = Gate()
    giver = trio.spools["a"] = open_spool(tmp_path / "a", region=NUMBERS["a"], step=gate)
    _, asked = as_one_group(
        giver,
        gate,
        lambda: giver.hand_over(SettleOffer(7, offer.spans), NUMBERS),
        lambda: giver.failover(Inspect("b", 5, 1, spans_of(keys)), NUMBERS),
    )
    assert asked.result(PATIENCE_S).mine == spans_of(keys[1:])
    for spool in trio.spools.values():
        spool.close()


def test_an_old_copy_is_not_taken_for_a_message_that_did_not_come_along(trio: Trio) -> None:
    keys = accept(trio.spools["a"], batch(letters=[letter(n) for n in range(2)]))
    _, copy = trio.spools["a"].exporter().messages(spans_of(keys), [])
    trio.spools["b"].failover(Apply("a", 0, 1, 0, Copy(spans_of(keys), copy)), NUMBERS).result(PATIENCE_S)
    offer = trio.offer(spans_of(keys))
    _, payload = trio.spools["a"].exporter().messages(spans_of(keys[:1]), [])
    decided = trio.take(replace(offer, payload=payload))
    assert decided.verdict.taken == spans_of(keys[:1])
    assert trio.do("a", SettleOffer(7, decided.verdict.taken)).due_keys == keys[1:]
