"""Receipts that are asked for again: whether what they stand for is on two disks by now."""

import pytest

from engine.failover.acceptance import AWAY_REFUSAL, IN_HAND
from engine.failover.effects import Answer, Effect, Export, Forget, Ready, Send, Write
from engine.failover.messages import (
    Ack,
    Ask,
    Beat,
    Claim,
    ClaimReply,
    Data,
    Drop,
    Known,
    RegionView,
    Standing,
    Welcome,
)
from engine.failover.region import RegionMachine
from engine.failover.spans import Spans
from engine.failover.store import (
    Abandon,
    Accept,
    Accepted,
    Adopt,
    Adopted,
    Durable,
    LookUp,
    Queued,
    Release,
    SaveEpoch,
)
from engine.failover.timing import MS, Timing

KEY = b"k" * 16
SPANS = ((7, 2),)


CLEAN = Durable(epoch=3, first=3, clean=True, standby="b")


def alone(
    *, accept_local: bool = True, durable: Durable = CLEAN, peers: tuple[str, ...] = ("a", "b")
) -> RegionMachine:
    """Region c, whose standby b is within Fleet's reach and has not answered yet."""
    region = RegionMachine(
        "c", peers, durable=durable, incarnation=1, now=0, timing=Timing(), accept_local=accept_local
    )
    view = tuple(RegionView(name, Standing.LIVE, 3) for name in "abc")
    region.receive("", Beat(1, 1, 1, 3, 2500 * MS, False, view), 2500 * MS)
    return region


def catch_up(region: RegionMachine) -> None:
    """The standby answers, and is given what it lacks."""
    (listing,) = region.receive("b", Welcome(region.link.session, ()), 2600 * MS)
    assert isinstance(listing, Write)
    effects = region.committed(listing.operation, Queued(SPANS), 2610 * MS)
    while effects and isinstance(effects[0], Export):
        effects = region.exported(effects[0], effects[0].spans, b"x", b"", 2620 * MS)
        sent = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Data)]
        effects = [e for e in effects if isinstance(e, Export)]
        for data in sent:
            region.receive("b", Ack(data.session, data.number + 1), 2630 * MS)


def again(region: RegionMachine) -> list[Effect]:
    (accept,) = region.submit(2, KEY, "batch", 2700 * MS)
    assert isinstance(accept, Write)
    assert isinstance(accept.operation, Accept)
    return region.committed(accept.operation, Accepted(SPANS, known=True), 2710 * MS)


def test_it_is_degraded_as_long_as_the_copy_may_be_missing() -> None:
    region = alone()
    assert again(region) == [Answer(2, SPANS, repeated=True, degraded=True)]
    catch_up(region)
    assert again(region) == [Answer(2, SPANS, repeated=True)]


@pytest.mark.parametrize("caught_up", [False, True])
def test_a_region_that_is_asked_for_a_key_tells_it(caught_up: bool) -> None:
    region = alone()
    if caught_up:
        catch_up(region)
    (look,) = region.receive("a", Claim(5, KEY, ()), 2700 * MS)
    assert isinstance(look, Write)
    assert isinstance(look.operation, LookUp)
    reply = ClaimReply(5, KEY, Known.YES, SPANS, not caught_up)
    assert region.committed(look.operation, Accepted(SPANS, known=True), 2710 * MS) == [Send("a", reply)]


def ask_others(region: RegionMachine) -> int:
    """Submit what another region may have accepted; the number of the enquiry."""
    claims = region.submit(2, KEY, "batch", 2700 * MS, again=True)
    (number,) = {e.message.number for e in claims if isinstance(e, Send) and isinstance(e.message, Claim)}
    return number


@pytest.mark.parametrize("alone_last", [True, False])
def test_of_two_regions_that_have_a_batch_the_one_with_a_copy_has_given_the_receipt(alone_last: bool) -> None:
    """The other may have died before it could give one."""
    region = alone()
    number = ask_others(region)
    replies = [
        ("a", ClaimReply(number, KEY, Known.YES, SPANS, alone=True)),
        ("b", ClaimReply(number, KEY, Known.YES, ((70, 2),))),
    ]
    effects = [
        region.receive(peer, reply, 2710 * MS) for peer, reply in (replies if alone_last else replies[::-1])
    ]
    assert [effect for several in effects for effect in several] == [Answer(2, ((70, 2),), repeated=True)]


def test_who_asks_others_hears_that_one_has_it_alone_when_nobody_else_has_it() -> None:
    region = alone()
    number = ask_others(region)
    assert region.receive("a", ClaimReply(number, KEY, Known.YES, SPANS, alone=True), 2710 * MS) == []
    effects = region.receive("b", ClaimReply(number, KEY, Known.NO), 2720 * MS)
    assert effects == [Answer(2, SPANS, repeated=True, degraded=True)]


