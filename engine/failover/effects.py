"""What a machine wants done: the shell (actors, or the simulation) does it and reports back."""

from dataclasses import dataclass

from engine.failover.messages import Message
from engine.failover.spans import Spans
from engine.failover.store import Operation


@dataclass(frozen=True, slots=True)
class Send:
    """To a region by name, or to "" for Fleet."""

    to: str
    message: Message


@dataclass(frozen=True, slots=True)
class Write:
    """Give the operation to the store; its result comes back through `committed`."""

    operation: Operation


@dataclass(frozen=True, slots=True)
class Export:
    """Read these own messages, as far as they are queued, and give them to `exported` before anything else happens.

    With `keys`, read idempotency keys from `cursor` on instead. With `update`, only what changes: no bodies.
    """

    spans: Spans
    key: bytes = b""
    keys: bool = False
    update: bool = False
    cursor: bytes = b""


@dataclass(frozen=True, slots=True)
class Answer:
    """To a client's batch: the ids of its messages, or why it was refused ("" if it was not).

    `degraded`: they may be on one disk only; of a `repeated` answer, whether that may be so still.
    """

    token: int
    spans: Spans
    refusal: str = ""
    repeated: bool = False
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Ready:
    """These are due: they may be dispatched while the lease lasts."""

    spans: Spans


@dataclass(frozen=True, slots=True)
class Forget:
    """These are not ours any more."""

    spans: Spans


Effect = Send | Write | Export | Answer | Ready | Forget
