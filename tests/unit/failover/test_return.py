"""A region that returns, and one that is asked meanwhile: who may hold a dead region's messages, and who asked whom."""

from engine.failover.acceptance import UNCERTAIN
from engine.failover.effects import Answer, Effect, Export, Send, Write
from engine.failover.messages import (
    Ack,
    Ask,
    Beat,
    BeatReply,
    Claim,
    ClaimReply,
    Hello,
    Known,
    RegionView,
    Standby,
    Standing,
    Told,
    Welcome,
)
from engine.failover.region import RegionMachine
from engine.failover.store import (
    Accepted,
    Adopt,
    Adopted,
    Durable,
    GiveUp,
    Inspect,
    Inspected,
    LookUp,
    Mark,
    OpenSession,
    Operation,
    Queued,
    SaveClean,
    SaveEpoch,
    SaveStandby,
    SaveUnasked,
)
from engine.failover.timing import MS, Timing

NUMBERS = {"a": 1, "b": 2, "c": 3}
LIVE, DEAD, RETURNING = Standing.LIVE, Standing.DEAD, Standing.RETURNING
DURABLE = Durable(epoch=3, first=3, clean=True, standby="b")


def machine(
    name: str = "c", *, durable: Durable = DURABLE, peers: tuple[str, ...] = ("a", "b")
) -> RegionMachine:
    return RegionMachine(
        name, peers, durable=durable, incarnation=1, now=0, timing=Timing(), accept_local=False
    )


def beat(region: RegionMachine, now: int, *view: RegionView) -> list[Effect]:
    """A lease from now on, and what Fleet sees."""
    own = RegionView(region.name, LIVE, region.epoch)
    message = Beat(1, now, 1, region.epoch, now, False, (*view, own))
    return region.receive("", message, now)


def writes(effects: list[Effect]) -> list[Operation]:
    return [e.operation for e in effects if isinstance(e, Write)]


def sent(effects: list[Effect], kind: type) -> list[object]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


def cleared(region: RegionMachine, effects: list[Effect], now: int) -> list[Operation]:
    """Do what the return asks of the disk, one after the other, until the region is to be clean."""
    done = writes(effects)
    while not isinstance(done[-1], SaveClean):
        done += writes(region.committed(done[-1], None, now))
    return done


A_DEAD, B_RETURNS = RegionView("a", DEAD, 5), RegionView("b", RETURNING, 4)


def test_what_is_held_of_a_dead_region_is_adopted_before_a_returning_one_gets_its_answer() -> None:
    c = machine()
    beat(c, 1000 * MS)  # the view does not tell yet that a is dead: b knows it first
    ask = Ask(4, 1, ((7, 1),), dead=(("a", 5),))
    effects = c.receive("b", ask, 1010 * MS)
    (adopt,) = writes(effects)
    assert adopt == Adopt("a", 5, 3)
    assert writes(c.receive("b", ask, 1160 * MS)) == []  # it asks again while that is on its way to the disk
    c.committed(adopt, Adopted(()), 1170 * MS)
    (inspect,) = writes(c.receive("b", ask, 1310 * MS))
    assert isinstance(inspect, Inspect)
    (told,) = sent(c.committed(inspect, Inspected((), 0), 1320 * MS), Told)
    assert isinstance(told, Told)
    assert told.standby is Standby.KEEP


