"""The standby's part: keep peers' copies in the order of their streams, adopt them when Fleet calls their owner dead.

Each question becomes one operation of the store, which judges the epoch inside its transaction; the answer goes out
when it is on disk. Questions may be repeated, and repeating one changes nothing.
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from engine.failover.effects import Effect, Send, Write
from engine.failover.link import WINDOW
from engine.failover.messages import (
    FORM,
    Ack,
    Ask,
    Closed,
    Copy,
    Data,
    Entry,
    Hello,
    RegionView,
    Standing,
    Welcome,
)
from engine.failover.spans import Spans
from engine.failover.store import Adopt, Adopted, Apply, Inspect, OpenSession

FENCED = "superseded"
NO_SESSION = "no such session"


@dataclass(slots=True)
class Session:
    """One owner's stream as it arrives."""

    number: int
    is_open: bool = False
    taken: int = 0  # given to the store
    stored: int = 0  # on disk
    base: int = 0  # the owner knows that what is below it is on disk
    early: dict[int, Entry] = field(default_factory=dict)
    unconfirmed: deque[tuple[int, bytes]] = field(
        default_factory=deque
    )  # keys of copies, by the numbers of their entries

    def confirmed(self) -> tuple[bytes, ...]:
        """Keys of copies that the owner knows to be safe."""
        keys = []
        while self.unconfirmed and self.unconfirmed[0][0] < self.base:
            keys.append(self.unconfirmed.popleft()[1])
        return tuple(keys)


class StandbyRole:
    """See the module docstring."""

    def __init__(self, fences: dict[str, int], held: dict[str, int], unfinished: Iterable[str] = ()) -> None:
        self.fences = fences  # also those that are on their way to the disk
        self.closed = dict(fences)  # those that are on disk
        self.held = held
        self._unfinished = set(unfinished)  # adopted from, as far as an earlier process came
        self._sessions: dict[str, Session] = {}
        self._adopting: set[str] = set()
        self._salvaged: dict[
            str, int
        ] = {}  # owners with a new disk: the epoch for which their copies were adopted

    def reset(self) -> None:
        """This region has a new epoch: every owner has to begin again, and so has every adoption."""
        self._sessions.clear()
        self._adopting.clear()
        self.fences = dict(self.closed)

    def end_session(self, owner: str) -> None:
        """The owner has to begin another one with the next entry."""
        self._sessions.pop(owner, None)

    def is_adopting(self) -> bool:
        return bool(self._adopting)

    # -- copies

    def hello(self, owner: str, message: Hello) -> list[Effect]:
        session = self._sessions.get(owner)
        if session is not None and session.number > message.session:
            return []
        if session is None or session.number != message.session:
            self._sessions[owner] = Session(message.session)
        return [Write(OpenSession(owner, message.epoch, message.session))]

    def opened(self, operation: OpenSession, copies: Spans | None) -> list[Effect]:
        session = self._sessions.get(operation.owner)
        if session is None or session.number != operation.session:
            return []
        if copies is None:
            del self._sessions[operation.owner]
            return [Send(operation.owner, Closed(operation.session, FENCED))]
        session.is_open = True
        self.held[operation.owner] = max(self.held.get(operation.owner, 0), operation.epoch)
        return [Send(operation.owner, Welcome(operation.session, copies, FORM))]

    def data(self, owner: str, message: Data) -> list[Effect]:
        session = self._sessions.get(owner)
        is_known = session is not None and session.number == message.session and session.is_open
        # a session that was lost here (a new epoch), and opened once more by a greeting that came late, has a gap
        if session is None or not is_known or message.base > session.taken:
            return [Send(owner, Closed(message.session, NO_SESSION))]
        session.base = max(session.base, message.base)
        if message.number < session.taken:
            return [Send(owner, Ack(message.session, session.stored))]
        if message.number >= session.taken + WINDOW:
            return []
        session.early[message.number] = message.entry
        effects: list[Effect] = []
        while session.taken in session.early:
            entry = session.early.pop(session.taken)
            epoch, confirmed = self.held[owner], session.confirmed()
            effects.append(Write(Apply(owner, epoch, message.session, session.taken, entry, confirmed)))
            if isinstance(entry, Copy) and entry.key:
                session.unconfirmed.append((session.taken, entry.key))
            session.taken += 1
        return effects

    def applied(self, operation: Apply, problem: str) -> list[Effect]:
        session = self._sessions.get(operation.owner)
        if session is None or session.number != operation.session:
            return []
        if problem:
            del self._sessions[operation.owner]
            return [Send(operation.owner, Closed(operation.session, problem))]
        session.stored = operation.number + 1
        return [Send(operation.owner, Ack(operation.session, session.stored))]

    # -- adoption

    def is_open(self, owner: str, epoch: int) -> bool:
        """Whether something of an owner that was called dead in that epoch is to be adopted still, as far as is known:
        nothing was yet, or not all of it before this process started, or before this region was called dead itself."""
        fence = self.fences.get(owner, 0)
        return fence < epoch or (fence == epoch and owner in self._unfinished and owner not in self._adopting)

    def adopt(self, owner: str, fence: int, epoch: int, *, forced: bool = False) -> list[Effect]:
        if owner in self._adopting:
            return []
        self._adopting.add(owner)
        self.fences[owner] = max(self.fences.get(owner, 0), fence)
        self._sessions.pop(owner, None)
        return [Write(Adopt(owner, fence, epoch, forced))]

    def obey(self, view: tuple[RegionView, ...], name: str, epoch: int) -> list[Effect]:
        """Adopt from what the view calls dead."""
        effects: list[Effect] = []
        for region in view:
            is_dead = region.name != name and region.standing is Standing.DEAD
            if is_dead and self.is_open(region.name, region.epoch):
                effects += self.adopt(region.name, region.epoch, epoch)
        return effects

    def adopted(self, operation: Adopt, result: Adopted) -> list[Effect]:
        self.closed[operation.owner] = max(self.closed.get(operation.owner, 0), operation.fence)
        if result.more:
            self._unfinished.add(operation.owner)
            return [Write(operation)]
        self._unfinished.discard(operation.owner)
        self._adopting.discard(operation.owner)
        if operation.forced:
            self._salvaged[operation.owner] = operation.fence
        return []

    # -- a returning owner

    def inspected(self, operation: Inspect) -> None:
        """It is on disk that the owner has asked."""
        self.closed[operation.owner] = max(self.closed.get(operation.owner, 0), operation.epoch)
        self._unfinished.discard(operation.owner)

    def asked(self, owner: str, message: Ask, epoch: int) -> list[Effect]:
        if self.held.get(owner, 0) >= message.epoch:
            return []  # it has returned in that epoch: the question has come late
        if message.fresh and self._salvaged.get(owner, 0) < message.epoch:
            return self.adopt(owner, message.epoch, epoch, forced=True)  # it asks again
        self.fences[owner] = max(self.fences.get(owner, 0), message.epoch)
        return [Write(Inspect(owner, message.epoch, message.nonce, message.queued, message.held))]
