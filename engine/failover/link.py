"""An owner's stream of copies to its standby: numbered entries, applied there in order, acknowledged from its disk.

A session begins with what the standby holds (Welcome) and what is queued here; the difference is dropped there or
copied, and what happens meanwhile follows in the same stream. So the standby may restart, lose messages or be another
one: a new session puts it right. Memory: at most WINDOW entries unacknowledged, the rest waits in the store; batches
that wait for their receipt are bounded by who submits them, drops are gathered into one entry.
"""

from collections import deque
from dataclasses import dataclass, field, replace
from enum import IntEnum

from engine.failover.effects import Effect, Export, Send, Write
from engine.failover.messages import Ack, Closed, Copy, Data, Drop, Entry, Hello, Update, Welcome
from engine.failover.spans import Span, Spans, ids_of, of_ids, size, subtract, union
from engine.failover.store import Queued, TakeQueued
from engine.failover.timing import Timing

WINDOW = 32
PIECE = 256  # messages per entry when a standby catches up
STALE_LIMIT = 100_000
EMPTY_AT_ONCE = 32  # exports of what was settled meanwhile, some 1 ms each; the next tick goes on


class State(IntEnum):
    DOWN = 1
    GREETING = 2  # Hello is out
    LISTING = 3  # welcomed; the store lists what is queued
    OPEN = 4


@dataclass(slots=True)
class Sent:
    """An entry that is not acknowledged. `keys`: batches whose copy it is."""

    entry: Entry
    key: bytes = b""
    sent_at: int = 0


@dataclass(slots=True)
class Backlog:
    """What the standby lacks: idempotency keys from a cursor on, and messages. `is_patient`: these go first."""

    keys: bool = True
    is_patient: bool = False
    cursor: bytes = b""
    spans: deque[Span] = field(default_factory=deque)

    def __bool__(self) -> bool:
        return self.keys or bool(self.spans)

    def take(self) -> Spans:
        piece: list[Span] = []
        room = PIECE
        while self.spans and room:
            first, count = self.spans.popleft()
            if count > room:
                self.spans.appendleft((first + room, count - room))
                count = room
            piece.append((first, count))
            room -= count
        return tuple(piece)


