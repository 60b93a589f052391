"""Hand-over: a healthy region's waiting messages change their owner. The giver's machine, and the taker's rule.

Without I/O: each method returns effects for its shell.

One offer at a time and peer:

    giver's disk    offered: its messages are not due here any more
    taker's disk    taken: they are its own, all in one transaction with the number of the offer
    giver's disk    settled: what was taken is gone (its last word is `moved`), anything else is due again

Invariants, whatever is lost, repeated, late or killed:
- the taker decides once per number: an offer that it takes or is asked about closes this number and all below it, so an
  offer that arrives late is not taken any more;
- the giver acts on the taker's durable word alone. Silence is no answer: it asks again, and what was offered waits;
- a taker on another disk than the one that was offered to knows nothing, and one that was called dead cannot be asked:
  then all the others are. What none of them has comes back, marked: it may have been sent.

Who may be given to, what waits, and whether the taker's own copies are safe, is the shell's business
(engine/region/handing.py); the disk's part is engine/spool/handover.py. docs/adr/0030-hand-over.md.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from enum import IntEnum

from engine.failover.spans import Spans, intersect, subtract, union

MS = 1_000_000
ASK_AGAIN = 50 * MS  # while the taker's copy is not safe yet
SILENCE = 500 * MS  # between questions that nobody answers
INQUIRE = 1_000 * MS  # a peer that takes nothing is asked so often whether it will
LOOK_AGAIN = 300 * MS  # after nothing was found that a peer could take
UNHEARD = "it has not answered yet"


# -- requests, each repeatable; an answer may be lost with its request


@dataclass(frozen=True, slots=True)
class Inquire:
    """Would you take messages over? `paths` (site, stream, tenant): which of these could you send at once?

    `overloaded`: mail on these paths has waited here for so many milliseconds; which could you send clearly sooner?
    """

    giver: str
    paths: tuple[tuple[str, int, str], ...] = ()
    overloaded: tuple[tuple[tuple[str, int, str], int], ...] = ()


@dataclass(frozen=True, slots=True)
class Terms:
    """`disk` is another one after the taker has lost its own. `refusal`: why not, "" if it would.

    `paths`: those of the question that it can send.
    """

    disk: bytes
    refusal: str = ""
    paths: tuple[tuple[str, int, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Offer:
    """Take these, if your disk is this one. `epoch`: the giver's in a fleet with copies, else 0. Numbers grow."""

    giver: str
    epoch: int
    number: int
    disk: bytes
    spans: Spans
    payload: bytes = b""


@dataclass(frozen=True, slots=True)
class Recall:
    """What have you taken under this number? Take nothing more under it.

    `doubt`: it was another who was offered to. Which of these are yours, whatever way they came? No answer as long as
    one of them is offered on, and none before what is held of `dead` (name, epoch) has been adopted.
    """

    giver: str
    epoch: int
    number: int
    spans: Spans
    doubt: bool = False
    dead: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class Verdict:
    """`taken` is on the taker's disk; `is_safe`: on its standby's too, if it should have one. `closed`: nothing more is
    taken from this giver under numbers up to there."""

    number: int
    disk: bytes
    taken: Spans
    is_safe: bool = True
    closed: int = 0


@dataclass(frozen=True, slots=True)
class Keys:
    """Idempotency keys of the giver, to be known at the taker as well."""

    giver: str
    payload: bytes


@dataclass(frozen=True, slots=True)
class Kept:
    """The keys are on this disk."""

    disk: bytes


@dataclass(frozen=True, slots=True)
class AskKeys:
    """Give me your idempotency keys behind `cursor` (b"": from the first)."""

    asker: str
    cursor: bytes


@dataclass(frozen=True, slots=True)
class KeysPage:
    """`cursor`: where the next page begins, b"" if this is the last."""

    payload: bytes
    cursor: bytes


Request = Inquire | Offer | Recall | Keys | AskKeys
Reply = Terms | Verdict | Kept | KeysPage


# -- the taker's memory of one giver, on its disk


