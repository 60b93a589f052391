"""The keys that come with a copy: whose word counts, and when."""

import errno
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import pytest

from engine.failover.messages import Copy, Drop
from engine.failover.spans import Spans
from engine.failover.store import (
    Abandon,
    Accept,
    Accepted,
    Adopt,
    Apply,
    DropCopies,
    GiveUp,
    LookUp,
    OpenSession,
    Queued,
    SaveEpoch,
    TakeQueued,
)
from engine.spool.accepting import KEY_TTL_MS, key_digest
from engine.spool.batches import AcceptBatch
from engine.spool.errors import SpoolError
from engine.spool.handover import KeepKeys
from engine.spool.records import pack
from engine.spool.store import Spool
from tests.support.spools import settlement
from tests.unit.spool.test_standby import KEY, NUMBERS, Pair, batch

ITEM_KEY = "order-1"
NOT_KNOWN = Accepted((), hearsay=True)


def keyed() -> AcceptBatch:
    """A batch of one message that has a key of its own."""
    plain = batch(KEY, count=1)
    return replace(plain, items=[plain.items[0]._replace(key=ITEM_KEY, tenant="t")])


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[Pair]:
    """Region b has the copy of a batch whose owner, a, has given no receipt yet."""
    pair = Pair(tmp_path)
    yield pair
    pair.close()


@pytest.fixture
def spans(pair: Pair) -> Spans:
    accepted, _ = pair.do("a", Accept(KEY, keyed()))
    digest = key_digest("t", ITEM_KEY)
    found, payload = pair.spools["a"].exporter().messages(accepted.spans, [KEY, digest])
    pair.do("b", OpenSession("a", 1, 1))
    assert pair.do("b", Apply("a", 1, 1, 0, Copy(found, payload, KEY))) == ""
    spans: Spans = accepted.spans
    return spans


def look_up(pair: Pair, asker: str = "") -> Any:
    return pair.do("b", LookUp(KEY, asker, 1))


def accept(pair: Pair) -> Any:
    accepted, _ = pair.do("b", Accept(KEY, keyed()))
    return accepted


def is_item_known(pair: Pair) -> bool:
    with pair.spools["b"]._env.read() as txn:
        return txn.get(key_digest("t", ITEM_KEY), db=pair.spools["b"]._env.db["keys"]) is not None


def test_it_is_told_to_its_owner_only_and_accepted_by_nobody(pair: Pair, spans: Spans) -> None:
    assert look_up(pair) is None
    assert look_up(pair, "b") is None
    assert look_up(pair, "a") == Accepted(spans, known=True)
    assert accept(pair) == NOT_KNOWN
    assert is_item_known(pair)
    pair.assert_clean()


def test_it_is_known_when_its_owner_knows_that_the_copy_is_safe(pair: Pair, spans: Spans) -> None:
    pair.do("b", Apply("a", 1, 1, 1, Drop(spans), (KEY,)))
    assert look_up(pair) == accept(pair) == Accepted(spans, known=True)


def test_it_is_known_when_it_comes_with_all_keys_in_a_new_session(pair: Pair, spans: Spans) -> None:
    """Those of batches without a receipt are not among them."""
    payload, _ = pair.spools["a"].exporter().keys(b"")
    pair.do("b", Apply("a", 1, 2, 0, Copy((), payload)))
    assert look_up(pair) is None
    pair.do("a", SaveEpoch(1))
    with pair.spools["a"]._env.write() as txn:
        txn.delete(KEY, db=pair.spools["a"]._env.db["unsafe"])
    payload, _ = pair.spools["a"].exporter().keys(b"")
    pair.do("b", Apply("a", 1, 2, 1, Copy((), payload)))
    assert look_up(pair) == accept(pair) == Accepted(spans, known=True)


def test_who_adopts_the_messages_knows_their_keys(pair: Pair, spans: Spans) -> None:
    assert pair.do("b", Adopt("a", 2, 3)).spans == spans
    assert look_up(pair) == accept(pair) == Accepted(spans, known=True)
    assert is_item_known(pair)
    pair.assert_clean()