def test_an_enquiry_is_not_decided_without_one_that_is_on_its_way_back() -> None:
    """It was away when the others were asked, and may be the only one to know the key."""
    region = alone()
    view = (
        RegionView("a", Standing.LIVE, 3),
        RegionView("b", Standing.DEAD, 4),
        RegionView("c", Standing.LIVE, 3),
    )
    effects = region.receive("", Beat(1, 2, 1, 3, 2600 * MS, False, view), 2600 * MS)
    (adopt,) = [e.operation for e in effects if isinstance(e, Write)]
    region.committed(adopt, Adopted(()), 2610 * MS)
    late = 6000 * MS  # what a client sent to b is not on its way any more
    region.receive("", Beat(1, 3, 1, 3, late, False, view), late)
    claims = [e for e in region.submit(2, KEY, "batch", late, again=True) if isinstance(e, Send)]
    assert [claim.to for claim in claims] == ["a"]
    assert isinstance(claims[0].message, Claim)
    region.receive("b", Ask(4, 1, ()), late)
    effects = region.receive("a", ClaimReply(claims[0].message.number, KEY, Known.NO), late)
    assert effects == [Answer(2, (), IN_HAND)]


@pytest.mark.parametrize(("accept_local", "unsafe"), [(True, ()), (False, SPANS)])
def test_a_batch_without_a_receipt_waits_while_two_who_may_have_it_are_away(
    accept_local: bool, unsafe: Spans
) -> None:
    """With `accept_local` it is taken without them; its receipt would be degraded."""
    durable = Durable(epoch=3, first=3, clean=True, standby="b", unsafe=((KEY, SPANS),))
    region = alone(accept_local=accept_local, durable=durable)
    view = (
        RegionView("a", Standing.DEAD, 4),
        RegionView("b", Standing.DEAD, 4),
        RegionView("c", Standing.LIVE, 3),
    )
    for number in range(2, 6):
        now = (4000 + 500 * number) * MS
        effects = [*region.receive("", Beat(1, number, 1, 3, now, False, view), now), *region.tick(now)]
        for effect in effects:
            if isinstance(effect, Write):
                region.committed(
                    effect.operation, Adopted(()) if isinstance(effect.operation, Adopt) else True, now
                )
    assert region.acceptance.unsafe() == unsafe
    assert region.acceptance.waiting() == []


def test_a_copy_stays_of_a_batch_whose_receipt_an_earlier_process_may_have_given() -> None:
    durable = Durable(epoch=3, first=3, clean=True, standby="b", unsafe=((KEY, SPANS),))
    region = alone(durable=durable)
    (listing,) = region.receive("b", Welcome(region.link.session, ((7, 2), (20, 1))), 2600 * MS)
    assert isinstance(listing, Write)
    effects = region.committed(listing.operation, Queued(()), 2610 * MS)
    dropped = [e.message.entry for e in effects if isinstance(e, Send) and isinstance(e.message, Data)]
    assert dropped == [Drop(((20, 1),))]


def test_the_copy_goes_when_another_region_has_the_batch_under_other_ids() -> None:
    durable = Durable(epoch=3, first=3, clean=True, standby="b", unsafe=((KEY, SPANS),))
    region = alone(durable=durable)
    catch_up(region)
    claims = [
        e.message for e in region.tick(2700 * MS) if isinstance(e, Send) and isinstance(e.message, Claim)
    ]
    number = claims[0].number
    region.receive("b", ClaimReply(number, KEY, Known.NO), 2710 * MS)
    effects = region.receive("a", ClaimReply(number, KEY, Known.YES, ((90, 2),)), 2710 * MS)
    assert Write(Abandon(KEY, SPANS, ((90, 2),))) in effects
    dropped = [
        e.message.entry
        for e in region.flush(2720 * MS)
        if isinstance(e, Send) and isinstance(e.message, Data)
    ]
    assert dropped == [Drop(SPANS)]


def test_where_nothing_is_accepted_alone_no_receipt_is_degraded() -> None:
    region = alone(accept_local=False)
    (look,) = region.submit(2, KEY, "batch", 2700 * MS)
    assert isinstance(look, Write)
    assert isinstance(look.operation, LookUp)
    effects = region.committed(look.operation, Accepted(SPANS, known=True), 2710 * MS)
    assert effects == [Answer(2, SPANS, repeated=True)]