@dataclass(frozen=True, slots=True)
class Book:
    """Numbers up to `closed` are decided; `number` is the latest that was taken, with what was in it."""

    closed: int = 0
    number: int = 0
    taken: Spans = ()

    def is_open(self, number: int) -> bool:
        return number > self.closed

    def took(self, number: int, taken: Spans) -> "Book":
        return Book(number, number, taken)

    def close(self, number: int) -> "Book":
        return Book(max(self.closed, number), self.number, self.taken)

    def verdict(self, number: int, spans: Spans) -> Spans:
        """What of an offer was taken. That stays true when the messages have gone on to a third region since; what
        else is known of them here is not the answer: it may have come another way."""
        return intersect(spans, self.taken) if number == self.number else ()


# -- the giver's operations on its disk


@dataclass(frozen=True, slots=True)
class MakeOffer:
    """These are offered to `peer`, as far as they are due. Result: Spans, those that were."""

    number: int
    peer: str
    disk: bytes
    spans: Spans


@dataclass(frozen=True, slots=True)
class SettleOffer:
    """The offer is decided. `marked`: what comes back may have been sent.

    `dead`: the peer and its epoch, if it is decided without the peer: only as long as that has not returned.
    Result: whether it is settled.
    """

    number: int
    taken: Spans
    marked: bool = False
    dead: tuple[str, int] | None = None


Operation = MakeOffer | SettleOffer


# -- what the giver wants done


@dataclass(frozen=True, slots=True)
class Ask:
    """The answer goes to `answered`, or `unanswered` is called. The shell puts the payload into an Offer."""

    peer: str
    request: Request


@dataclass(frozen=True, slots=True)
class Pick:
    """Find messages that wait here and that this peer can send; they go to `picked`."""

    peer: str


@dataclass(frozen=True, slots=True)
class Write:
    """The result goes to `written`."""

    operation: Operation


Effect = Ask | Pick | Write


class Phase(IntEnum):
    MARKING = 1  # on its way to the disk
    OFFERED = 2  # on its way to the peer, not to be sent twice
    RECALLED = 3  # the peer is asked what became of it
    DOUBTED = 4  # the peer cannot know: all the others are asked
    SETTLING = 5


@dataclass(slots=True)
class Open:
    """An offer that is not settled. `asking`: who was asked and has not answered yet."""

    number: int
    peer: str
    disk: bytes
    spans: Spans
    phase: Phase
    ask_at: int = 0
    asking: set[str] = field(default_factory=set)
    heard: dict[str, Spans] = field(default_factory=dict)
    dead: tuple[str, int] | None = None


@dataclass(slots=True)
class Peer:
    """`disk`: of its latest terms, None if it would take nothing when it was asked last."""

    disk: bytes | None = None
    refusal: str = UNHEARD
    is_asked: bool = False
    is_picking: bool = False
    inquire_at: int = 0
    pick_at: int = 0
    paths: frozenset[tuple[str, int, str]] = frozenset()
    is_idle: bool = False  # nothing was found for it at the latest look


@dataclass(slots=True)
class Counters:
    handed_over: int = 0
    came_back: int = 0


