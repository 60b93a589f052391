"""A shard whose copies are elsewhere takes a sibling as its standby again, when nothing can be lost or sent by two."""

from typing import Any

import pytest

from engine.failover.effects import Effect, Export, Send, Write
from engine.failover.link import Link
from engine.failover.messages import (
    Ack,
    Ask,
    Beat,
    Copy,
    Data,
    Drop,
    Hello,
    RegionView,
    Standby,
    Standing,
    Told,
    Welcome,
)
from engine.failover.region import RegionMachine
from engine.failover.spans import Spans
from engine.failover.store import (
    Accept,
    Durable,
    Inspect,
    Inspected,
    IsEmpty,
    Operation,
    Queued,
    SaveStandby,
    TakeQueued,
)
from engine.failover.timing import MS, Timing

LIVE, DEAD = Standing.LIVE, Standing.DEAD
MESSAGES: Spans = ((1 << 48, 3),)


class Shard:
    """eu-1, whose standby is us although eu-2 lives; its store and both peers are played by the test."""

    def __init__(self) -> None:
        self.machine = RegionMachine(
            "eu-1",
            ("eu-2", "us"),
            durable=Durable(epoch=3, first=3, clean=True, standby="us"),
            incarnation=1,
            now=0,
            timing=Timing(),
            accept_local=False,
            siblings=("eu-2",),
        )
        self.now = 0

    def beat(self, *, sibling: Standing = LIVE, us_epoch: int = 3) -> list[Effect]:
        self.now += 100 * MS
        view = (
            RegionView("eu-1", LIVE, 3),
            RegionView("eu-2", sibling, 4),
            RegionView("us", LIVE, us_epoch),
        )
        return self.machine.receive("", Beat(1, self.now, 1, 3, self.now, False, view), self.now)

    def session(self, effects: list[Effect], copies: Spans = (), queued: Spans = ()) -> list[Effect]:
        """Its standby answers the greeting among the effects, and its own store says what is queued."""
        (to, hello) = next(
            (e.to, e.message) for e in effects if isinstance(e, Send) and isinstance(e.message, Hello)
        )
        effects = self.machine.receive(to, Welcome(hello.session, copies), self.now)
        (listing,) = writes(effects)
        assert isinstance(listing, TakeQueued)
        return self.machine.committed(listing, Queued(queued), self.now)

    def settle_in(self, effects: list[Effect]) -> None:
        """The keys are copied and acknowledged: the link is idle."""
        (export,) = [e for e in effects if isinstance(e, Export)]
        self.machine.exported(export, (), b"keys", b"", self.now)
        link = self.machine.link
        self.machine.receive(link.peer, Ack(link.session, 1), self.now)
        assert link.is_idle()

    def asks_itself(self) -> IsEmpty:
        """Ready to move: it looks whether it owns anything."""
        self.settle_in(self.session(self.beat()))
        (look,) = writes(self.beat())
        assert isinstance(look, IsEmpty)
        return look


def writes(effects: list[Effect]) -> list[Operation]:
    return [e.operation for e in effects if isinstance(e, Write)]


def greeted(effects: list[Effect]) -> list[str]:
    return [e.to for e in effects if isinstance(e, Send) and isinstance(e.message, Hello)]


def test_an_empty_shard_moves_its_copies_to_a_sibling() -> None:
    shard = Shard()
    again = shard.machine.committed(shard.asks_itself(), True, shard.now)
    assert greeted(again) == ["us"]
    effects = shard.session(again)
    assert writes(effects) == [SaveStandby("eu-2", only_if_empty=True)]
    assert shard.machine.link.peer == ""
    assert not shard.machine.is_covered(shard.now)
    assert writes(shard.beat()) == []
    effects = shard.machine.committed(writes(effects)[0], True, shard.now)
    assert (shard.machine.standby_name, greeted(effects)) == ("eu-2", ["eu-2"])
    shard.settle_in(shard.session(effects))
    for _ in range(20):
        assert writes(shard.beat()) == []


def test_what_is_owned_by_then_stays_with_the_standby_that_has_its_copies() -> None:
    shard = Shard()
    effects = shard.session(shard.machine.committed(shard.asks_itself(), True, shard.now))
    effects = shard.machine.committed(writes(effects)[0], False, shard.now)
    assert (shard.machine.standby_name, greeted(effects)) == ("us", ["us"])
    shard.settle_in(shard.session(effects, queued=()))
    assert shard.machine.is_covered(shard.now)


