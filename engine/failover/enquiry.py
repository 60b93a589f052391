"""Who knows this key? Asked when a client that lost its answer tries another region, and after a restart.

Every region that may be alive is asked; each that does not know the key promises not to accept it from then on. Only
when all have answered no, the batch is accepted here. If one has it in hand (accepted there, its copy not yet safe)
the enquiry ends, and the client asks again. One that has it on its own disk only may have died before it gave a
receipt, and another have accepted the batch since: its word counts when all have answered, and nobody else has it.
"""

from dataclasses import dataclass
from typing import Generic, TypeVar

from engine.failover.effects import Effect, Send
from engine.failover.messages import Claim, ClaimReply, Known
from engine.failover.spans import Spans
from engine.failover.timing import Timing

T = TypeVar("T")
OPEN_ENQUIRIES = 1024


@dataclass(slots=True)
class Enquiry(Generic[T]):
    """One key that is being asked for; `what` is the asker's."""

    number: int
    key: bytes
    what: T
    dead: tuple[tuple[str, int], ...]
    asked: frozenset[str]
    waiting: set[str]
    asked_at: int
    pause: int  # until it is asked again
    known: Known = Known.NO
    spans: Spans = ()
    alone: bool = False

    def is_clear(self) -> bool:
        """Whether what others say changes nothing any more."""
        return self.known is Known.PENDING or (self.known is Known.YES and not self.alone)

    def claim(self) -> Claim:
        return Claim(self.number, self.key, self.dead, self.what is None)


class Enquiries(Generic[T]):
    """Enquiries in progress, at most OPEN_ENQUIRIES. `number` is greater than any of an earlier process."""

    def __init__(self, timing: Timing, *, number: int) -> None:
        self._timing = timing
        self._number = number
        self._open: dict[bytes, Enquiry[T]] = {}

    def renumber(self, number: int) -> None:
        """Those to come have greater numbers than this one."""
        self._number = max(self._number, number)

    def __contains__(self, key: bytes) -> bool:
        return key in self._open

    def get(self, key: bytes) -> Enquiry[T] | None:
        return self._open.get(key)

    def is_full(self) -> bool:
        return len(self._open) >= OPEN_ENQUIRIES

    def clear(self) -> list[Enquiry[T]]:
        ended = list(self._open.values())
        self._open.clear()
        return ended

    def begin(
        self, key: bytes, what: T, peers: list[str], dead: tuple[tuple[str, int], ...], now: int
    ) -> list[Effect]:
        self._number += 1
        enquiry = self._open[key] = Enquiry(
            self._number, key, what, dead, frozenset(peers), set(peers), now, self._timing.resend
        )
        return [Send(peer, enquiry.claim()) for peer in peers]

    def answered(self, peer: str, reply: ClaimReply) -> None:
        enquiry = self._open.get(reply.key)
        if enquiry is None or enquiry.number != reply.number or peer not in enquiry.waiting:
            return
        is_found = enquiry.known is Known.YES and not enquiry.alone
        if reply.known is Known.YES and not is_found:
            enquiry.known, enquiry.spans, enquiry.alone = reply.known, reply.spans, reply.alone
        elif reply.known is Known.PENDING and enquiry.known is Known.NO:
            enquiry.known = reply.known
        enquiry.waiting.discard(peer)

    def tick(self, alive: set[str], now: int) -> tuple[list[Effect], list[Enquiry[T]]]:
        """Ask again, and only those that are alive; returns also the enquiries that are decided."""
        effects: list[Effect] = []
        decided: list[Enquiry[T]] = []
        for enquiry in list(self._open.values()):
            if not enquiry.waiting <= alive <= enquiry.asked:
                # somebody has died since: what others may still take from it must end first, so ask all of them again;
                # or is on its way back, and may know what nobody else does
                del self._open[enquiry.key]
                enquiry.known = Known.PENDING
                decided.append(enquiry)
            elif not enquiry.waiting or enquiry.is_clear():
                del self._open[enquiry.key]
                decided.append(enquiry)
            elif now - enquiry.asked_at >= enquiry.pause:
                enquiry.asked_at = now
                enquiry.pause = min(2 * enquiry.pause, self._timing.patient)
                effects.extend(Send(peer, enquiry.claim()) for peer in sorted(enquiry.waiting))
        return effects, decided
