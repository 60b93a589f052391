"""A return with more messages than one slot is long enough for: each attempt goes on where the one before was."""

from engine.failover.effects import Effect, Send, Write
from engine.failover.link import Link
from engine.failover.messages import Ask, Beat, Hello, RegionView, Standby, Standing, Told, Welcome
from engine.failover.region import RegionMachine
from engine.failover.spans import intersect, union
from engine.failover.store import (
    Adopt,
    Adopted,
    Durable,
    GiveUp,
    Mark,
    Operation,
    Queued,
    SaveClean,
    TakeQueued,
)
from engine.failover.timing import MS, Timing
from tests.support.failover_store import ADOPTED_AT_ONCE, LISTED_AT_ONCE, Disk

RETURNING, LIVE, DEAD = Standing.RETURNING, Standing.LIVE, Standing.DEAD
A, B, C = RegionView("a", LIVE, 4), RegionView("b", RETURNING, 5), RegionView("c", LIVE, 1)
PART = 1000
COUNT = 10 * PART


def returning() -> RegionMachine:
    durable = Durable(epoch=5, first=2, lived=3, standby="c")
    return RegionMachine(
        "b", ("a", "c"), durable=durable, incarnation=1, now=0, timing=Timing(), accept_local=False
    )


def writes(effects: list[Effect]) -> list[Operation]:
    return [e.operation for e in effects if isinstance(e, Write)]


def asks(effects: list[Effect]) -> list[Ask]:
    return [e.message for e in effects if isinstance(e, Send) and isinstance(e.message, Ask)]


class Attempt:
    """Slots of one region, each so long that its store gets `limit` operations done."""

    def __init__(self, limit: int) -> None:
        self.region = returning()
        self.limit = limit
        self.number = 0
        self.done: list[Operation] = []
        self.asked: list[Ask] = []

    def slot(self, *view: RegionView) -> bool:
        """Whether it has returned in it."""
        self.number += 1
        now = self.number * 3000 * MS
        effects = self.region.receive("", Beat(1, 2 * self.number, 1, 5, now, True, view or (A, B, C)), now)
        for _ in range(self.limit):
            while asked := asks(effects):
                self.asked.append(asked[0])
                effects = [e for e in effects if isinstance(e, Write)]
                for peer in ("a", "c"):
                    mine = intersect(asked[0].queued, ((1, 4 * PART),)) if peer == "a" else ()
                    told = Told(asked[0].nonce, mine, 0, Standby.DROP, 4)
                    effects += self.region.receive(peer, told, now)
            if not writes(effects):
                break
            (operation,) = writes(effects)
            self.done.append(operation)
            effects = self.region.committed(operation, self._result(operation), now)
        lapsed = now + 1000 * MS
        self.region.receive("", Beat(1, 2 * self.number + 1, 1, 5, -1, False, (A, B, C)), lapsed)
        for operation in writes(effects):  # it was on its way when the slot ended
            self.done.append(operation)
            assert not writes(self.region.committed(operation, self._result(operation), lapsed))
        return self.region.clean

    def _result(self, operation: Operation) -> object:
        if not isinstance(operation, TakeQueued):
            return None
        first = operation.after + 1 if operation.after >= 0 else 1
        last = first + PART - 1
        return Queued(((first, PART),), last if last < COUNT else -1)

    def of(self, kind: type) -> list[Operation]:
        return [operation for operation in self.done if isinstance(operation, kind)]


def test_the_last_of_many_attempts_ends_and_does_nothing_twice() -> None:
    attempt = Attempt(limit=3)
    slots = 0
    while not attempt.slot():
        slots += 1
        assert slots < 30
    assert slots >= 5
    for kind in (TakeQueued, Mark, GiveUp):
        repeated = attempt.of(kind)
        # one may have been on its way when the slot ended
        assert len(repeated) <= COUNT // PART + slots, kind
    marked = [span for operation in attempt.of(Mark) for span in operation.spans]
    assert union(marked) == ((4 * PART + 1, COUNT - 4 * PART),)
    given = [span for operation in attempt.of(GiveUp) for span in operation.spans]
    assert union(given) == ((1, 4 * PART),)
    assert isinstance(attempt.done[-1], SaveClean)