def test_also_of_those_that_the_owner_has_sent_in_a_session_that_has_not_brought_its_keys_yet(
    pair: Pair, spans: Spans
) -> None:
    pair.do("b", OpenSession("a", 1, 2))
    pair.do("b", Apply("a", 1, 2, 0, Drop(spans)))
    assert pair.do("b", Adopt("a", 2, 3)).spans == ()
    assert look_up(pair) == accept(pair) == Accepted(spans, known=True)
    assert is_item_known(pair)


def test_the_owner_says_what_a_key_stands_for(pair: Pair, spans: Spans) -> None:
    """It has abandoned its own batch meanwhile, because another region has it."""
    instead: Spans = ((7 << 48, 1),)
    pair.do("a", Abandon(KEY, spans, instead))
    payload, _ = pair.spools["a"].exporter().keys(b"")
    pair.do("b", Apply("a", 1, 2, 0, Copy((), payload)))
    assert look_up(pair) == accept(pair) == Accepted(instead, known=True)


def test_who_hands_messages_over_vouches_for_their_keys(pair: Pair, spans: Spans) -> None:
    _, payload = pair.spools["a"].exporter().messages(spans, [KEY, key_digest("t", ITEM_KEY)])
    pair.spools["b"].hand_over(KeepKeys(payload), NUMBERS).result(10)
    pair.do("b", DropCopies("a"))
    assert look_up(pair) == Accepted(spans, known=True)
    assert is_item_known(pair)


def test_it_is_in_hand_no_longer_than_a_key_is_known(pair: Pair, spans: Spans) -> None:
    pair.clock.step_wall(KEY_TTL_MS / 1000 + 1)
    accepted, _ = pair.do("b", Accept(KEY, batch(KEY)))
    assert not accepted.known
    assert accepted.spans


def test_they_are_forgotten_with_the_copies(pair: Pair, spans: Spans) -> None:
    """Nobody but the owner has the messages then."""
    assert not pair.do("b", DropCopies("a"))
    assert look_up(pair) is None
    assert not is_item_known(pair)
    accepted = accept(pair)
    assert not accepted.known
    assert accepted.spans != spans
    pair.assert_clean()


def test_what_is_confirmed_is_not_forgotten_with_the_copies(pair: Pair, spans: Spans) -> None:
    pair.do("b", Apply("a", 1, 1, 1, Drop(()), (KEY,)))
    pair.do("b", DropCopies("a"))
    assert look_up(pair) == Accepted(spans, known=True)
    assert is_item_known(pair)


def test_a_copy_that_comes_twice_is_forgotten_whole(pair: Pair, spans: Spans) -> None:
    found, payload = pair.spools["a"].exporter().messages(spans, [KEY, key_digest("t", ITEM_KEY)])
    pair.do("b", Apply("a", 1, 2, 0, Copy(found, payload, KEY)))
    pair.do("b", DropCopies("a"))
    assert not is_item_known(pair)