def test_what_an_earlier_fleet_has_ordered_is_not_done_once_a_new_one_was_answered() -> None:
    """It was told that nobody is fenced here, and may give the region a lease that the one before had called dead."""
    c = machine()
    c.lease.give("a", 1000 * MS)  # so its death waits
    assert writes(beat(c, 1000 * MS, A_DEAD, RegionView("b", LIVE, 4))) == []
    (reply,) = sent(c.receive("", Beat(2, 1, 1, 0, -1, False, (), 5), 1100 * MS), BeatReply)
    assert isinstance(reply, BeatReply)
    assert reply.fences == ()
    claim = Claim(1, b"k" * 16, dead=(("a", 5),))  # of the earlier Fleet's view
    late = 9000 * MS
    assert writes(c.receive("", Beat(2, 2, 1, 0, -1, False, (), 5), late)) == []
    assert c.receive("b", claim, late) == []
    view = (RegionView("a", LIVE, 1), RegionView("b", LIVE, 4), RegionView("c", LIVE, 3))
    c.receive("", Beat(2, 3, 1, 3, late, False, view, 5), late)
    assert c.receive("b", claim, late) == []
    assert writes(c.receive("b", Claim(2, b"k" * 16, dead=(("a", 6),)), late)) == [Adopt("a", 6, 3)]


def test_a_returning_region_waits_while_the_asked_one_has_promised_a_dead_one_to_adopt_nothing() -> None:
    c = machine()
    beat(c, 1000 * MS)
    c.lease.give("a", 1000 * MS)
    ask = Ask(4, 1, ((7, 1),), dead=(("a", 5),))
    assert c.receive("b", ask, 1010 * MS) == []
    beat(c, 1800 * MS)
    assert writes(c.receive("b", ask, 1810 * MS)) == [Adopt("a", 5, 3)]


def test_a_returning_region_says_whom_it_does_not_ask() -> None:
    b = machine("b", durable=Durable(epoch=4, first=2, standby="c"), peers=("a", "c"))
    message = Beat(1, 1, 1, 4, 900 * MS, True, (A_DEAD, B_RETURNS, RegionView("c", LIVE, 3)))
    (adopt,) = writes(b.receive("", message, 900 * MS))
    (listing,) = writes(b.committed(adopt, Adopted(()), 901 * MS))
    (ask,) = sent(b.committed(listing, Queued(((7, 1),)), 902 * MS), Ask)
    assert isinstance(ask, Ask)
    assert ask.dead == (("a", 5),)


def test_of_two_dead_regions_none_is_adopted_from_while_one_holds_a_promise() -> None:
    """Or the adoption that was begun is forgotten, and no question is answered any more."""
    c = machine(peers=("a", "b", "d"))
    beat(c, 1000 * MS)
    c.lease.give("b", 1000 * MS)
    claim = Claim(1, b"k" * 16, dead=(("a", 5), ("b", 6)))
    assert c.receive("d", claim, 1010 * MS) == []
    assert not c.standby.is_adopting()
    beat(c, 1800 * MS)
    adoptions = writes(c.receive("d", claim, 1810 * MS))
    assert adoptions == [Adopt("a", 5, 3), Adopt("b", 6, 3)]
    for adoption in adoptions:
        c.committed(adoption, Adopted(()), 1820 * MS)
    assert writes(c.receive("d", claim, 1830 * MS))  # it looks for the key now


def test_after_a_restart_a_region_that_had_asked_counts_as_one_that_may_be_live() -> None:
    """It may have returned since; so it is asked who has a batch, although the view says that it is on its way."""
    asked = Durable(epoch=3, first=3, clean=True, standby="a", asked=(("b", 4),))
    for durable, is_asked in ((asked, True), (DURABLE, False)):
        c = machine(durable=durable)
        beat(c, 1000 * MS, RegionView("a", LIVE, 1), B_RETURNS)
        effects = c.submit(1, b"k" * 16, "batch", 1010 * MS, again=True)
        peers = [e.to for e in effects if isinstance(e, Send) and isinstance(e.message, Claim)]
        assert ("b" in peers) is is_asked


def test_after_a_restart_a_standby_that_may_have_been_told_to_keep_its_copies_stays_the_standby() -> None:
    asked = Durable(epoch=3, first=3, clean=True, standby="b", asked=(("b", 4),))
    for durable, stays in ((asked, True), (DURABLE, False)):
        c = machine(durable=durable)
        effects = beat(c, 1000 * MS, RegionView("a", LIVE, 1), B_RETURNS)
        assert (writes(effects) == []) is stays
    c = machine(durable=asked)
    assert writes(beat(c, 1000 * MS, RegionView("a", LIVE, 1), RegionView("b", DEAD, 6)))  # dead again since


