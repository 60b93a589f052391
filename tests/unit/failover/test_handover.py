"""The hand-over protocol: random schedules of faults, and that a broken rule is found by them."""

from collections.abc import Callable

import pytest

from engine.failover import handover
from engine.failover.handover import (
    INQUIRE,
    LOOK_AGAIN,
    SILENCE,
    Ask,
    Book,
    Effect,
    Giver,
    Inquire,
    MakeOffer,
    Offer,
    Pick,
    Recall,
    SettleOffer,
    Terms,
    Verdict,
    Write,
)
from engine.failover.spans import Spans
from tests.simulation.handover import World

SEEDS = range(30)
SPANS: Spans = ((1, 10),)


def test_nothing_is_lost_or_sent_twice_without_a_mark() -> None:
    for seed in SEEDS:
        assert World(seed).run() == [], f"python -m tests.simulation.handover {seed}"


def silence_is_no(giver: Giver, peer: str, request: handover.Request, now: int) -> list[Effect]:
    """An offer that was not answered counts as not taken."""
    if isinstance(request, Offer):
        return giver.answered(peer, Verdict(request.number, request.disk, ()), now)
    return unanswered(giver, peer, request, now)


unanswered = Giver.unanswered


def another_disk_is_the_same(giver: Giver, peer: str, verdict: Verdict, now: int) -> list[Effect]:
    offer = giver._offers.get(verdict.number)
    return decided(
        giver, peer, verdict if offer is None else Verdict(verdict.number, offer.disk, verdict.taken), now
    )


decided = Giver._decided