def test_a_copy_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    pair = Pair(tmp_path)
    found, payload = pair.spools["a"].exporter().messages(pair.accept(), [KEY])
    pair.do("b", OpenSession("a", 1, 1))
    segment = pair.spools["b"]._segment

    def refuse(blob: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    append, segment.append = segment.append, refuse
    with pytest.raises(SpoolError):
        pair.do("b", Apply("a", 1, 1, 0, Copy(found, payload, KEY)))
    segment.append = append
    assert pair.do("b", LookUp(KEY, "a", 1)) is None
    assert pair.do("b", Adopt("a", 9, 3)).spans == ()
    assert look_up(pair) is None
    pair.close()


def test_the_key_of_a_message_vouches_for_nothing_without_its_batch(tmp_path: Path) -> None:
    """It came among all keys, and its owner's disk was lost before there was a copy."""
    pair = Pair(tmp_path)
    pair.do("a", Accept(KEY, keyed()))
    payload, _ = pair.spools["a"].exporter().keys(b"")
    pair.do("b", OpenSession("a", 1, 1))
    pair.do("b", Apply("a", 1, 1, 0, Copy((), payload)))
    pair.do("b", Adopt("a", 9, 3))
    accepted, result = pair.do("b", Accept(KEY, keyed()))
    assert not accepted.known
    assert len(result.due_keys) == 1
    pair.close()


def test_it_outlives_a_restart(pair: Pair, spans: Spans) -> None:
    pair.spools["b"].close()
    pair.open("b")
    assert look_up(pair) is None
    assert look_up(pair, "a") == Accepted(spans, known=True)


def test_copies_of_a_live_owner_are_not_adopted_under_the_fence_in_which_it_has_returned(pair: Pair) -> None:
    """It was called dead here, and has returned while this region was away itself: it has not asked here."""
    pair.do("b", Adopt("a", 2, 3))
    pair.do("a", SaveEpoch(2))
    accepted, _ = pair.do("a", Accept(KEY, keyed()))
    found, payload = pair.spools["a"].exporter().messages(accepted.spans, [KEY])
    assert pair.do("b", OpenSession("a", 2, 1)) == ()
    assert pair.do("b", Apply("a", 2, 1, 0, Copy(found, payload, KEY))) == ""
    assert pair.do("b", Adopt("a", 2, 3)).spans == ()
    assert pair.do("b", Adopt("a", 3, 3)).spans == accepted.spans


def test_what_is_given_up_again_is_known_no_more(pair: Pair, spans: Spans) -> None:
    """Its owner may have given no receipt, and would be the only one that has it."""
    pair.do("b", Adopt("a", 2, 3))
    pair.do("b", DropCopies("a"))
    assert look_up(pair) == Accepted(spans, known=True)
    assert is_item_known(pair)
    pair.do("b", GiveUp(spans, "a"))
    assert look_up(pair) is None
    assert not is_item_known(pair)
    assert not accept(pair).known
    pair.assert_clean()


def test_what_is_given_up_to_who_has_adopted_it_too_stays_known(pair: Pair, spans: Spans) -> None:
    """That one had the messages from here, without their keys; of the owner, its receipt and its disk nobody knows."""
    pair.do("b", Adopt("a", 2, 3))
    pair.do("b", GiveUp(spans, "c"))
    assert look_up(pair) == Accepted(spans, known=True)
    pair.assert_clean()


def at_c(pair: Pair, number: int, spans: Spans, keys: list[bytes]) -> None:
    """Region b copies on to its own standby, c."""
    found, payload = pair.spools["b"].exporter().messages(spans, keys)
    pair.do("c", OpenSession("b", 3, number))
    assert pair.do("c", Apply("b", 3, number, 0, Copy(found, payload))) == ""


def known_at_c(pair: Pair) -> Any:
    return pair.do("c", LookUp(KEY, "", 1))


def keys_of(pair: Pair) -> list[bytes]:
    """All keys that b tells its standby."""
    payload, cursor = pair.spools["b"].exporter().keys(b"")
    assert cursor == b""
    return [key for key, _ in msgpack.unpackb(payload)[0]]


def test_an_adopted_key_goes_on_with_its_messages_and_is_hearsay_there(pair: Pair, spans: Spans) -> None:
    pair.do("b", Adopt("a", 2, 3))
    assert keys_of(pair) == []  # neither the batch's nor its message's
    at_c(pair, 1, spans, [])
    assert known_at_c(pair) is None
    assert pair.do("c", LookUp(KEY, "b", 1)) == Accepted(spans, known=True)
    assert pair.do("c", Adopt("b", 4, 0)).spans == spans
    assert known_at_c(pair) == Accepted(spans, known=True)
    pair.assert_clean()


def test_the_listing_for_a_session_names_the_messages_of_adopted_keys(pair: Pair, spans: Spans) -> None:
    pair.do("b", Adopt("a", 2, 3))
    assert pair.do("b", TakeQueued(False, 1)) == Queued(spans, with_keys=spans)
    pair.spools["b"].settle([settlement(key) for key in pair.spools["b"].exporter().due_keys(spans)]).result(
        10
    )
    assert pair.do("b", TakeQueued(False, 1)) == Queued(())


@pytest.mark.parametrize("to", ["a", "b"])
def test_there_it_is_forgotten_if_it_goes_back_to_who_may_have_given_no_receipt(
    pair: Pair, spans: Spans, to: str
) -> None:
    pair.do("b", Adopt("a", 2, 3))
    at_c(pair, 1, spans, [])
    pair.do("c", Adopt("b", 4, 0))
    pair.do("c", GiveUp(spans, to))
    assert known_at_c(pair) is None


def test_what_was_adopted_comes_among_all_keys_once_it_has_been_sent(pair: Pair, spans: Spans) -> None:
    pair.do("b", Adopt("a", 2, 3))
    assert keys_of(pair) == []
    due = pair.spools["b"].exporter().due_keys(spans)
    pair.spools["b"].settle([settlement(key) for key in due]).result(10)
    assert set(keys_of(pair)) == {KEY, key_digest("t", ITEM_KEY)}


def test_a_copy_without_adopted_keys_is_written_as_before(pair: Pair, spans: Spans) -> None:
    """Also when there are such keys: a region of an earlier release understands it."""
    payload = pair.spools["a"].exporter().messages(spans, [KEY])[1]
    assert len(msgpack.unpackb(payload)) == 4
    pair.do("b", Adopt("a", 2, 3))
    own, _ = pair.do("b", Accept(b"o" * 16, batch(b"o" * 16, count=1)))
    assert len(msgpack.unpackb(pair.spools["b"].exporter().messages(own.spans, [])[1])) == 4
    assert len(msgpack.unpackb(pair.spools["b"].exporter().messages(spans, [])[1])) == 5


def test_a_late_greeting_of_an_earlier_life_does_not_make_the_session_older(pair: Pair) -> None:
    pair.do("b", OpenSession("a", 4, 2))
    pair.do("b", OpenSession("a", 3, 1))
    assert dict(pair.spools["b"].durable(NUMBERS).held)["a"] == 4


def test_but_what_has_been_sent_here_in_part_is(pair: Pair) -> None:
    accepted, _ = pair.do("a", Accept(KEY, batch(KEY, count=3)))
    found, payload = pair.spools["a"].exporter().messages(accepted.spans, [KEY])
    pair.do("b", OpenSession("a", 1, 1))
    pair.do("b", Apply("a", 1, 1, 0, Copy(found, payload, KEY)))
    pair.do("b", Adopt("a", 2, 3))
    ((first, _),) = accepted.spans
    pair.do("b", GiveUp(((first + 1, 2),), "a"))
    assert look_up(pair) == Accepted(accepted.spans, known=True)


def test_a_key_that_stands_for_another_batch_by_then_stays_known(pair: Pair, spans: Spans) -> None:
    """Who handed that one over to this region vouches for it."""
    instead: Spans = ((7 << 48, 1),)
    with pair.spools["b"]._env.write() as txn:
        txn.put(KEY, (1 << 40).to_bytes(6, "big") + pack(instead), db=pair.spools["b"]._env.db["keys"])
    pair.do("b", Adopt("a", 2, 3))
    pair.do("b", GiveUp(spans, "a"))
    assert look_up(pair) == Accepted(instead, known=True)


def test_rows_go_with_an_adoption_after_the_keys_have_expired(pair: Pair, spans: Spans) -> None:
    spool = pair.spools["b"]
    pair.do("b", Adopt("a", 2, 3))
    assert rows_of(spool) == 1
    pair.clock.step_wall(KEY_TTL_MS / 1000 + 1)
    pair.do("b", Adopt("a", 3, 3))
    assert rows_of(spool) == 0


def rows_of(spool: Spool) -> int:
    with spool._env.read() as txn:
        return int(txn.stat(spool._env.db["hearsay"])["entries"])