class Giver:
    """See the module docstring. `offers`: those on disk; `number`: above every number that was ever used.

    `give(peers)` names those that messages may go to now, none to stop. `away`: peers that were called dead, with their
    epochs; in a fleet without copies nobody ever is.
    """

    def __init__(self, name: str, peers: Iterable[str], *, offers: Iterable[MakeOffer], number: int) -> None:
        self.name = name
        self.epoch = 0
        self.away: Mapping[str, int] = {}
        # what the peers are asked about
        self.paths: tuple[tuple[str, int, str], ...] = ()
        self.overloaded: tuple[tuple[tuple[str, int, str], int], ...] = ()
        self.counters = Counters()
        self._peers = {peer: Peer() for peer in peers}
        self._to: frozenset[str] = frozenset()
        self._number = number
        self._offers = {
            row.number: Open(row.number, row.peer, row.disk, row.spans, Phase.RECALLED) for row in offers
        }

    # -- what the shell asks

    def give(self, peers: Iterable[str], now: int) -> None:
        to = frozenset(peers)
        if to == self._to:
            return
        for name in to - self._to:
            peer = self._peers[name]
            peer.pick_at, peer.inquire_at, peer.is_idle = now, now, False
            peer.paths = frozenset()  # what it could send the last time that it was asked may be long ago
            peer.paths = frozenset()  # what it said of them may be long ago
        self._to = to
        for offer in self._offers.values():
            if offer.phase is Phase.OFFERED and offer.peer not in to:
                offer.phase, offer.ask_at = Phase.RECALLED, now

    def is_giving(self) -> bool:
        """Whether there is a peer that would take something, and something for it as far as is known."""
        return any(self._is_taking(self._peers[name]) for name in self._to)

    def waits_for(self, names: Collection[str]) -> bool:
        """Whether one of these would take something, or has not said yet whether it would."""
        peers = [self._peers[name] for name in self._to.intersection(names)]
        return any(self._is_taking(peer) or peer.refusal == UNHEARD for peer in peers)

    @staticmethod
    def _is_taking(peer: Peer) -> bool:
        return peer.disk is not None and not peer.is_idle

    def spans_of(self, number: int) -> Spans:
        """What is offered under a number and not settled."""
        offer = self._offers.get(number)
        return () if offer is None else offer.spans

    def open_offers(self) -> dict[str, int]:
        """By peer, how many messages are offered to it."""
        found: dict[str, int] = {}
        for offer in self._offers.values():
            found[offer.peer] = found.get(offer.peer, 0) + sum(count for _, count in offer.spans)
        return found

    def willing(self) -> dict[str, bytes]:
        """Peers that are given to and would take something, with their disks."""
        return {name: disk for name in sorted(self._to) if (disk := self._peers[name].disk) is not None}

    def paths_of(self, name: str) -> frozenset[tuple[str, int, str]]:
        """Of the paths that a peer was asked about, those that it can send."""
        return self._peers[name].paths

    def refusals(self) -> dict[str, str]:
        return {name: self._peers[name].refusal for name in sorted(self._to) if self._peers[name].refusal}

    # -- time

    def tick(self, now: int) -> list[Effect]:
        effects: list[Effect] = []
        for offer in self._offers.values():
            effects += self._pursue(offer, now)
        busy = {offer.peer for offer in self._offers.values()}
        for name in sorted(self._to):
            peer = self._peers[name]
            if not peer.is_asked and now >= peer.inquire_at:
                peer.is_asked, peer.inquire_at = True, now + INQUIRE
                effects.append(Ask(name, Inquire(self.name, self.paths, self.overloaded)))
            if peer.disk is None or name in busy or peer.is_picking or now < peer.pick_at:
                continue
            peer.is_picking = True
            effects.append(Pick(name))
        return effects

    def _pursue(self, offer: Open, now: int) -> list[Effect]:
        if offer.phase in (Phase.OFFERED, Phase.RECALLED) and offer.peer in self.away:
            self._doubt(offer, (offer.peer, self.away[offer.peer]))
        if offer.phase is Phase.DOUBTED and offer.dead is not None:
            epoch = self.away.get(offer.peer)
            if epoch is None:  # it has returned, and can be asked
                offer.phase, offer.dead = Phase.RECALLED, None
            elif epoch != offer.dead[1]:
                self._doubt(offer, (offer.peer, epoch))
        if now < offer.ask_at or offer.asking:
            return []
        if offer.phase is Phase.RECALLED:
            return self._ask(offer, [offer.peer], now)
        if offer.phase is Phase.DOUBTED:
            others = [peer for peer in self._peers if peer != offer.peer and peer not in self.away]
            missing = [peer for peer in others if peer not in offer.heard]
            if missing:
                return self._ask(offer, missing, now)
            return self._settle(offer, union(*offer.heard.values()), marked=True)
        return []

    def _doubt(self, offer: Open, dead: tuple[str, int] | None) -> None:
        offer.phase, offer.dead, offer.ask_at = Phase.DOUBTED, dead, 0
        offer.heard.clear()
        offer.asking.clear()

    def _ask(self, offer: Open, peers: list[str], now: int) -> list[Effect]:
        offer.asking.update(peers)
        offer.ask_at = now + SILENCE
        is_doubt = offer.phase is Phase.DOUBTED
        request = Recall(self.name, self.epoch, offer.number, offer.spans, is_doubt, offer.dead)
        return [Ask(peer, request) for peer in peers]

    def _settle(self, offer: Open, taken: Spans, *, marked: bool) -> list[Effect]:
        offer.phase = Phase.SETTLING
        offer.heard = {offer.peer: intersect(offer.spans, taken)}
        return [Write(SettleOffer(offer.number, offer.heard[offer.peer], marked, offer.dead))]

    # -- what comes back

    def picked(self, name: str, spans: Spans, now: int, *, is_last: bool = True) -> list[Effect]:
        """`is_last`: without `spans`, that there is nothing for this peer; else the look goes on."""
        peer = self._peers[name]
        peer.is_picking = False
        if not spans:
            peer.is_idle = is_last or peer.is_idle
            peer.pick_at = now + LOOK_AGAIN if is_last else now
            return []
        peer.is_idle = False
        self._number += 1
        offer = Open(self._number, name, peer.disk or b"", spans, Phase.MARKING)
        self._offers[offer.number] = offer
        return [Write(MakeOffer(offer.number, name, offer.disk, spans))]

    def written(self, operation: Operation, result: object, now: int) -> list[Effect]:
        offer = self._offers.get(operation.number)
        if offer is None:
            return []
        if isinstance(operation, SettleOffer):
            if not result:  # the peer has returned in the meantime: it can be asked
                offer.phase, offer.dead, offer.ask_at = Phase.RECALLED, None, now
                return []
            del self._offers[operation.number]
            gone = sum(count for _, count in operation.taken)
            self.counters.handed_over += gone
            self.counters.came_back += sum(count for _, count in offer.spans) - gone
            return self.tick(now)
        assert isinstance(result, tuple)
        offer.spans = result
        if not result:
            del self._offers[operation.number]
            return []
        if offer.peer not in self._to or not offer.disk:
            offer.phase, offer.ask_at = Phase.RECALLED, now
            return self._pursue(offer, now)
        offer.phase, offer.ask_at = Phase.OFFERED, now + SILENCE
        offer.asking = {offer.peer}
        return [Ask(offer.peer, Offer(self.name, self.epoch, offer.number, offer.disk, offer.spans))]

    def unanswered(self, peer: str, request: Request, now: int) -> list[Effect]:
        """Nobody can say whether the request arrived."""
        if isinstance(request, Inquire):
            self._terms(peer, Terms(b"", "it does not answer"), now)
        elif isinstance(request, Offer | Recall):
            offer = self._offers.get(request.number)
            if offer is not None and peer in offer.asking:
                offer.asking.discard(peer)
                offer.ask_at = now + SILENCE
                if offer.phase is Phase.OFFERED:
                    offer.phase = Phase.RECALLED
        return []

    def answered(self, peer: str, reply: Reply, now: int) -> list[Effect]:
        if isinstance(reply, Terms):
            return self._terms(peer, reply, now)
        if isinstance(reply, Verdict):
            return self._decided(peer, reply, now)
        return []

    def _terms(self, name: str, terms: Terms, now: int) -> list[Effect]:
        peer = self._peers[name]
        peer.is_asked = False
        peer.refusal = terms.refusal
        peer.disk = None if terms.refusal else terms.disk
        peer.paths = frozenset(terms.paths)
        peer.inquire_at = now + INQUIRE
        return [] if terms.refusal else self.tick(now)

    def _decided(self, name: str, verdict: Verdict, now: int) -> list[Effect]:
        # greater than this giver's, if it has begun on a new disk with its clock set back
        self._number = max(self._number, verdict.closed)
        offer = self._offers.get(verdict.number)
        if offer is None or name not in offer.asking:
            return []
        offer.asking.discard(name)
        if offer.phase is Phase.DOUBTED:
            if name != offer.peer:
                offer.heard[name] = verdict.taken
                offer.ask_at = now if not offer.asking else offer.ask_at
            return self._pursue(offer, now)
        if offer.phase not in (Phase.OFFERED, Phase.RECALLED):
            return []
        if verdict.disk != offer.disk:
            self._doubt(offer, None)
            return self._pursue(offer, now)
        if verdict.taken and not verdict.is_safe:
            offer.phase, offer.ask_at = Phase.RECALLED, now + ASK_AGAIN
            return []
        if subtract(offer.spans, verdict.taken):  # it did not want all of it
            peer = self._peers[name]
            peer.is_idle = not verdict.taken
            peer.pick_at, peer.inquire_at = now + LOOK_AGAIN, now
        return self._settle(offer, verdict.taken, marked=False)


def key_of(giver: int, number: int) -> bytes:
    """Of the copies that a taker waits for (engine/failover/link.py): no batch has it, their keys have 16 bytes."""
    return b"hand-over" + giver.to_bytes(2, "big") + number.to_bytes(8, "big")
