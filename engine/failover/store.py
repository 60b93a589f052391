"""What a region asks of its store: operations as values, each done whole or not at all, in the order asked.

The store checks epochs itself, inside the transaction: `fences[owner]` is the lowest epoch under which that owner may
still write here. There are two stores: engine/spool, and tests/support/failover_store.py in memory.

A message that is owned is queued here; it is `unsafe` from its acceptance until its copy is safe: not due, and without
a receipt. A copy is kept for its owner, apart from what is owned.
"""

from dataclasses import dataclass

from engine.failover.messages import Entry
from engine.failover.spans import Spans


@dataclass(frozen=True, slots=True)
class Durable:
    """What a region reads back when it starts. `unsafe`: batch keys and ids without a receipt.

    `first`: the first epoch in which it was clean on this disk. `held`: by owner, its epoch when it last opened a
    session here. `asked`: by owner, the epoch under which it asked what is ours, unless it was called dead since.
    `unasked`: see SaveClean. `lived`: the latest epoch in which it was clean on this disk. `unfinished`: owners from
    whom something is to be adopted still.
    """

    epoch: int = 0
    first: int = 0
    clean: bool = False
    standby: str = ""
    fences: tuple[tuple[str, int], ...] = ()
    held: tuple[tuple[str, int], ...] = ()
    asked: tuple[tuple[str, int], ...] = ()
    unasked: tuple[tuple[str, int], ...] = ()
    unsafe: tuple[tuple[bytes, Spans], ...] = ()
    lived: int = 0
    unfinished: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SaveEpoch:
    """Take a new epoch; the region is not clean in it. `unsafe`: batches whose Release it may have written just now,
    and that have no receipt all the same: they are unsafe again."""

    epoch: int
    unsafe: tuple[tuple[bytes, Spans], ...] = ()


@dataclass(frozen=True, slots=True)
class SaveClean:
    """The region has returned. `highest`: ids up to there are used up.

    `unasked`: these regions, with their epochs, could not be asked since the disk was new what stood on the one before.
    When it returns on it for the first time, ids begin where the old disk cannot have come to: at the time.
    """

    epoch: int
    highest: int
    unasked: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class SaveUnasked:
    """Fewer than SaveClean said: the others have returned since."""

    unasked: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class SaveLife:
    """The number of this process, greater than the one that it has begun with; the next process takes a greater one."""

    life: int


@dataclass(frozen=True, slots=True)
class SaveStandby:
    """`only_if_empty`: unless something is owned. Result: whether it is saved."""

    name: str
    only_if_empty: bool = False


@dataclass(frozen=True, slots=True)
class IsEmpty:
    """Result: whether nothing is owned, safe or not."""


@dataclass(frozen=True, slots=True)
class Accept:
    """Own a new batch, unsafe until its Release. Result: Accepted."""

    key: bytes
    payload: object


@dataclass(frozen=True, slots=True)
class Accepted:
    """`known`: the key was there already, `spans` are those of then.

    `hearsay`: another region has it in hand, and this disk a copy: whether there is a receipt is that region's to say.
    """

    spans: Spans
    known: bool = False
    hearsay: bool = False


@dataclass(frozen=True, slots=True)
class Release:
    """An unsafe batch is safe: its messages are due now."""

    key: bytes
    spans: Spans


@dataclass(frozen=True, slots=True)
class Abandon:
    """Another region has the batch of this key under other ids, `instead`: ours was never acknowledged."""

    key: bytes
    spans: Spans
    instead: Spans


@dataclass(frozen=True, slots=True)
class TakeQueued:
    """Which ids above `after` are owned, a part of them; with `unsafe` those that are not safe, too. Result: Queued."""

    unsafe: bool
    tag: int
    after: int = -1


@dataclass(frozen=True, slots=True)
class Queued:
    """`last`: after which the next part begins, -1 if there is none. `with_keys`: of batches whose keys were
    adopted, and go with these messages only: the standby is to be sent them, whether it has them or not."""

    spans: Spans
    last: int = -1
    with_keys: Spans = ()


@dataclass(frozen=True, slots=True)
class OpenSession:
    """Result: the ids held for this owner, or None if it is superseded."""

    owner: str
    epoch: int
    session: int


@dataclass(frozen=True, slots=True)
class Apply:
    """Result: "" or why not.

    The key of a Copy is hearsay: LookUp does not find it, unless its owner asks. It is known once it is among those
    that are `confirmed`, comes again without a batch, or its owner is adopted from; it is forgotten with DropCopies.
    So are keys that the owner has adopted as hearsay itself, which come with its copies of their messages: they are
    not `confirmed`, and do not come among all keys as long as such a message is queued.
    """

    owner: str
    epoch: int
    session: int
    number: int
    entry: Entry
    confirmed: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class Adopt:
    """Own the copies of a region that was called dead; nothing of it under an older epoch is taken any more.

    `epoch` is the adopter's own: nothing is adopted if it has got another since. Without `forced`, nothing either if
    the owner has returned under that fence: it has asked, or has begun a session in that epoch. Result: Adopted.
    """

    owner: str
    fence: int
    epoch: int
    forced: bool = False


@dataclass(frozen=True, slots=True)
class Adopted:
    """`more`: ask again for the rest."""

    spans: Spans
    more: bool = False


@dataclass(frozen=True, slots=True)
class Inspect:
    """A returning owner asks. Result: Inspected, or None if it is superseded."""

    owner: str
    epoch: int
    nonce: int
    queued: Spans
    held: int = 0


@dataclass(frozen=True, slots=True)
class Inspected:
    """Ids among them that are queued here or got their outcome here; the highest id of that owner known here."""

    mine: Spans
    highest: int


@dataclass(frozen=True, slots=True)
class GiveUp:
    """`to` owns these messages: they are ours no longer.

    `is_standby`: its standby is here. They are kept as copies of it, for it has no other yet. A key that came with a
    copy and was adopted is forgotten if it is given up to who had sent that copy, or to the region whose ids these are:
    it may have given no receipt.
    """

    spans: Spans
    to: str
    is_standby: bool = False


@dataclass(frozen=True, slots=True)
class Mark:
    """These may have been sent, as far as they are due: a region that is away may have adopted them."""

    spans: Spans


@dataclass(frozen=True, slots=True)
class DropCopies:
    """The owner has another standby. Result: whether there may be more of them, to be dropped by asking again."""

    owner: str


@dataclass(frozen=True, slots=True)
class LookUp:
    """Who has this key: Accepted or None."""

    key: bytes
    asker: str
    number: int


Operation = (
    SaveEpoch
    | SaveClean
    | SaveUnasked
    | SaveLife
    | SaveStandby
    | IsEmpty
    | Accept
    | Release
    | Abandon
    | TakeQueued
    | OpenSession
    | Apply
    | Adopt
    | Inspect
    | GiveUp
    | Mark
    | DropCopies
    | LookUp
)