NEW_DISK = Durable(epoch=3, first=3, clean=True, standby="a", unasked=(("b", 4),))


def test_a_region_on_a_new_disk_that_could_not_ask_all_takes_no_batch_that_may_be_elsewhere() -> None:
    """Its own receipts of before may be on the disk of the one it could not ask."""
    c = machine(durable=NEW_DISK)
    (adopt,) = writes(beat(c, 1000 * MS, RegionView("a", LIVE, 1), RegionView("b", DEAD, 4)))
    c.committed(adopt, Adopted(()), 1005 * MS)
    key = b"k" * 16
    (lookup,) = writes(c.submit(1, key, "batch", 1010 * MS, again=True))
    assert c.committed(lookup, None, 1012 * MS) == [Answer(1, (), UNCERTAIN)]
    (lookup,) = writes(c.receive("a", Claim(1, key, dead=(("b", 4),)), 1010 * MS))
    (reply,) = sent(c.committed(lookup, None, 1020 * MS), ClaimReply)
    assert reply == ClaimReply(1, key, Known.PENDING)
    c.receive("b", Ask(4, 1, ()), 1100 * MS)  # it is on its way back, and not all know that
    (lookup,) = writes(c.receive("a", Claim(3, key, dead=()), 1105 * MS))[-1:]
    (reply,) = sent(c.committed(lookup, None, 1106 * MS), ClaimReply)
    assert reply == ClaimReply(3, key, Known.PENDING)
    beat(c, 1107 * MS, RegionView("a", LIVE, 1), RegionView("b", LIVE, 4))  # it has returned: it is asked
    (lookup,) = writes(c.receive("a", Claim(2, key, dead=()), 1110 * MS))[-1:]
    (reply,) = sent(c.committed(lookup, None, 1120 * MS), ClaimReply)
    assert reply == ClaimReply(2, key, Known.NO)
    assert c.submit(2, key, "batch", 1130 * MS, again=True) != [Write(LookUp(key, "", 0))]


def test_nor_if_that_one_dies_again_before_its_standby_knows_what_it_knows() -> None:
    """As long as it lives it is asked, whether or not that is so."""
    c = machine(durable=NEW_DISK)
    (inspect,) = writes(c.receive("b", Ask(4, 1, ()), 900 * MS))
    c.committed(inspect, Inspected((), 0), 910 * MS)
    key = b"k" * 16
    beat(c, 1000 * MS, RegionView("a", LIVE, 1), RegionView("b", LIVE, 4, covered=False))
    (lookup,) = writes(c.receive("a", Claim(2, key, dead=()), 1010 * MS))[-1:]
    (reply,) = sent(c.committed(lookup, None, 1020 * MS), ClaimReply)
    assert reply == ClaimReply(2, key, Known.NO)
    (adopt,) = writes(beat(c, 1100 * MS, RegionView("a", LIVE, 1), RegionView("b", DEAD, 5)))
    c.committed(adopt, Adopted(()), 1105 * MS)
    (lookup,) = writes(c.submit(1, key, "batch", 1110 * MS, again=True))
    assert c.committed(lookup, None, 1112 * MS) == [Answer(1, (), UNCERTAIN)]
    (lookup,) = writes(c.submit(1, key, "batch", 1115 * MS, again=True))
    (answer,) = c.committed(lookup, Accepted(((1, 1),), known=True), 1117 * MS)
    assert (answer.spans, answer.repeated) == (((1, 1),), True), "what it knows itself is sure"
    beat(c, 3000 * MS, RegionView("a", LIVE, 1), RegionView("b", LIVE, 5, covered=False))
    assert writes(beat(c, 3100 * MS, RegionView("a", LIVE, 1), RegionView("b", LIVE, 5))) == [SaveUnasked(())]
    (adopt,) = writes(beat(c, 3200 * MS, RegionView("a", LIVE, 1), RegionView("b", DEAD, 6)))
    c.committed(adopt, Adopted(()), 3205 * MS)
    assert c.submit(2, key, "batch", 3210 * MS, again=True) != [Write(LookUp(key, "", 0))]