def test_a_batch_that_two_may_have_who_were_away_when_it_was_asked_for_has_a_degraded_receipt() -> None:
    region = alone(peers=("a", "b", "d"))
    catch_up(region)
    view = (
        RegionView("a", Standing.RETURNING, 5),
        RegionView("b", Standing.LIVE, 3),
        RegionView("c", Standing.LIVE, 3),
        RegionView("d", Standing.DEAD, 6),
    )
    effects = region.receive("", Beat(1, 2, 1, 3, 2650 * MS, False, view), 2650 * MS)
    effects += region.submit(3, KEY, "batch", 2700 * MS, again=True)
    (claim,) = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Claim)]
    assert [name for name, _ in claim.dead] == ["a", "d"]
    for write in [e for e in effects if isinstance(e, Write) and isinstance(e.operation, Adopt)]:
        region.committed(write.operation, Adopted(()), 2700 * MS)
    effects = region.receive("b", ClaimReply(claim.number, KEY, Known.NO), 2720 * MS)
    (accept,) = [e.operation for e in effects if isinstance(e, Write) and isinstance(e.operation, Accept)]
    (export,) = region.committed(accept, Accepted(SPANS), 2730 * MS)
    assert isinstance(export, Export)
    (sent,) = region.exported(export, SPANS, b"x", b"", 2730 * MS)
    assert isinstance(sent, Send)
    assert isinstance(sent.message, Data)
    effects = region.receive("b", Ack(sent.message.session, sent.message.number + 1), 2740 * MS)
    assert Write(Release(KEY, SPANS)) in effects
    assert not any(isinstance(effect, Answer) for effect in effects)  # not before that is on disk
    answers = region.committed(Release(KEY, SPANS), None, 2750 * MS)
    assert answers == [Answer(3, SPANS, degraded=True), Ready(SPANS)]


def written_alone() -> tuple[RegionMachine, Accept]:
    """A region that may accept alone, and a batch on its way to the disk: the standby is out of reach."""
    region = alone()
    (write,) = region.submit(2, KEY, "batch", 2700 * MS)
    assert isinstance(write, Write)
    assert isinstance(write.operation, Accept)
    return region, write.operation


def test_what_is_accepted_alone_has_its_receipt_when_it_is_due_on_disk() -> None:
    region, accept = written_alone()
    release = Release(KEY, SPANS)
    assert region.committed(accept, Accepted(SPANS), 2710 * MS) == [Write(release)]
    assert region.submit(3, KEY, "batch", 2715 * MS) == []
    receipts = [Answer(2, SPANS, degraded=True), Answer(3, SPANS, repeated=True, degraded=True)]
    assert region.committed(release, None, 2720 * MS) == [*receipts, Ready(SPANS)]
    assert region.counters.degraded == 1


def test_one_whose_region_is_called_dead_just_then_is_asked_for_before_it_is_sent() -> None:
    region, accept = written_alone()
    region.committed(accept, Accepted(SPANS), 2710 * MS)
    effects = region.receive("", Beat(1, 2, 1, 4, -1, False, ()), 2715 * MS)
    assert Answer(2, (), AWAY_REFUSAL) in effects
    assert region.committed(Release(KEY, SPANS), None, 2720 * MS) == [Forget(SPANS)]
    assert region.acceptance.unsafe() == SPANS


def test_what_is_accepted_alone_while_the_standby_comes_back_waits_for_its_copy() -> None:
    """Its key comes with it: those that are listed just then are without it."""
    region, accept = written_alone()
    (listing,) = region.receive("b", Welcome(region.link.session, ()), 2705 * MS)
    assert isinstance(listing, Write)
    assert region.committed(accept, Accepted(SPANS), 2710 * MS) == []
    effects = region.committed(listing.operation, Queued(()), 2720 * MS)
    assert [(e.spans, e.key) for e in effects if isinstance(e, Export)] == [(SPANS, KEY)]


def test_what_was_accepted_alone_before_is_copied_then() -> None:
    region, accept = written_alone()
    region.committed(accept, Accepted(SPANS), 2702 * MS)
    (listing,) = region.receive("b", Welcome(region.link.session, ()), 2705 * MS)
    assert isinstance(listing, Write)
    effects = region.committed(listing.operation, Queued(SPANS), 2720 * MS)
    while effects and isinstance(effects[0], Export) and effects[0].keys:
        effects = region.exported(effects[0], (), b"", b"", 2720 * MS)
    assert [e.spans for e in effects if isinstance(e, Export)] == [SPANS]


def test_a_batch_that_was_written_alone_when_its_region_was_called_dead_is_asked_for_on_its_return() -> None:
    """Its client had no receipt, and may have given it to another region since."""
    region, accept = written_alone()
    effects = region.receive("", Beat(1, 2, 1, 4, -1, False, ()), 2705 * MS)
    assert Answer(2, (), AWAY_REFUSAL) in effects
    region.committed(SaveEpoch(4), None, 2708 * MS)
    assert region.committed(accept, Accepted(SPANS), 2710 * MS) == []
    assert region.acceptance.unsafe() == SPANS


def test_a_batch_that_is_in_hand_at_the_region_whose_copy_is_here_is_asked_for_again() -> None:
    region, accept = written_alone()
    assert region.committed(accept, Accepted((), hearsay=True), 2710 * MS) == [Answer(2, (), IN_HAND)]
    assert region.acceptance.unsafe() == ()


def test_who_asks_for_a_batch_of_before_a_restart_meanwhile_asks_again() -> None:
    """It is whole on the disk alone: a part of it may have been given up before."""
    region = alone(durable=Durable(epoch=3, first=3, clean=True, standby="b", unsafe=((KEY, SPANS),)))
    region.acceptance.vouched(SPANS, 2600 * MS)
    assert region.submit(4, KEY, "batch", 2700 * MS) == [Answer(4, (), IN_HAND)]
