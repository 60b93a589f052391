"""A region under load: what is repeated costs its disk nothing, and being slow is not being dead."""

import itertools

from engine.failover.effects import Effect, Send, Write
from engine.failover.messages import (
    Ask,
    Beat,
    BeatReply,
    Claim,
    ClaimReply,
    Hello,
    Known,
    RegionView,
    Standing,
)
from engine.failover.region import RegionMachine
from engine.failover.store import Accept, Accepted, Durable, Inspect, LookUp, OpenSession, Operation
from engine.failover.timing import MS, Timing

DURABLE = Durable(epoch=3, first=3, clean=True, standby="b")
VIEW = tuple(RegionView(name, Standing.LIVE, 3) for name in "abc")
KEY = b"k" * 16


def live(now: int, *, accept_local: bool = False) -> RegionMachine:
    """It has run long enough not to ask others about new batches."""
    timing = Timing()
    region = RegionMachine(
        "c",
        ("a", "b"),
        durable=DURABLE,
        incarnation=1,
        now=-timing.late,
        timing=timing,
        accept_local=accept_local,
    )
    assert answers(region, now)
    return region


def answers(region: RegionMachine, now: int) -> bool:
    """Whether it answers a beat."""
    effects = region.receive("", Beat(1, now, 1, 3, now, False, VIEW), now)
    return any(isinstance(e, Send) and isinstance(e.message, BeatReply) for e in effects)


def writes(effects: list[Effect], kind: type) -> list[Operation]:
    return [e.operation for e in effects if isinstance(e, Write) and isinstance(e.operation, kind)]


def test_a_question_that_is_repeated_goes_to_the_disk_once_until_it_is_answered() -> None:
    questions = (
        (Claim(5, KEY, ()), LookUp, None),
        (Ask(3, 9, ((7, 20),)), Inspect, None),
        (Hello(3, 8), OpenSession, None),
    )
    for question, kind, result in questions:
        region = live(1000 * MS)
        asked = [
            operation
            for n in range(50)
            for operation in writes(region.receive("a", question, (1001 + n) * MS), kind)
        ]
        assert len(asked) == 1, kind
        region.committed(asked[0], result, 1100 * MS)
        assert len(writes(region.receive("a", question, 1101 * MS), kind)) == 1, kind


def test_other_questions_are_asked_meanwhile() -> None:
    region = live(1000 * MS)
    for number in range(5):
        assert len(writes(region.receive("a", Claim(number, KEY, ()), 1001 * MS), LookUp)) == 1
        assert len(writes(region.receive("b", Claim(number, KEY, ()), 1001 * MS), LookUp)) == 1


def test_an_enquiry_is_repeated_with_less_and_less_haste() -> None:
    timing = Timing()
    region = live(1000 * MS)
    region.submit(1, KEY, "batch", 1000 * MS, again=True)
    at = [
        now
        for now in range(1000, 11_000, 50)
        for effect in region.tick(now * MS)
        if isinstance(effect, Send) and effect.to == "a" and isinstance(effect.message, Claim)
    ]
    assert at[0] * MS <= 1000 * MS + 2 * timing.resend
    assert len(at) < 12
    assert max(b - a for a, b in itertools.pairwise(at)) * MS <= timing.patient + 50 * MS


def test_a_disk_that_gets_on_is_not_stalled_however_long_each_has_to_wait() -> None:
    region = live(1000 * MS, accept_local=True)
    batches = []
    for n in range(8):
        effects = region.submit(n, bytes([n]) * 16, "batch", 1000 * MS)
        batches += writes(effects, Accept)
    assert len(batches) == 8
    for n, batch in enumerate(batches):  # one after the other, the last after 4 s
        now = (1500 + 500 * n) * MS
        assert answers(region, now)
        region.committed(batch, Accepted(((7 + n, 1),)), now)
    assert answers(region, 6000 * MS)


def test_a_disk_that_does_nothing_is_stalled() -> None:
    region = live(1000 * MS, accept_local=True)
    batches = []
    for n in range(2):
        batches += writes(region.submit(n, bytes([n]) * 16, "batch", 1000 * MS), Accept)
    region.committed(batches[0], Accepted(((7, 1),)), 1500 * MS)
    assert answers(region, 1500 * MS + Timing().stall)
    assert not answers(region, 1501 * MS + Timing().stall)
    region.committed(batches[1], Accepted(((8, 1),)), 2600 * MS)
    assert answers(region, 2601 * MS)


def test_the_answer_to_a_repeated_claim_is_that_to_the_first() -> None:
    region = live(1000 * MS)
    (look,) = writes(region.receive("a", Claim(5, KEY, ()), 1001 * MS), LookUp)
    assert not writes(region.receive("a", Claim(5, KEY, ()), 1151 * MS), LookUp)
    effects = region.committed(look, Accepted(((7, 2),), known=True), 1200 * MS)
    assert effects == [Send("a", ClaimReply(5, KEY, Known.YES, ((7, 2),)))]
