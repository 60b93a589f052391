"""What Fleet and regions say to each other: plain values.

All of them may be lost, delayed, repeated and reordered. A region's `epoch` is given by Fleet and grows whenever the
region was called dead: what carries an older one comes from a past that others have already closed.
"""

from dataclasses import dataclass
from enum import IntEnum

from engine.failover.spans import Spans


class Standing(IntEnum):
    LIVE = 1
    SUSPECT = 2  # three beats unanswered: nothing new is sent there
    DEAD = 3  # its lease has run out: its copies are adopted under `epoch`
    RETURNING = 4  # it has `epoch` on disk and must find out what others own of its messages


FORM = 2  # of payloads, as Welcome says

AWAY = (Standing.DEAD, Standing.RETURNING)


@dataclass(frozen=True, slots=True)
class RegionView:
    """A region as Fleet sees it. `weight` (0 to 100) is its share of new mail, less than 100 while it ramps up.
    `covered`: see BeatReply."""

    name: str
    standing: Standing
    epoch: int
    weight: int = 100
    covered: bool = True


# -- between Fleet and regions

NO_ORDERS = 1 << 62  # more than any epoch


@dataclass(frozen=True, slots=True)
class Beat:
    """Fleet to a region, every beat. A DEAD region in the view is to be adopted from.

    `number` orders the beats of one Fleet. `stamp`: the region's own clock in its latest answer, -1 for no lease; the
    lease lasts from then on, for the process `life` alone. `slot`: the region may return now; while one does, no other.
    `first`: this Fleet's epochs are greater, those of the ones before are not. NO_ORDERS as long as it gives none.
    """

    fleet: int
    number: int
    life: int
    epoch: int
    stamp: int
    slot: bool
    view: tuple[RegionView, ...]
    first: int = 0


@dataclass(frozen=True, slots=True)
class BeatReply:
    """`life` grows with each start of the region's process; `epoch` is on its disk, and `clean` if it has returned.

    `fences`: (region, epoch) of every epoch that a peer was given, as far as this region acts on it. `unbroken`: it had
    the lease of another Fleet when this one's first beat came, so that no Fleet before has called it dead. `fresh`: it
    has never been live on this disk. `covered`: its standby has all that it knows, keys and messages, except for
    batches that have no receipt yet. `known`: the greatest epoch that it has heard of, of any region and any Fleet.
    """

    fleet: int
    life: int
    clock: int
    epoch: int
    clean: bool
    fences: tuple[tuple[str, int], ...]
    unbroken: bool
    fresh: bool
    covered: bool = True
    known: int = 0


@dataclass(frozen=True, slots=True)
class Behind:
    """A region's answer to a beat of `fleet`, which it does not obey: it has obeyed one with a greater number,
    `newest`. `known`: see BeatReply."""

    fleet: int
    newest: int
    known: int


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
class Ask:
    """A returning region to every live one: which of these messages are yours now, or were?

    `fresh`: its disk is a new one, so what it had is to be adopted. `held`: the owner's epoch under which the asker was
    given copies of the other's messages, 0 for never. `dead`: regions that are not asked, with their epochs: what the
    answering region holds of theirs is adopted first, and nothing more is taken from them under an older epoch. Or
    it would be adopted later, after the asker has found nobody who has it.
    """

    epoch: int
    nonce: int
    queued: Spans
    fresh: bool = False
    held: int = 0
    dead: tuple[tuple[str, int], ...] = ()


class Standby(IntEnum):
    """What the answering region says about the copies of its messages that the asker holds."""

    KEEP = 1
    WAIT = 2  # they are on their way to another standby: ask again
    DROP = 3
    ADOPT = 4  # the answering region has lost its disk since: they are all there is


@dataclass(frozen=True, slots=True)
class Told:
    """`mine`: ids that the asker has lost. `highest`: the highest id of the asker's own ever seen here.

    `first`: the epoch in which the answering region returned on this disk for the first time. What it may have sent
    before, under another disk, it does not know. `covered`: see BeatReply.
    """

    nonce: int
    mine: Spans
    highest: int
    standby: Standby
    first: int
    covered: bool = True


@dataclass(frozen=True, slots=True)
class Hello:
    """An owner begins a session with its standby. Sessions of an owner grow."""

    epoch: int
    session: int


@dataclass(frozen=True, slots=True)
class Welcome:
    """`copies`: what the standby holds already. `form`: up to which form it understands payloads; 2: a template that
    this session has brought before stands as its digest. Earlier releases do not say it, and have no such field."""

    session: int
    copies: Spans
    form: int = 1


@dataclass(frozen=True, slots=True)
class Copy:
    """Messages to keep. `payload` is the storage's business; `key` the idempotency key of a whole batch, or b""."""

    spans: Spans
    payload: bytes
    key: bytes = b""


@dataclass(frozen=True, slots=True)
class Drop:
    """These are settled for good."""

    spans: Spans


@dataclass(frozen=True, slots=True)
class Update:
    """Some copies have changed (attempts, due time); `payload` is the storage's business."""

    spans: Spans
    payload: bytes


Entry = Copy | Drop | Update


@dataclass(frozen=True, slots=True)
class Data:
    """Entry number `number` of a session; the standby applies them in order. Those below `base` are acknowledged."""

    session: int
    number: int
    entry: Entry
    base: int = 0


@dataclass(frozen=True, slots=True)
class Ack:
    """Everything below `upto` is on the standby's disk."""

    session: int
    upto: int


@dataclass(frozen=True, slots=True)
class Closed:
    """The session is no more: the standby has restarted, cannot write, or the owner is superseded."""

    session: int
    reason: str


@dataclass(frozen=True, slots=True)
class Claim:
    """A client asks here again for a batch that it gave to another region: who knows its key?

    `dead`: regions that are not asked, with their epochs; nothing more may be taken from them under an older one.
    `recovering`: the asker has the batch itself, without a receipt, of before a restart.
    """

    number: int
    key: bytes
    dead: tuple[tuple[str, int], ...]
    recovering: bool = False


class Known(IntEnum):
    NO = 1  # and it will not be accepted here
    YES = 2
    PENDING = 3  # a region has it in hand: the client must ask again


@dataclass(frozen=True, slots=True)
class ClaimReply:
    """`alone`: what it knows of it may be on its disk only."""

    number: int
    key: bytes
    known: Known
    spans: Spans = ()
    alone: bool = False


Message = (
    Beat
    | BeatReply
    | Behind
    | PromiseAsk
    | Promise
    | Ask
    | Told
    | Hello
    | Welcome
    | Data
    | Ack
    | Closed
    | Claim
    | ClaimReply
)
