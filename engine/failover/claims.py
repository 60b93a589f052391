"""A client that lost its answer asks here again: find out whether another region has its batch.

Every region that may still be alive is asked for the key. Only when each has answered no, or is dead, the batch is
accepted here; those that answered keep the key free of other regions' copies meanwhile. If one has it in hand (accepted
there, its copy not yet safe) the enquiry ends, and with it what it keeps others from; the client asks again.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.failover.effects import Answer, Effect, Send
from engine.failover.messages import Claim, ClaimReply, Known, Unclaim
from engine.failover.timing import Timing

OPEN_CLAIMS = 1024
IN_HAND = "another region has this batch in hand"


@dataclass(slots=True)
class Enquiry:
    """One key that is being asked for."""

    key: bytes
    payload: bytes
    tokens: list[int]
    waiting: set[str]
    asked_at: int
    peers: tuple[str, ...]


class Claims:
    """Enquiries in progress, at most OPEN_CLAIMS."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._open: dict[bytes, Enquiry] = {}

    def begin(self, key: bytes, payload: bytes, token: int, peers: Iterable[str], now: int) -> list[Effect]:
        enquiry = self._open.get(key)
        if enquiry is not None:
            enquiry.tokens.append(token)
            return []
        if len(self._open) >= OPEN_CLAIMS:
            return [Answer(token, "", (), refusal="too many enquiries")]
        asked = tuple(peers)
        self._open[key] = Enquiry(key, payload, [token], set(asked), now, asked)
        return [Send(peer, Claim(key)) for peer in asked]

    def is_open(self, key: bytes) -> bool:
        return key in self._open

    def answered(self, peer: str, reply: ClaimReply) -> list[Effect]:
        enquiry = self._open.get(reply.key)
        if enquiry is None:
            return []
        if reply.known is Known.YES:
            del self._open[reply.key]
            return [Answer(t, reply.owner, reply.spans, repeated=True) for t in enquiry.tokens]
        if reply.known is Known.PENDING:
            return self.give_up(reply.key)
        enquiry.waiting.discard(peer)
        return []

    def give_up(self, key: bytes) -> list[Effect]:
        """Another region has the batch in hand."""
        enquiry = self._open.pop(key, None)
        if enquiry is None:
            return []
        refusals = [Answer(token, "", (), refusal=IN_HAND) for token in enquiry.tokens]
        return [*refusals, *(Send(peer, Unclaim(key)) for peer in enquiry.peers)]

    def tick(self, dead: Iterable[str], now: int) -> tuple[list[Effect], list[Enquiry]]:
        """Ask again; returns also the enquiries that nobody else knows: their batches may be accepted."""
        effects: list[Effect] = []
        free: list[Enquiry] = []
        for enquiry in list(self._open.values()):
            enquiry.waiting.difference_update(dead)
            if not enquiry.waiting:
                del self._open[enquiry.key]
                free.append(enquiry)
            elif now - enquiry.asked_at >= self._timing.resend:
                enquiry.asked_at = now
                effects.extend(Send(peer, Claim(enquiry.key)) for peer in sorted(enquiry.waiting))
        return effects, free