def test_a_shard_that_owns_something_is_not_disturbed() -> None:
    shard = Shard()
    assert shard.machine.committed(shard.asks_itself(), False, shard.now) == []
    assert shard.machine.is_covered(shard.now)
    looks = [look for _ in range(9) for look in writes(shard.beat())]
    assert looks == []  # once a second is enough
    assert any(isinstance(look, IsEmpty) for _ in range(3) for look in writes(shard.beat()))


@pytest.mark.parametrize(("copies", "queued"), [(MESSAGES, ()), ((), MESSAGES), (MESSAGES, MESSAGES)])
def test_not_while_either_side_has_a_message(copies: Spans, queued: Spans) -> None:
    shard = Shard()
    effects = shard.session(shard.machine.committed(shard.asks_itself(), True, shard.now), copies, queued)
    assert writes(effects) == []
    assert shard.machine.link.peer == "us"


def test_not_while_a_batch_waits_for_its_copy() -> None:
    shard = Shard()
    look = shard.asks_itself()
    again = shard.machine.committed(look, True, shard.now)
    shard.machine.acceptance._unsafe[b"k" * 16] = MESSAGES
    assert writes(shard.session(again)) == []


def test_not_to_one_that_has_died_meanwhile() -> None:
    shard = Shard()
    again = shard.machine.committed(shard.asks_itself(), True, shard.now)
    shard.beat(sibling=DEAD)
    assert not any(isinstance(o, SaveStandby) for o in writes(shard.session(again)))


def test_not_from_a_standby_that_returns_and_was_told_to_keep_the_copies() -> None:
    shard = Shard()
    shard.settle_in(shard.session(shard.beat()))
    asked = shard.machine.receive("us", Ask(5, 1, (), False, 3, ()), shard.now)
    (inspect,) = [o for o in writes(asked) if isinstance(o, Inspect)]
    shard.machine.committed(inspect, Inspected((), 0), shard.now)
    later = shard.machine.tick(shard.now + 200 * MS)  # it may not know the session of before
    shard.settle_in(shard.session(later))
    assert not any(isinstance(o, IsEmpty) for _ in range(30) for o in writes(shard.beat(us_epoch=4)))
    assert any(isinstance(o, IsEmpty) for _ in range(30) for o in writes(shard.beat(us_epoch=5)))


def test_without_a_sibling_nothing_is_looked_for() -> None:
    shard = Shard()
    shard.settle_in(shard.session(shard.beat(sibling=DEAD)))
    assert not any(
        isinstance(o, IsEmpty | Accept) for _ in range(30) for o in writes(shard.beat(sibling=DEAD))
    )


def test_what_changed_and_was_settled_between_two_sessions_is_dropped_there() -> None:
    link = Link(Timing(), life=1)
    link.connect("b", 1, 0)
    link.changed([7])  # no session: what the standby has of it is out of date

    def open_(copies: Spans, queued: Spans) -> list[Any]:
        (write,) = link.welcomed("b", Welcome(link.session, copies), 0)
        assert isinstance(write, Write)
        assert isinstance(write.operation, TakeQueued)
        assert link.listed(write.operation, queued, [], 0)
        return [e.message.entry for e in link.pump(0) if isinstance(e, Send) and isinstance(e.message, Data)]

    assert open_(((7, 2),), ((8, 1),)) == [Drop(((7, 1),))]
    assert not any(isinstance(sent.entry, Copy) for sent in link._window)


def test_who_has_no_standby_left_takes_the_one_that_returns() -> None:
    """Else each waits for the other until the dead one is back."""
    region = RegionMachine(
        "us",
        ("ap", "eu"),
        durable=Durable(epoch=3, first=3, clean=True, standby="ap", fences=(("ap", 5),)),
        incarnation=1,
        now=0,
        timing=Timing(),
        accept_local=False,
    )
    view = (
        RegionView("ap", DEAD, 5),
        RegionView("eu", Standing.RETURNING, 6),
        RegionView("us", LIVE, 3),
    )
    region.receive("", Beat(1, 1, 1, 3, 900 * MS, False, view), 900 * MS)

    def asks() -> tuple[list[Operation], Standby]:
        (inspect,) = writes(region.receive("eu", Ask(6, 1, (), dead=(("ap", 5),)), 950 * MS))
        assert isinstance(inspect, Inspect)
        effects = region.committed(inspect, Inspected((), 0), 960 * MS)
        (told,) = [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Told)]
        return writes(effects), told.standby

    (save,), verdict = asks()
    assert (save, verdict) == (SaveStandby("eu"), Standby.WAIT)
    effects = region.committed(save, True, 970 * MS)
    assert greeted(effects) == ["eu"]
    assert asks() == ([], Standby.KEEP)
