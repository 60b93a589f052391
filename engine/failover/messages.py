"""What Fleet and regions say to each other, and what a region asks of its store: plain values.

All of them may be lost, delayed, repeated (resent) and reordered; no message is trusted to arrive. A region's `epoch`
is given by Fleet and grows whenever the region was called dead: what carries an older one comes from a past that
others have already closed.
"""

from dataclasses import dataclass
from enum import IntEnum

from engine.failover.spans import Span, Spans


class Standing(IntEnum):
    LIVE = 1
    SUSPECT = 2  # three beats unanswered: nothing new is sent there
    DEAD = 3  # its lease has run out: its copies are adopted under `epoch`


@dataclass(frozen=True, slots=True)
class RegionView:
    """A region as Fleet sees it. `weight` (0 to 100) is its share of new mail, less than 100 while it ramps up."""

    name: str
    standing: Standing
    epoch: int
    weight: int = 100


# -- between Fleet and regions


@dataclass(frozen=True, slots=True)
class Beat:
    """Fleet to a region, every beat. Orders are in the view: a DEAD region's copies are to be adopted.

    `stamp`: the region's own clock in its latest answer, -1 for no grant; the lease lasts from then on, for the process
    `life` alone. `asks`: which regions may have adopted this one's messages before it was given `epoch`.
    """

    fleet: int
    life: int
    epoch: int
    stamp: int
    asks: tuple[str, ...]
    view: tuple[RegionView, ...]


@dataclass(frozen=True, slots=True)
class BeatReply:
    """`life` grows with each start of the region's process; `epoch` is on its disk.

    `fences`: (region, epoch) of every epoch that it knows a peer was given, or that it has adopted under.
    """

    fleet: int
    life: int
    clock: int
    epoch: int
    fences: tuple[tuple[str, int], ...]


# -- between regions


@dataclass(frozen=True, slots=True)
class PromiseAsk:
    """Fleet is silent: promise not to adopt my messages. The promise lasts a lease from `clock` on."""

    epoch: int
    clock: int


@dataclass(frozen=True, slots=True)
class Promise:
    clock: int


@dataclass(frozen=True, slots=True)
class Sync:
    """An owner begins a session with a standby: tell what you hold of mine."""

    epoch: int
    session: int


@dataclass(frozen=True, slots=True)
class Inventory:
    """`valid`: the copies could have been adopted until now. `adopted`: ids that are no longer the asker's.

    `epoch` is the standby's own: a session ends when it changes. `fenced`: the asker is superseded, nothing is told.
    """

    session: int
    epoch: int
    valid: bool
    copies: Spans
    adopted: Spans
    fenced: bool = False


@dataclass(frozen=True, slots=True)
class Open:
    """The owner has settled the difference: drop these copies; from now on the rest counts."""

    epoch: int
    session: int
    drop: Spans


@dataclass(frozen=True, slots=True)
class Opened:
    session: int


@dataclass(frozen=True, slots=True)
class Copy:
    """A batch for the standby. `payload` is the storage's business; `key` is the batch's idempotency key.

    `orphan`: its receipt was not given, and no client waits for it here any more.
    """

    epoch: int
    session: int
    span: Span
    key: bytes
    payload: bytes
    orphan: bool = False


class Verdict(IntEnum):
    STORED = 1
    FENCED = 2  # the sender is superseded
    NO_SESSION = 3
    TAKEN = 4  # the key belongs to another region's messages


@dataclass(frozen=True, slots=True)
class CopyReply:
    session: int
    span: Span
    verdict: Verdict
    owner: str = ""
    spans: Spans = ()


@dataclass(frozen=True, slots=True)
class Settle:
    """These ids are settled for good, or no longer yours to keep."""

    epoch: int
    session: int
    number: int
    ids: Spans


@dataclass(frozen=True, slots=True)
class SettleReply:
    session: int
    number: int


@dataclass(frozen=True, slots=True)
class HandOver:
    """Own these messages, of which you hold the copies, from now on."""

    epoch: int
    session: int
    number: int
    ids: Spans


@dataclass(frozen=True, slots=True)
class HandOverReply:
    session: int
    number: int
    taken: Spans


@dataclass(frozen=True, slots=True)
class Claim:
    """A client asks here again for a batch that it gave to another region: who knows its key?"""

    key: bytes


@dataclass(frozen=True, slots=True)
class Unclaim:
    """The asker will not own the batch of this key after all."""

    key: bytes


class Known(IntEnum):
    NO = 1
    YES = 2
    PENDING = 3  # a region has it in hand: the client must ask again


@dataclass(frozen=True, slots=True)
class ClaimReply:
    key: bytes
    known: Known
    owner: str = ""
    spans: Spans = ()


Message = (
    Beat
    | BeatReply
    | PromiseAsk
    | Promise
    | Sync
    | Inventory
    | Open
    | Opened
    | Copy
    | CopyReply
    | Settle
    | SettleReply
    | HandOver
    | HandOverReply
    | Claim
    | Unclaim
    | ClaimReply
)
