"""What goes into the spool, and what comes back: plain frozen values; tuples where one is made per message."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from engine.values.options import Options
from engine.values.outcome import Outcome
from engine.values.suppression import Level


class AcceptItem(NamedTuple):
    """One message to one or more recipients. `offset` and `length` are its body's place in the batch's blob.

    `options` is empty, or has one entry per recipient.
    """

    sender: str
    recipients: tuple[str, ...]
    domains: tuple[str, ...]
    stream: int
    tenant: str
    campaign: str
    offset: int
    length: int
    due_ms: int
    expires_ms: int
    key: str = ""
    options: tuple[Options | None, ...] = ()


@dataclass(frozen=True, slots=True)
class AcceptBatch:
    """`batch_key` (16 bytes) makes the batch idempotent."""

    batch_key: bytes
    items: Sequence[AcceptItem]
    blob: bytes


@dataclass(frozen=True, slots=True)
class AcceptResult:
    """`ids[i]` belong to item i; none: its key is another message's. `due_keys` are those of new messages, in the order
    of (item, recipient).

    `suppressed`: those of the ids whose recipient is on a suppression list; they are not sent, and have no due key.
    """

    ids: Sequence[Sequence[int]]
    due_keys: Sequence[bytes]
    repeated: bool = False
    suppressed: Sequence[int] = ()


@dataclass(frozen=True, slots=True)
class CampaignRecord:
    """A campaign's template, stored once. `template` has the parts of CampaignTemplate."""

    campaign: str
    tenant: str
    stream: int
    sender: str
    field_names: Sequence[str]
    template: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ChunkBatch:
    """A numbered slice of a campaign's recipients; all sequences have the same length."""

    campaign_no: int
    number: int
    digest: bytes
    recipients: Sequence[str]
    domains: Sequence[str]
    fields: Sequence[Sequence[str]]
    due_ms: int
    expires_ms: int
    tenant: str
    stream: int


class Remember(NamedTuple):
    """That a delivery is to be kept (engine/spool/sent.py): until when, and to which site it went."""

    expires_ms: int
    site: str


class Settlement(NamedTuple):
    """One outcome for one due key. `next_due_ms` is set exactly if the outcome is a deferral that goes on.

    `batch_no` is 0 if the caller does not know in which batch it was in flight, or if it was not.
    `free`: the attempt does not count (a suspension consumes no retry backoff). `category`, `hard` and `scope` say
    what the reply means (engine/bounces/classifier.py); the defaults are those of a delivery. `suppress`: the list
    that the recipient of a bounce goes to, None for no list. `remember`: keep to whom a delivery went, None: do not.
    """

    due_key: bytes
    outcome: Outcome
    batch_no: int
    next_due_ms: int | None = None
    free: bool = False
    category: str = "success"
    hard: bool = False
    scope: str = "recipient"
    suppress: Level | None = None
    remember: Remember | None = None


@dataclass(frozen=True, slots=True)
class SettleResult:
    """New due keys of the deferred, and how many due keys had been settled before."""

    due_keys: Sequence[bytes]
    stale: int