MUTATIONS: dict[str, tuple[type, str, Callable[..., object]]] = {
    "silence is an answer": (Giver, "unanswered", silence_is_no),
    "a question closes nothing": (Book, "close", lambda book, number: book),
    "an offer may be taken again": (Book, "is_open", lambda book, number: True),
    "another disk's word counts": (Giver, "_decided", another_disk_is_the_same),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_rule_is_found(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    owner, method, broken = MUTATIONS[name]
    monkeypatch.setattr(owner, method, broken)
    assert any(World(seed).run() for seed in range(200))


class Driven:
    """A giver whose effects are looked at."""

    def __init__(self, *offers: MakeOffer) -> None:
        self.giver = Giver("a", ["b", "c"], offers=offers, number=7)
        self.giver.give(["b"], 0)

    def offered(self) -> None:
        """An offer of SPANS to b is on disk and has been sent."""
        assert self.giver.tick(0) == [Ask("b", Inquire("a"))]
        assert self.giver.answered("b", Terms(b"disk"), 1) == [Pick("b")]
        (write,) = self.giver.picked("b", SPANS, 2)
        assert write == Write(MakeOffer(8, "b", b"disk", SPANS))
        assert self.giver.written(write.operation, SPANS, 3) == [Ask("b", Offer("a", 0, 8, b"disk", SPANS))]


def test_an_offer_is_settled_by_the_takers_word_when_its_copies_are_safe() -> None:
    driven = Driven()
    driven.offered()
    assert driven.giver.answered("b", Verdict(8, b"disk", SPANS, is_safe=False), 4) == []
    (question,) = driven.giver.tick(handover.ASK_AGAIN + 4)
    assert question == Ask("b", Recall("a", 0, 8, SPANS))
    settle = driven.giver.answered("b", Verdict(8, b"disk", SPANS), handover.ASK_AGAIN + 5)
    assert settle == [Write(SettleOffer(8, SPANS))]
    assert Pick("b") in driven.giver.written(SettleOffer(8, SPANS), True, INQUIRE)
    assert driven.giver.counters.handed_over == 10


def test_without_an_answer_the_offer_is_asked_about_and_not_sent_again() -> None:
    driven = Driven()
    driven.offered()
    offer = Offer("a", 0, 8, b"disk", SPANS)
    assert driven.giver.unanswered("b", offer, 10) == []
    assert Ask("b", Recall("a", 0, 8, SPANS)) in driven.giver.tick(SILENCE + 10)
    assert driven.giver.open_offers() == {"b": 10}


def test_a_giver_that_starts_again_asks_about_what_is_on_its_disk() -> None:
    giver = Giver("a", ["b"], offers=[MakeOffer(5, "b", b"disk", SPANS)], number=7)
    assert giver.tick(0) == [Ask("b", Recall("a", 0, 5, SPANS))]


def test_when_the_draining_ends_what_is_on_its_way_is_called_back() -> None:
    driven = Driven()
    driven.offered()
    driven.giver.give([], 5)
    driven.giver.unanswered("b", Offer("a", 0, 8, b"disk", SPANS), 5)
    assert driven.giver.tick(SILENCE + 5) == [Ask("b", Recall("a", 0, 8, SPANS))]
    settle = driven.giver.answered("b", Verdict(8, b"disk", ()), SILENCE + 6)
    assert settle == [Write(SettleOffer(8, ()))]


def test_the_next_offer_has_a_number_that_the_taker_has_not_closed() -> None:
    """The giver has begun on a new disk, with its clock set back: the taker knows greater ones, from before."""
    driven = Driven()
    driven.offered()
    settle = driven.giver.answered("b", Verdict(8, b"disk", (), closed=900), 4)
    assert settle == [Write(SettleOffer(8, ()))]
    driven.giver.written(SettleOffer(8, ()), True, 5)
    assert driven.giver.picked("b", SPANS, LOOK_AGAIN) == [Write(MakeOffer(901, "b", b"disk", SPANS))]


def test_a_taker_on_another_disk_sends_the_giver_to_all_the_others() -> None:
    driven = Driven()
    driven.offered()
    assert driven.giver.answered("b", Verdict(8, b"new", ()), 4) == [Ask("c", Recall("a", 0, 8, SPANS, True))]
    assert driven.giver.answered("c", Verdict(8, b"c", ((1, 3),)), 5) == [
        Write(SettleOffer(8, ((1, 3),), marked=True))
    ]


def test_a_taker_that_was_called_dead_is_decided_without_unless_it_has_returned() -> None:
    driven = Driven()
    driven.offered()
    driven.giver.unanswered("b", Offer("a", 0, 8, b"disk", SPANS), 4)
    driven.giver.away = {"b": 3}
    assert driven.giver.tick(5) == [Ask("c", Recall("a", 0, 8, SPANS, True, ("b", 3)))]
    (write,) = driven.giver.answered("c", Verdict(8, b"c", ()), 6)
    assert write == Write(SettleOffer(8, (), marked=True, dead=("b", 3)))
    assert driven.giver.written(write.operation, False, 7) == []
    driven.giver.away = {}
    assert Ask("b", Recall("a", 0, 8, SPANS)) in driven.giver.tick(8)


def test_it_counts_as_giving_only_while_there_is_something_for_somebody_who_takes_it() -> None:
    driven = Driven()
    driven.giver.tick(0)
    assert not driven.giver.is_giving()
    driven.giver.answered("b", Terms(b"disk"), 1)
    assert driven.giver.is_giving()
    driven.giver.picked("b", (), 2, is_last=False)
    assert driven.giver.is_giving()
    driven.giver.tick(3)
    driven.giver.picked("b", (), 3)
    assert not driven.giver.is_giving()
    assert Pick("b") in driven.giver.tick(3 + LOOK_AGAIN)
    driven.giver.picked("b", SPANS, 4 + LOOK_AGAIN)
    assert driven.giver.is_giving()
    driven.giver.answered("b", Terms(b"disk", "draining"), 5 + LOOK_AGAIN)
    assert not driven.giver.is_giving()
    assert driven.giver.refusals() == {"b": "draining"}


def test_peers_are_asked_about_paths_and_say_which_they_can_send() -> None:
    giver = Giver("a", ["b"], offers=(), number=1)
    giver.paths = (("google", 2, "t"), ("yahoo", 2, "t"))
    giver.give(["b"], 0)
    assert giver.tick(0) == [Ask("b", Inquire("a", giver.paths))]
    assert giver.paths_of("b") == frozenset()
    giver.answered("b", Terms(b"disk", "", giver.paths[1:]), 1)
    assert giver.paths_of("b") == {("yahoo", 2, "t")}
    giver.unanswered("b", Inquire("a", giver.paths), 2)
    assert giver.paths_of("b") == frozenset()