def test_what_is_listed_is_asked_for_and_what_was_given_up_is_not_asked_for_again() -> None:
    attempt = Attempt(limit=COUNT // PART + 1)
    assert not attempt.slot()
    assert attempt.asked[0].queued == ((1, COUNT),)
    assert attempt.of(GiveUp)
    assert attempt.slot()
    assert attempt.asked[1].queued == ((4 * PART + 1, COUNT - 4 * PART),)


def test_what_is_adopted_behind_the_listing_is_asked_for() -> None:
    """The ids of another region may lie before those that were listed already."""
    attempt = Attempt(limit=2)
    attempt.slot()
    attempt.limit = 100
    now = 9000 * MS
    dead = RegionView("a", DEAD, 6)
    effects = attempt.region.receive("", Beat(1, 50, 1, 5, now, True, (dead, B, C)), now)
    (adopt,) = writes(effects)
    assert isinstance(adopt, Adopt)
    effects = attempt.region.committed(adopt, Adopted(((0, 1),)), now)
    while not asks(effects):
        (operation,) = writes(effects)
        assert isinstance(operation, TakeQueued)
        effects = attempt.region.committed(operation, attempt._result(operation), now)
    assert asks(effects)[0].queued == ((0, COUNT + 1),)


def test_what_was_given_up_and_adopted_again_is_asked_for() -> None:
    attempt = Attempt(limit=COUNT // PART + 1)
    assert not attempt.slot()
    attempt.limit = 100
    now = 9000 * MS
    dead = RegionView("a", DEAD, 6)
    effects = attempt.region.receive("", Beat(1, 50, 1, 5, now, True, (dead, B, C)), now)
    (adopt,) = writes(effects)
    effects = attempt.region.committed(adopt, Adopted(((7, 2),)), now)
    (ask,) = asks(effects)
    assert ask.queued == ((7, 2), (4 * PART + 1, COUNT - 4 * PART))


def test_a_long_question_is_not_repeated_all_the_time() -> None:
    """It takes both sides longer than that to carry it and to answer it."""
    for gaps, least, most in ((10, 8, 14), (100_000, 1, 3)):
        region = returning()
        beat = Beat(1, 1, 1, 5, 900 * MS, True, (A, B, C))
        (listing,) = writes(region.receive("", beat, 900 * MS))
        effects = region.committed(listing, Queued(tuple((2 * n, 1) for n in range(gaps))), 900 * MS)
        count = len(asks(effects))
        for number in range(2, 40):
            now = (850 + 50 * number) * MS
            beat = Beat(1, number, 1, 5, now, True, (A, B, C))
            count += len(asks(region.receive("", beat, now)))
        assert 2 * least <= count <= 2 * most, gaps  # two peers


def test_marks_are_made_anew_when_somebody_was_live_meanwhile() -> None:
    """What was due too late to be marked then may have been sent by that one since."""
    attempt = Attempt(limit=COUNT // PART + 6)
    attempt.slot()
    assert len(attempt.of(Mark)) == 3
    attempt.limit = 2
    attempt.slot(A, B, RegionView("c", LIVE, 7))
    assert not attempt.region.clean
    assert len(attempt.of(Mark)) == 6


def test_a_session_compares_with_all_parts_of_the_listing() -> None:
    region = RegionMachine(
        "c",
        ("a", "b"),
        durable=Durable(epoch=3, first=3, clean=True, standby="b"),
        incarnation=1,
        now=0,
        timing=Timing(),
        accept_local=False,
    )
    view = tuple(RegionView(name, LIVE, 3) for name in "abc")
    effects = region.receive("", Beat(1, 1, 1, 3, 900 * MS, False, view), 900 * MS)
    assert any(isinstance(e, Send) and isinstance(e.message, Hello) for e in effects)
    (part,) = writes(region.receive("b", Welcome(region.link.session, ((1, 3), (50, 1))), 910 * MS))
    assert part == TakeQueued(False, region.link.session)
    (part,) = writes(region.committed(part, Queued(((1, 2),), 2), 920 * MS))
    assert part == TakeQueued(False, region.link.session, 2)
    region.committed(part, Queued(((60, 4),)), 930 * MS)
    assert region.link.lag() == 4
    assert region.link._window[0].entry.spans == ((3, 1), (50, 1))


def test_what_was_adopted_with_its_key_is_sent_in_each_session() -> None:
    """The standby has the messages, perhaps from the one who died, and not the key, which goes with them only."""
    link = Link(Timing(), life=1)
    link.connect("b", 3, 0)
    link.welcomed("b", Welcome(link.session, ((1, 4),)), 10 * MS)
    listing = TakeQueued(False, link.session)
    assert link.gathered(listing, Queued(((1, 1),), 1, ((1, 1),)))[0] is None
    queued, _ = link.gathered(listing, Queued(((2, 2),), with_keys=((3, 1),)))
    assert queued == ((1, 3),)
    assert link.listed(listing, queued, [], 20 * MS)
    assert link._window[0].entry.spans == ((4, 1),)
    (export,) = link.pump(20 * MS)[-1:]
    (export,) = link.exported(export, (), b"", b"", 20 * MS)
    assert export.spans == ((1, 1), (3, 1))


def test_the_store_of_the_simulation_lists_and_drops_in_parts() -> None:
    disk = Disk("a", 1, {"a": 1, "b": 2})
    for id_ in range(3 * LISTED_AT_ONCE):
        disk.owned[id_] = None  # type: ignore[assignment]
        disk.copies.setdefault("b", {})[id_] = 0
    found, operation = 0, TakeQueued(True, 0)
    for _ in range(3):
        part = disk._queued(operation)
        found += sum(count for _, count in part.spans)
        operation = TakeQueued(True, 0, part.last)
    assert (found, part.last) == (3 * LISTED_AT_ONCE, -1)
    drops = 1
    while disk._drop_copies("b"):
        drops += 1
    assert drops == -(-3 * LISTED_AT_ONCE // ADOPTED_AT_ONCE)