def test_a_new_batch_with_a_safe_copy_is_not_degraded_because_an_older_one_may_be_elsewhere() -> None:
    c = machine(durable=NEW_DISK)
    beat(c, 3000 * MS, RegionView("a", LIVE, 1), RegionView("b", RETURNING, 4))
    (listing,) = writes(c.receive("a", Welcome(c.link._session, ()), 3010 * MS))
    (keys,) = c.committed(listing, Queued(()), 3020 * MS)
    assert isinstance(keys, Export)
    c.exported(keys, (), b"", b"", 3020 * MS)
    (accept,) = writes(c.submit(1, b"k" * 16, "batch", 3030 * MS))
    (export,) = c.committed(accept, Accepted(((7, 1),)), 3040 * MS)
    assert isinstance(export, Export)
    c.exported(export, export.spans, b"x", b"", 3040 * MS)
    (release,) = writes(c.receive("a", Ack(c.link._session, 1), 3050 * MS))
    effects = c.committed(release, None, 3060 * MS)
    assert [e for e in effects if isinstance(e, Answer)] == [Answer(1, ((7, 1),))]


def test_a_slot_ends_with_the_fleet_that_gave_it() -> None:
    """A new Fleet, once it has heard all, may let another return."""
    b = machine("b", durable=Durable(epoch=4, first=2, standby="c"), peers=("a", "c"))
    view = (RegionView("a", LIVE, 1), B_RETURNS, RegionView("c", LIVE, 3))
    (listing,) = writes(b.receive("", Beat(1, 1, 1, 4, 900 * MS, True, view), 900 * MS))
    asks = sent(b.committed(listing, Queued(()), 902 * MS), Ask)
    assert len(asks) == 2
    assert sent(b.receive("", Beat(2, 1, 1, 0, -1, False, ()), 910 * MS), BeatReply)
    for peer in ("a", "c"):
        assert isinstance(asks[0], Ask)
        assert b.receive(peer, Told(asks[0].nonce, (), 0, Standby.DROP, 1), 920 * MS) == []
    assert not b.clean


def test_what_a_region_with_a_new_disk_may_have_sent_is_marked() -> None:
    """It may have adopted and sent these messages, and lost the disk that said so before the asker was back."""
    for first, is_marked in ((2, False), (3, False), (4, True)):
        b = machine("b", durable=Durable(epoch=5, first=2, lived=3, standby="c"), peers=("a", "c"))
        view = (RegionView("a", LIVE, 4), RegionView("b", RETURNING, 5), RegionView("c", LIVE, 1))
        (listing,) = writes(b.receive("", Beat(1, 1, 1, 5, 900 * MS, True, view), 900 * MS))
        (ask, _) = sent(b.committed(listing, Queued(((7, 3),)), 902 * MS), Ask)
        assert isinstance(ask, Ask)
        b.receive("c", Told(ask.nonce, ((8, 1),), 0, Standby.DROP, 1), 910 * MS)
        effects = b.receive("a", Told(ask.nonce, (), 0, Standby.DROP, first), 910 * MS)
        operations = cleared(b, effects, 910 * MS)
        assert (Mark(((7, 1), (9, 1))) in operations) is is_marked
        assert operations[-1] == SaveClean(5, 0, ())


