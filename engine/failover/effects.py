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
class Answer:
    """A client's batch: whose messages it is and their ids, or why it was refused ("" if it was not)."""

    token: int
    owner: str
    spans: Spans
    refusal: str = ""
    repeated: bool = False
    degraded: bool = False


@dataclass(frozen=True, slots=True)
class Hold:
    """Do not dispatch these until they are released."""

    spans: Spans


@dataclass(frozen=True, slots=True)
class Release:
    """These may be dispatched while the lease lasts. `adopted`: they came from another region just now."""

    spans: Spans
    adopted: bool = False


@dataclass(frozen=True, slots=True)
class Forget:
    """These are not ours any more."""

    spans: Spans


Effect = Send | Write | Answer | Hold | Release | Forget
