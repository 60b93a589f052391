"""Outcomes of attempts, and what part of the world an answer speaks about."""

from enum import IntEnum, StrEnum
from typing import NamedTuple

from engine.values.reply import Reply


class OutcomeKind(IntEnum):
    """The numeric values are stored in the ledger and the events: never renumber."""

    QUEUED = 1
    DELIVERED = 2
    BOUNCED = 3
    EXPIRED = 4
    SUPPRESSED = 5
    CANCELLED = 6
    DEFERRED = 7  # an outcome of an attempt; the ledger goes on saying QUEUED
    RETURNED = 8  # handed back unsent by the pool: no attempt happened, the charge is given back
    MOVED = 9  # another region owns it now
    REPLACED = 10  # another region accepted its batch, under ids of its own, before this one gave a receipt

    def __str__(self) -> str:
        return self.name.lower()


FINAL_KINDS = frozenset(
    {
        OutcomeKind.DELIVERED,
        OutcomeKind.BOUNCED,
        OutcomeKind.EXPIRED,
        OutcomeKind.SUPPRESSED,
        OutcomeKind.CANCELLED,
    }
)


class Scope(StrEnum):
    """What a reply is about: DESIGN.md section 3."""

    RECIPIENT = "recipient"
    MESSAGE = "message"
    SESSION = "session"
    HOST = "host"
    PROVIDER = "provider"
    SOURCE = "source"
    NETBLOCK = "netblock"
    DOMAIN = "domain"


class Outcome(NamedTuple):
    """One attempt's result for one id, as the pool reports it. A tuple, because one is made per message.

    `source` is the source's number (index in the fleet configuration), `host` the MX host or "" if none was reached,
    `at_ms` the time of the reply. `possible_duplicate`: the peer may have accepted this attempt although we did not
    see its answer (contract, promise 3). `is_relayed`: a delivery that the host was not asked to report, though the
    submitter had wishes (RFC 3461 section 5.2.2).
    """

    id: int
    kind: OutcomeKind
    scope: Scope
    reply: Reply
    source: int
    host: str
    at_ms: int
    possible_duplicate: bool = False
    is_relayed: bool = False