def test_what_was_accepted_alone_may_have_been_accepted_elsewhere_since_and_is_marked() -> None:
    for accept_local in (False, True):
        b = RegionMachine(
            "b",
            ("a", "c"),
            durable=Durable(epoch=5, first=2, lived=3, standby="c"),
            incarnation=1,
            now=0,
            timing=Timing(),
            accept_local=accept_local,
        )
        view = (RegionView("a", LIVE, 4), RegionView("b", RETURNING, 5), RegionView("c", LIVE, 1))
        (listing,) = writes(b.receive("", Beat(1, 1, 1, 5, 900 * MS, True, view), 900 * MS))
        (ask, _) = sent(b.committed(listing, Queued(((7, 3),)), 902 * MS), Ask)
        assert isinstance(ask, Ask)
        b.receive("c", Told(ask.nonce, ((8, 1),), 0, Standby.DROP, 1), 910 * MS)
        effects = b.receive("a", Told(ask.nonce, (), 0, Standby.DROP, 1), 910 * MS)
        assert (Mark(((7, 1), (9, 1))) in cleared(b, effects, 910 * MS)) is accept_local


def test_a_return_with_many_messages_answers_the_beats_between_its_pieces() -> None:
    """Or Fleet calls it dead before it is done, each time again."""
    b = machine("b", durable=Durable(epoch=5, first=2, lived=3, standby="c"), peers=("a", "c"))
    view = (RegionView("a", DEAD, 4), RegionView("b", RETURNING, 5), RegionView("c", LIVE, 1))
    effects = b.receive("", Beat(1, 1, 1, 5, 900 * MS, True, view), 900 * MS)
    (adopt,) = writes(effects)
    (listing,) = writes(b.committed(adopt, Adopted(()), 901 * MS))
    (ask,) = sent(b.committed(listing, Queued(((7, 10_000),)), 902 * MS), Ask)
    assert isinstance(ask, Ask)
    (operation,) = writes(b.receive("c", Told(ask.nonce, (), 0, Standby.KEEP, 1), 910 * MS))
    now = 910 * MS
    for number in range(2, 7):
        assert isinstance(operation, Mark)
        now += 400 * MS  # each takes that long
        assert sent(b.receive("", Beat(1, number, 1, 5, now, True, view), now), BeatReply)
        (operation,) = writes(b.committed(operation, None, now))
    assert isinstance(operation, SaveClean)


def test_what_is_given_up_stays_as_a_copy_where_its_owner_has_its_standby_here() -> None:
    b = machine("b", durable=Durable(epoch=5, first=2, lived=3, standby="c"), peers=("a", "c"))
    view = (RegionView("a", LIVE, 1), RegionView("b", RETURNING, 5), RegionView("c", LIVE, 1))
    (listing,) = writes(b.receive("", Beat(1, 1, 1, 5, 900 * MS, True, view), 900 * MS))
    (ask, _) = sent(b.committed(listing, Queued(((7, 3),)), 902 * MS), Ask)
    assert isinstance(ask, Ask)
    b.receive("c", Told(ask.nonce, ((8, 1),), 0, Standby.DROP, 1), 910 * MS)
    effects = b.receive("a", Told(ask.nonce, ((7, 1),), 0, Standby.KEEP, 1), 910 * MS)
    operations = cleared(b, effects, 910 * MS)
    assert [o for o in operations if isinstance(o, GiveUp)] == [
        GiveUp(((8, 1),), "c"),
        GiveUp(((7, 1),), "a", is_standby=True),
    ]


def test_another_standby_is_taken_when_the_death_of_the_one_before_is_on_disk() -> None:
    """A Fleet that starts now may call it live: then a peer must know better."""
    c = machine()
    (adopt,) = writes(beat(c, 1000 * MS, RegionView("a", LIVE, 1), RegionView("b", DEAD, 4)))
    assert adopt == Adopt("b", 4, 3)
    assert writes(c.committed(adopt, Adopted((), more=True), 1010 * MS)) == [adopt, SaveStandby("a")]
    c = machine()
    c.lease.give("b", 1000 * MS)  # it may go on: so its death waits
    assert writes(beat(c, 1000 * MS, RegionView("a", LIVE, 1), RegionView("b", DEAD, 4))) == []