class Link:
    """See the module docstring. `life` makes this process's sessions greater than those of its predecessors."""

    def __init__(self, timing: Timing, *, life: int) -> None:
        self._timing = timing
        self._session = self._sessions_from = life << 24
        self.peer = ""
        self.state = State.DOWN
        self._epoch = 0
        self._theirs: Spans = ()
        self.form = 1  # in which payloads are (Welcome)
        self.held_nothing = False  # whether the standby held nothing when the session was opened
        self._queued: list[Span] = []  # listed so far
        self._renewed: list[Span] = []  # of these, what is sent although the standby has it
        self._late: list[Span] = []  # owned since the listing began
        self._window: deque[Sent] = deque()
        self._base = 0  # number of the first entry of the window
        self._urgent: deque[tuple[Spans, bytes]] = deque()  # batches that wait for their receipt
        self._gone: set[int] = set()
        self._updates: set[int] = set()
        self._stale: set[int] = set()  # changed while there was no session
        self._backlog = Backlog(keys=False)
        self._keys_owed = False  # all keys are to be told once more, when the standby answers
        self._reading = 0  # exports that are handed out
        self._empty = 0  # exports without anything, one after another
        self._told_upto = -1  # the entry with which the backlog was first empty, -1: it has not been since
        self._keys_upto = -1  # the entry before which all keys had gone out first, -1: they have not
        # batches whose copy is safe and whose release is not on disk, with the number of their entry, the lowest first
        self._unreleased: dict[bytes, int] = {}
        self._greeted_at = 0
        self._heard_at = 0
        self._resent_at = 0

    # -- the session

    def connect(self, peer: str, epoch: int, now: int) -> list[Effect]:
        """Begin a session, with the standby of before or with another."""
        if peer != self.peer:
            self._heard_at = now
        self._end()
        self.peer, self._epoch = peer, epoch
        if not peer:
            return []
        self._session = max(self._session, self._sessions_from) + 1
        self.state = State.GREETING
        self._greeted_at = now
        return [Send(peer, Hello(epoch, self._session))]

    def _end(self) -> None:
        for sent in self._window:
            if isinstance(sent.entry, Update):
                self._stale.update(ids_of(sent.entry.spans))
        self._stale |= self._updates
        while len(self._stale) > STALE_LIMIT:
            self._stale.pop()
        self._queued.clear()
        self._renewed.clear()
        self._late.clear()
        self._window.clear()
        self._urgent.clear()
        self._gone.clear()
        self._updates.clear()
        self._backlog = Backlog(keys=False)
        self._keys_owed = False
        self._reading = 0
        self._told_upto = -1
        self._keys_upto = -1
        self._unreleased.clear()
        self._base = 0
        self.state = State.DOWN

    def greet_again(self) -> None:
        """The standby may know nothing of the session, with the next tick there is another one."""
        self._end()
        self._greeted_at = 0

    def renumber(self, life: int) -> None:
        """This process has a greater number: so have its sessions from the next one on. Who was greeted under a smaller
        one may not listen."""
        self._sessions_from = life << 24
        if self.state is State.GREETING:
            self.greet_again()

    def is_usable(self, now: int) -> bool:
        """Whether a batch that is given to it now may expect its acknowledgement soon."""
        if self.state is not State.OPEN:
            return False
        return not self._window or now - self._heard_at < self._timing.patience

    @property
    def session(self) -> int:
        return self._session

    def is_waiting(self, key: bytes) -> bool:
        """Whether the copies of this key are on their way, in this session."""
        return any(sent.key == key for sent in self._window) or any(k == key for _, k in self._urgent)

    def is_complete(self) -> bool:
        """Whether the standby has everything."""
        is_idle = not self._backlog and not self._window and not self._urgent and not self._reading
        return self.state is State.OPEN and is_idle and not self._keys_owed

    def has_copied_all(self) -> bool:
        """Whether the standby has all messages; some keys may be on their way."""
        is_read = not self._backlog.spans and not self._urgent and not self._reading
        is_safe = not any(isinstance(sent.entry, Copy) and sent.entry.spans for sent in self._window)
        return self.state is State.OPEN and is_read and is_safe and 0 <= self._keys_upto <= self._base

    def is_idle(self) -> bool:
        """Whether it has everything, and nothing is on its way or to be told."""
        return self.is_complete() and not self._gone and not self._updates

    def is_caught_up(self) -> bool:
        """Whether the standby has everything but batches that wait for their receipt, and changes."""
        return (
            self.state is State.OPEN
            and not self._backlog
            and not self._keys_owed
            and not self._reading
            and not any(isinstance(sent.entry, Copy) and not sent.key for sent in self._window)
        )

    def has_told(self) -> bool:
        """Whether the standby has what was there when the session began, and what was adopted since, with all keys.
        Other messages without a receipt that are owned since may be on their way."""
        return self.state is State.OPEN and 0 <= self._told_upto <= self._base

    def lag(self) -> int:
        """Messages that the standby still lacks, of those that were queued when the session began."""
        return size(self._backlog.spans)

    def welcomed(self, peer: str, message: Welcome, now: int) -> list[Effect]:
        if peer != self.peer or message.session != self._session or self.state is not State.GREETING:
            return []
        self.state = State.LISTING
        self._heard_at = now
        self._theirs = message.copies
        self.form = getattr(message, "form", 1)
        return [Write(TakeQueued(unsafe=False, tag=self._session))]

    def gathered(self, operation: TakeQueued, part: Queued) -> tuple[Spans | None, list[Effect]]:
        """A part of what the store lists: all of it with the last part, else None and what asks for the next one.

        What changes meanwhile is known here: `_late`, `_gone`, and batches that wait.
        """
        if operation.tag != self._session or self.state is not State.LISTING:
            return None, []
        self._queued.extend(part.spans)
        self._renewed.extend(part.with_keys)
        if part.last >= 0:
            return None, [Write(replace(operation, after=part.last))]
        queued = union(self._queued)
        self._queued.clear()
        return queued, []

    def listed(
        self,
        operation: TakeQueued,
        queued: Spans,
        waiting: list[tuple[Spans, bytes]],
        now: int,
        *,
        unsafe: Spans = (),
    ) -> bool:
        """The store says what is queued and safe. False: of an earlier session.

        `waiting`: batches whose copy is to be made. `unsafe`: these, and others that are asked for still: what the
        standby has of them stays, for an earlier process may have given the receipt.
        """
        if operation.tag != self._session or self.state is not State.LISTING:
            return False
        self.state = State.OPEN
        self._heard_at = now
        self.held_nothing = not self._theirs
        held = subtract(self._theirs, union(of_ids(self._stale), self._renewed))
        self._renewed.clear()
        extra = subtract(self._theirs, union(queued, unsafe))
        self._theirs, self._stale = (), set()
        if extra:
            self._window.append(Sent(Drop(extra)))
        self._backlog = Backlog(spans=deque([*subtract(queued, held), *self._late]))
        self._late.clear()
        self._urgent.extend(waiting)
        return True

    def closed(self, peer: str, message: Closed, now: int) -> list[Effect]:
        if peer != self.peer or message.session != self._session or self.state is State.DOWN:
            return []
        self._end()
        self._greeted_at = now
        return []

    # -- what happens here

    def copy(self, spans: Spans, key: bytes) -> None:
        """A batch that waits for its receipt; unless the session is open it comes with the next listing."""
        if self.state is State.OPEN:
            self._urgent.append((spans, key))

    def owns(self, spans: Spans, *, adopted: bool = False) -> None:
        """These are owned now and have no copy yet."""
        if adopted and spans:
            self._told_upto = -1
        if self.state is State.OPEN:
            self._backlog.spans.extend(spans)
        elif self.state is State.LISTING:
            self._late.extend(spans)

    def repeat_keys(self) -> None:
        """There are keys that no copy has brought: the standby hears of all of them once more."""
        self._backlog.keys, self._backlog.cursor = self.state is State.OPEN, b""
        self._backlog.is_patient = False
        self._told_upto = -1

    def owe_keys(self) -> None:
        """Like `repeat_keys`, for what happens often while the standby is silent: one pass begins when it answers, and
        another only when that, and the messages, have gone out."""
        self._keys_owed = self.state is State.OPEN
        if self._keys_owed:
            self._told_upto = -1

    def settled(self, ids: list[int]) -> None:
        if self.state in (State.OPEN, State.LISTING):
            self._gone.update(ids)

    def changed(self, ids: list[int]) -> None:
        if self.state in (State.OPEN, State.LISTING):
            self._updates.update(ids)
        else:
            self._stale.update(ids)
            while len(self._stale) > STALE_LIMIT:
                self._stale.pop()

    # -- the stream

    def pump(self, now: int) -> list[Effect]:
        """Fill the window."""
        effects: list[Effect] = []
        if self.state is not State.OPEN:
            return effects
        if not self._window:
            self._pay()  # the standby has answered all already
        if self._told_upto < 0 and not self._backlog and not self._keys_owed and not self._reading:
            self._told_upto = self._base + len(self._window)
        for index, sent in enumerate(self._window):
            if not sent.sent_at:
                sent.sent_at = now
                effects.append(self._data(index))
        while len(self._window) < WINDOW:
            if self._urgent:
                effects.append(Export(*self._urgent.popleft()))
            elif self._gone:
                gone, self._gone = self._gone, set()
                self._send(Drop(of_ids(gone)), b"", now, effects)
            elif self._updates:
                ids = sorted(self._updates)[:PIECE]
                self._updates.difference_update(ids)
                effects.append(Export(of_ids(ids), update=True))
            elif self._backlog.keys and not (self._backlog.is_patient and self._backlog.spans):
                effects.append(Export((), keys=True, cursor=self._backlog.cursor))
                self._reading += 1
                return effects  # the next cursor is not known yet
            elif self._backlog:
                effects.append(Export(self._backlog.take()))
            else:
                break
            if isinstance(effects[-1], Export):
                self._reading += 1
                return effects  # one at a time: what was read goes out before anything that changes it
        return effects

    def exported(self, export: Export, spans: Spans, payload: bytes, cursor: bytes, now: int) -> list[Effect]:
        """What an Export has read. Nothing if all of it was settled meanwhile."""
        effects: list[Effect] = []
        self._reading = max(0, self._reading - 1)
        if self.state is not State.OPEN:
            return effects
        if export.keys and export.cursor == self._backlog.cursor:
            self._backlog.cursor = cursor
            self._backlog.keys = bool(cursor)
        if export.update:
            if spans:
                self._send(Update(spans, payload), b"", now, effects)
        elif spans or payload:
            self._send(Copy(spans, payload, export.key), export.key, now, effects)
        if export.keys and not self._backlog.keys and self._keys_upto < 0:
            self._keys_upto = self._base + len(self._window)
        self._empty = 0 if effects or export.keys else self._empty + 1
        if self._empty == EMPTY_AT_ONCE:
            self._empty = 0
            return []
        return [*effects, *self.pump(now)]

    def _send(self, entry: Entry, key: bytes, now: int, effects: list[Effect]) -> None:
        if not self._window:
            self._heard_at = max(self._heard_at, now)  # nothing was expected of the standby until now
        self._window.append(Sent(entry, key, now))
        effects.append(self._data(len(self._window) - 1))

    def _data(self, index: int) -> Send:
        entry = self._window[index].entry
        base = next(iter(self._unreleased.values()), self._base)
        return Send(self.peer, Data(self._session, self._base + index, entry, base))

    def released(self, key: bytes) -> None:
        """Its release is on disk: the standby may vouch for it."""
        self._unreleased.pop(key, None)

    def acknowledged(self, peer: str, message: Ack, now: int) -> list[bytes]:
        """Returns the keys of batches whose copies are safe now."""
        if peer != self.peer or message.session != self._session or self.state is not State.OPEN:
            return []
        safe = []
        while self._window and self._base < message.upto:
            sent = self._window.popleft()
            self._base += 1
            self._heard_at = now
            if sent.key:
                safe.append(sent.key)
                self._unreleased.setdefault(sent.key, self._base - 1)
        self._pay()
        return safe

    def _pay(self) -> None:
        if self._keys_owed and not self._backlog and not self._reading:
            self._keys_owed = False
            self.repeat_keys()
            self._backlog.is_patient = True

    def tick(self, now: int) -> list[Effect]:
        """Send again what was not answered: only the first entry, the standby may have the others."""
        if not self.peer:
            return []
        resend = self._timing.resend
        if self.state in (State.DOWN, State.GREETING):
            if now - self._greeted_at < resend:
                return []
            if self.state is State.DOWN:
                return self.connect(self.peer, self._epoch, now)
            self._greeted_at = now
            return [Send(self.peer, Hello(self._epoch, self._session))]
        effects: list[Effect] = []
        if self._window and self._window[0].sent_at and now - self._window[0].sent_at >= resend:
            first = self._window[0]
            first.sent_at = now
            effects.append(self._data(0))
        return [*effects, *self.pump(now)]
