"""What a region says to its peers, carried in few calls: a call costs more than what it carries.

What is said to one peer while `CALLS` calls to it are on their way travels with the next one, in order; so the more
there is to say, the more goes with one call, and a peer that is slow costs no more than one that is fast. Bounded:
beyond `WAITING` messages for one peer, more are dropped, and one call carries at most `CALL_BYTES`, or one message.
What is dropped, or lost on its way, the protocol repeats.
"""

import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from engine.failover.messages import Ask, Copy, Data, Message, Told, Update, Welcome

log = logging.getLogger(__name__)

CALLS = 4
WAITING = 512
CALL_BYTES = 1 << 20
MESSAGE_BYTES = 200  # about, without payload and spans
SPAN_BYTES = 16


class PeerLink(Protocol):
    """Carries messages to other regions, in order, without a promise that they arrive."""

    async def tell(self, region: str, sender: str, messages: Sequence[Message]) -> None: ...


@dataclass(slots=True)
class Box:
    """What waits for one peer."""

    messages: deque[Message] = field(default_factory=deque)
    calls: int = 0
    is_starting: bool = False  # a call leaves in the next turn of the loop


class Outgoing:
    """See the module docstring. All methods run on the region's loop."""

    def __init__(self, name: str, link: PeerLink, spawn: Callable[[Coroutine[Any, Any, None]], Any]) -> None:
        self._name = name
        self._link = link
        self._spawn = spawn
        self._boxes: dict[str, Box] = {}
        self.dropped = 0

    def say(self, peer: str, message: Message) -> None:
        """It leaves in the next turn of the loop, with all that is said until then."""
        box = self._boxes.setdefault(peer, Box())
        if len(box.messages) >= WAITING:
            self.dropped += 1
            return
        box.messages.append(message)
        self._start(peer, box)

    def _start(self, peer: str, box: Box) -> None:
        if box.calls < CALLS and not box.is_starting:
            box.calls += 1
            box.is_starting = True
            self._spawn(self._carry(peer, box))

    async def _carry(self, peer: str, box: Box) -> None:
        box.is_starting = False
        try:
            while box.messages:
                messages = _taken(box.messages)
                if box.messages:
                    self._start(peer, box)
                await self._call(peer, messages)
        finally:
            box.calls -= 1

    async def _call(self, peer: str, messages: Sequence[Message]) -> None:
        try:
            await self._link.tell(peer, self._name, messages)
        except (ConnectionError, TimeoutError) as error:
            log.debug("region %s: %s did not hear %d messages: %s", self._name, peer, len(messages), error)


def _taken(messages: deque[Message]) -> list[Message]:
    """As many as one call may carry, from the front."""
    taken = [messages.popleft()]
    size = size_of(taken[0])
    while messages and size + size_of(messages[0]) <= CALL_BYTES:
        size += size_of(messages[0])
        taken.append(messages.popleft())
    return taken


def size_of(message: Message) -> int:
    """About how many bytes it takes."""
    match message:
        case Data(entry=Copy(payload=payload) | Update(payload=payload)):
            return MESSAGE_BYTES + len(payload)
        case Data(entry=entry):
            return MESSAGE_BYTES + SPAN_BYTES * len(entry.spans)
        case Ask(queued=spans) | Told(mine=spans) | Welcome(copies=spans):
            return MESSAGE_BYTES + SPAN_BYTES * len(spans)
    return MESSAGE_BYTES