def test_an_adoption_that_a_new_epoch_has_overtaken_is_begun_again() -> None:
    c = machine(durable=Durable(epoch=3, first=3, clean=True, standby="a"))
    view = (RegionView("a", LIVE, 1), RegionView("b", DEAD, 4))
    (adopt,) = writes(beat(c, 1000 * MS, *view))
    (save,) = writes(c.receive("", Beat(1, 1010 * MS, 1, 6, -1, False, view), 1010 * MS))
    c.committed(save, None, 1020 * MS)
    assert c.committed(adopt, Adopted(()), 1020 * MS) == []
    (again,) = writes(c.receive("", Beat(1, 1100 * MS, 1, 6, 1100 * MS, True, view), 1100 * MS))
    assert again == Adopt("b", 4, 6)


def test_who_has_returned_is_not_adopted_from_because_an_old_question_calls_it_dead() -> None:
    c = machine()
    beat(c, 1000 * MS, RegionView("a", LIVE, 1), RegionView("b", LIVE, 4))
    claim = Claim(1, b"k" * 16, dead=(("b", 4),))
    assert writes(c.receive("a", claim, 1010 * MS)) == [LookUp(b"k" * 16, "a", 1)]


def test_a_region_that_asks_all_the_others_later_is_sure_again() -> None:
    durable = Durable(epoch=5, first=3, clean=False, standby="a", unasked=(("b", 4),))
    c = machine(durable=durable)
    view = (RegionView("a", LIVE, 1), RegionView("b", LIVE, 4), RegionView("c", RETURNING, 5))
    saved, listing = writes(c.receive("", Beat(1, 1, 1, 5, 900 * MS, True, view), 900 * MS))
    assert saved == SaveUnasked(())
    (ask, _) = sent(c.committed(listing, Queued(()), 902 * MS), Ask)
    assert isinstance(ask, Ask)
    c.receive("a", Told(ask.nonce, (), 0, Standby.DROP, 1), 910 * MS)
    *_, clean = cleared(c, c.receive("b", Told(ask.nonce, (), 0, Standby.DROP, 1), 910 * MS), 910 * MS)
    assert clean == SaveClean(5, 0, ())


def test_a_region_says_nothing_to_fleet_while_its_new_epoch_is_not_on_disk() -> None:
    """It is not live any more; after a restart in that moment it would be, in the epoch of before."""
    c = machine()
    view = (RegionView("a", LIVE, 1), RegionView("b", LIVE, 4), RegionView("c", RETURNING, 5))
    effects = c.receive("", Beat(1, 1, 1, 5, -1, False, view), 900 * MS)
    assert writes(effects) == [SaveEpoch(5)]
    assert sent(effects, BeatReply) == []
    assert sent(c.receive("", Beat(1, 2, 1, 5, -1, False, view), 1000 * MS), BeatReply) == []
    c.committed(SaveEpoch(5), None, 1050 * MS)
    (reply,) = sent(c.receive("", Beat(1, 3, 1, 5, -1, False, view), 1100 * MS), BeatReply)
    assert isinstance(reply, BeatReply)
    assert (reply.epoch, reply.clean) == (5, False)


def test_a_new_disk_takes_no_copies_of_one_that_fleet_calls_dead() -> None:
    """It may go on without having heard so, and the fence was on the disk that is lost."""
    b = machine("b", durable=Durable(epoch=4), peers=("a", "c"))
    assert b.receive("a", Hello(3, 1), 800 * MS) == []  # nothing was heard of Fleet yet
    view = (A_DEAD, B_RETURNS, RegionView("c", LIVE, 3))
    b.receive("", Beat(1, 1, 1, 4, -1, False, view), 900 * MS)
    assert b.receive("a", Hello(3, 1), 950 * MS) == []
    assert writes(b.receive("a", Hello(5, 2), 950 * MS)) == [OpenSession("a", 5, 2)]
    assert writes(b.receive("c", Hello(3, 1), 950 * MS)) == [OpenSession("c", 3, 1)]
