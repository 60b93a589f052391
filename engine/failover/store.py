"""What a region asks of its store: operations as values, each done whole or not at all, in the order asked.

The store checks the fences itself, inside the transaction: `fences[owner]` is the lowest epoch under which that owner
may still write here. tests/support/failover_store.py is the one there is, in memory.
"""

from dataclasses import dataclass

from engine.failover.messages import Verdict
from engine.failover.spans import Span, Spans


@dataclass(frozen=True, slots=True)
class Durable:
    """What a region reads back when it starts.

    `seen`: the highest epoch of each peer that Fleet has told of; `asks`: peers that may have adopted messages of ours.
    `owned`: ids that are queued here; `unacked`: the batches among them whose receipt was never given, with their keys.
    """

    epoch: int = 0
    fences: tuple[tuple[str, int], ...] = ()
    seen: tuple[tuple[str, int], ...] = ()
    asks: frozenset[str] = frozenset()
    owned: Spans = ()
    unacked: tuple[tuple[Span, bytes], ...] = ()


@dataclass(frozen=True, slots=True)
class SaveEpoch:
    """Take a new epoch; `asks` are added."""

    epoch: int
    asks: frozenset[str]


@dataclass(frozen=True, slots=True)
class SaveSeen:
    """Peers' epochs. Once on disk, a later Fleet will learn of them, so they can be acted upon."""

    epochs: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Accept:
    """Own a new batch. `guarded`: its receipt waits for a copy, so a restart must ask for it."""

    token: int
    key: bytes
    payload: bytes
    guarded: bool


@dataclass(frozen=True, slots=True)
class Accepted:
    """`known`: the key was there already; `owner` and `spans` are then what it stands for."""

    owner: str
    spans: Spans
    known: bool = False


@dataclass(frozen=True, slots=True)
class Acknowledge:
    """A copy is safe: the receipt may be given."""

    span: Span


@dataclass(frozen=True, slots=True)
class Export:
    """Read what is still queued of a run of own messages, for a copy. Result: Exported."""

    span: Span


@dataclass(frozen=True, slots=True)
class Exported:
    """`left`: the ids that are still queued. `key` is b"" unless the run is the whole batch of that key."""

    key: bytes
    payload: bytes
    left: Spans


@dataclass(frozen=True, slots=True)
class StoreCopy:
    """Result: StoreCopyResult. `yields`: an own batch of that key without a receipt gives way to this one."""

    owner: str
    epoch: int
    session: int
    span: Span
    key: bytes
    payload: bytes
    yields: bool = False


@dataclass(frozen=True, slots=True)
class StoreCopyResult:
    """If the key is taken: whose it is, and its ids. `yielded`: own ids that gave way."""

    verdict: Verdict
    owner: str = ""
    spans: Spans = ()
    yielded: Spans = ()


@dataclass(frozen=True, slots=True)
class DropCopies:
    owner: str
    epoch: int
    session: int
    number: int
    ids: Spans


@dataclass(frozen=True, slots=True)
class TakeInventory:
    """Fence the owner's older epochs; result: InventoryResult, or None if the owner itself is superseded."""

    owner: str
    epoch: int
    session: int


@dataclass(frozen=True, slots=True)
class InventoryResult:
    valid: bool
    copies: Spans
    adopted: Spans


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Drop copies, forget what was adopted from the owner, make the rest adoptable. Result: False if superseded."""

    owner: str
    epoch: int
    session: int
    drop: Spans


@dataclass(frozen=True, slots=True)
class Adopt:
    """Own the copies of a dead region, marked as perhaps sent. Result: the ids, () if they were not adoptable."""

    owner: str
    fence: int


@dataclass(frozen=True, slots=True)
class TakeOver:
    """Own these copies, by agreement with their owner. Result: TakeOverResult, or None if it is superseded."""

    owner: str
    epoch: int
    session: int
    number: int
    ids: Spans


@dataclass(frozen=True, slots=True)
class TakeOverResult:
    """`ids`: taken now or by an earlier telling of the same; `fresh`: taken now."""

    ids: Spans
    fresh: Spans


@dataclass(frozen=True, slots=True)
class Moved:
    """A peer owns these now. `session`: the one about to open with it, or 0; `answered`: it has told all it took.

    With `key`: the peer owns the key under ids of its own, `spans`.
    """

    peer: str
    ids: Spans
    session: int
    answered: bool
    key: bytes = b""
    spans: Spans = ()


@dataclass(frozen=True, slots=True)
class AddAsk:
    """Before a hand-over: should we stop here, the peer must be asked what it took."""

    peer: str


@dataclass(frozen=True, slots=True)
class LookUp:
    """Who has this key: Accepted with `known`, or None."""

    asker: str
    key: bytes


Operation = (
    SaveEpoch
    | SaveSeen
    | Accept
    | Acknowledge
    | Export
    | StoreCopy
    | DropCopies
    | TakeInventory
    | OpenSession
    | Adopt
    | TakeOver
    | Moved
    | AddAsk
    | LookUp
)
