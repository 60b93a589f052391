"""Random schedules of the hand-over between regions: `python -m tests.simulation.handover SEED | FIRST-LAST ...`

Three regions in memory. Requests and answers are lost, late and repeated; a region is killed between any two steps, its
operations done or not; a disk is lost; drains begin and end. Checked all the time: nothing is sent twice without a
mark. At the end, without faults: every message was sent, and one disk alone has the last word on it.
"""

import heapq
import random
import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.failover.handover import (
    MS,
    Ask,
    Book,
    Effect,
    Giver,
    Inquire,
    MakeOffer,
    Offer,
    Operation,
    Pick,
    Recall,
    Reply,
    Request,
    SettleOffer,
    Terms,
    Verdict,
    Write,
)
from engine.failover.spans import ids_of, of_ids

NAMES = ("a", "b", "c")
MESSAGES = 12
FAULTY = 20_000 * MS
QUIET = 30_000 * MS
TICK = 50 * MS


@dataclass(slots=True)
class Mail:
    """A message on one disk. `is_due`: it may be sent from here."""

    is_due: bool = True
    is_marked: bool = False


@dataclass(slots=True)
class Disk:
    """What survives a kill."""

    identity: bytes
    queued: dict[int, Mail] = field(default_factory=dict)
    moved: set[int] = field(default_factory=set)
    sent: set[int] = field(default_factory=set)
    flying: set[int] = field(default_factory=set)
    offers: dict[int, MakeOffer] = field(default_factory=dict)
    books: dict[str, Book] = field(default_factory=dict)
    number: int = 0

    def has(self, id_: int) -> bool:
        return id_ in self.queued or id_ in self.sent

    def make_offer(self, op: MakeOffer) -> object:
        ids = [i for i in ids_of(op.spans) if i in self.queued and self.queued[i].is_due]
        ids = [i for i in ids if i not in self.flying]
        spans = of_ids(ids)
        self.number = op.number
        if spans:
            self.offers[op.number] = MakeOffer(op.number, op.peer, op.disk, spans)
        for id_ in ids:
            self.queued[id_].is_due = False
        return spans

    def settle_offer(self, op: SettleOffer) -> object:
        row = self.offers.pop(op.number, None)
        taken = set(ids_of(op.taken))
        for id_ in ids_of(row.spans) if row is not None else ():
            if id_ in taken:
                del self.queued[id_]
                self.moved.add(id_)
            else:
                self.queued[id_].is_due = True
                self.queued[id_].is_marked |= op.marked
        return True

    def decide(self, request: Offer | Recall, mail: dict[int, bool], *, is_willing: bool) -> Verdict | None:
        if isinstance(request, Recall) and request.doubt:
            offered = {i for row in self.offers.values() for i in ids_of(row.spans)}
            if offered.intersection(ids_of(request.spans)):
                return None
            return Verdict(
                request.number, self.identity, of_ids(i for i in ids_of(request.spans) if self.has(i))
            )
        book = self.books.get(request.giver, Book())
        is_meant = isinstance(request, Offer) and request.disk == self.identity
        if is_meant and is_willing and book.is_open(request.number):
            taken = [i for i in ids_of(request.spans) if not self.has(i)]
            for id_ in taken:
                self.queued[id_] = Mail(is_marked=mail[id_])
                self.moved.discard(id_)
            book = book.took(request.number, of_ids(taken))
        else:
            book = book.close(request.number)
        self.books[request.giver] = book
        return Verdict(request.number, self.identity, book.verdict(request.number, request.spans))


class World:
    """See the module docstring."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 0
        self.problems: list[str] = []
        self.trace: list[str] = []
        self.wire: dict[int, list[bool]] = {}  # by message, the marks of its transmissions
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self.is_calm = False
        self.lost: set[int] = set()
        self.disks = {name: Disk(name.encode()) for name in NAMES}
        self.lives = dict.fromkeys(NAMES, 0)
        self.draining = dict.fromkeys(NAMES, False)
        self.givers: dict[str, Giver] = {}
        self._accept()
        for name in NAMES:
            self._start(name)
        self.later(FAULTY, self._calm)
        self.later(1_000 * MS, self._mischief)

    def _accept(self) -> None:
        for index in range(MESSAGES):
            self.disks[NAMES[index % 3]].queued[index + 1] = Mail()

    def ids(self) -> range:
        return range(1, MESSAGES + 1)

    def later(self, delay: int, what: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay, self._count, what))

    def run(self) -> list[str]:
        while self._events and self.now < FAULTY + QUIET:
            self.now, _, what = heapq.heappop(self._events)
            what()
        for id_ in set(self.ids()) - self.lost:
            holders = [name for name in NAMES if self.disks[name].has(id_)]
            if len(holders) != 1:
                self.problems.append(f"message {id_} is in the hands of {holders}")
            if id_ not in self.wire:
                self.problems.append(f"message {id_} was never sent")
        return self.problems

    def _say(self, what: str) -> None:
        self.trace.append(f"{self.now / MS:10.1f} {what}")

    # -- faults

    def _calm(self) -> None:
        self.is_calm = True
        for name in NAMES:
            self.draining[name] = False

    def _mischief(self) -> None:
        if self.is_calm:
            return
        name = self.rng.choice(NAMES)
        kind = self.rng.random()
        if kind < 0.5:
            self.draining[name] = not self.draining[name]
        elif kind < 0.95:
            self._kill(name)
        else:  # what it had in its own hands is gone with it
            old = self.disks[name]
            self.disks[name] = Disk(old.identity + b"'", number=old.number + 100)
            self.lost |= set(old.queued) | old.sent
            self._say(f"{name} loses its disk")
            self._start(name)
        self.later(self.rng.randrange(50, 1500) * MS, self._mischief)

    def _kill(self, name: str) -> None:
        self._say(f"{name} is killed")
        for id_ in self.disks[name].flying:
            self.disks[name].queued[id_].is_marked = True
        self.disks[name].flying.clear()
        self._start(name)

    def _start(self, name: str) -> None:
        disk = self.disks[name]
        self.lives[name] += 1
        peers = [other for other in NAMES if other != name]
        self.givers[name] = Giver(name, peers, offers=disk.offers.values(), number=disk.number + 1)
        self._tick(name, self.lives[name])

    # -- a region

    def _tick(self, name: str, life: int) -> None:
        if life != self.lives[name]:
            return
        giver = self.givers[name]
        self._look_around(name, giver)
        self._do(name, giver.tick(self.now))
        self._dispatch(name)
        self.later(TICK, lambda: self._tick(name, life))

    def _look_around(self, name: str, giver: Giver) -> None:
        """Whom it may give to."""
        giver.give([n for n in NAMES if n != name] if self.draining[name] else (), self.now)

    def _pace(self, name: str) -> float:
        """How likely a message is sent in a tick."""
        return 0.5 if self.is_calm else 0.01

    def _dispatch(self, name: str) -> None:
        """Now and then one message goes onto the wire, and is settled a while later."""
        disk = self.disks[name]
        due = [i for i, mail in disk.queued.items() if mail.is_due and i not in disk.flying]
        if not due or self.rng.random() > self._pace(name):
            return
        id_ = self.rng.choice(due)
        disk.flying.add(id_)
        life = self.lives[name]
        marks = self.wire.setdefault(id_, [])
        marks.append(disk.queued[id_].is_marked)
        self._say(f"{name} sends message {id_}")
        if len(marks) > 1 and not any(marks):
            self.problems.append(f"{self.now // MS}: {name} sends message {id_} again without a mark")

        def settle() -> None:
            if life == self.lives[name] and id_ in disk.flying:
                disk.flying.discard(id_)
                del disk.queued[id_]
                disk.sent.add(id_)

        self.later(self.rng.randrange(1, 300) * MS, settle)

    def _do(self, name: str, effects: list[Effect]) -> None:
        life = self.lives[name]
        for effect in effects:
            if isinstance(effect, Pick):
                found = of_ids(self._find(name, effect.peer))
                self._then(name, life, 5, lambda g, p=effect.peer, f=found: g.picked(p, f, self.now))
            elif isinstance(effect, Write):
                self._write(name, life, effect.operation)
            elif isinstance(effect, Ask):
                self._ask(name, life, effect.peer, effect.request)

    def _find(self, name: str, peer: str) -> list[int]:
        """What waits and may go to this peer."""
        due = [i for i, m in self.disks[name].queued.items() if m.is_due]
        return self.rng.sample(due, min(len(due), 3))

    def _then(self, name: str, life: int, most_ms: int, what: Callable[[Giver], list[Effect]]) -> None:
        def come() -> None:
            if life == self.lives[name]:
                self._do(name, what(self.givers[name]))

        self.later(self.rng.randrange(most_ms * MS + 1), come)

    def _write(self, name: str, life: int, op: Operation) -> None:
        disk = self.disks[name]

        def commit() -> None:
            if life != self.lives[name] and self.rng.random() < 0.5:
                return  # killed before the commit
            if self.disks[name] is not disk or life != self.lives[name]:
                return
            result = disk.make_offer(op) if isinstance(op, MakeOffer) else disk.settle_offer(op)
            self._say(f"{name} writes {op}: {result}")
            if self.rng.random() < 0.05 and not self.is_calm:
                self._kill(name)  # on disk, and nobody was told
                return
            self._then(name, life, 5, lambda g: g.written(op, result, self.now))

        self.later(self.rng.randrange(20 * MS), commit)

    def _ask(self, name: str, life: int, peer: str, request: Request) -> None:
        mail = {}
        if isinstance(request, Offer):
            queued = self.disks[name].queued
            mail = {i: queued[i].is_marked for i in ids_of(request.spans) if i in queued}
        lossy = 0.0 if self.is_calm else 0.2
        arrivals = [d for d in range(2) if d == 0 or self.rng.random() < 0.2]
        is_answered = self.rng.random() >= lossy
        is_told = False
        for copy in arrivals:
            if self.rng.random() < lossy:
                continue
            delay = self.rng.choice([5, 50, 3000 if not self.is_calm else 50]) * MS

            def arrive(copy: int = copy) -> None:
                reply = self._reply(peer, request, mail)
                self._say(f"{name} to {peer}: {request}: {reply}")
                if copy == 0 and is_answered:
                    if reply is None:
                        self._then(name, life, 30, lambda g: g.unanswered(peer, request, self.now))
                    else:
                        self._then(name, life, 30, lambda g: self._hear(name, g, peer, request, reply))

            self.later(self.rng.randrange(delay), arrive)
            is_told = is_told or (copy == 0 and is_answered)
        if not is_told:
            self.later(
                1000 * MS, lambda: self._then(name, life, 1, lambda g: g.unanswered(peer, request, self.now))
            )

    def _hear(self, name: str, giver: Giver, peer: str, request: Request, reply: Reply) -> list[Effect]:
        return giver.answered(peer, reply, self.now)

    def _reply(self, peer: str, request: Request, mail: dict[int, bool]) -> Reply | None:
        disk = self.disks[peer]
        is_willing = not self.draining[peer] and self.rng.random() < 0.9
        if isinstance(request, Inquire):
            return self._terms(peer, request, is_willing=is_willing)
        assert isinstance(request, Offer | Recall)
        verdict = disk.decide(request, mail, is_willing=is_willing)
        if self.rng.random() < 0.05 and not self.is_calm:
            self._kill(peer)
        return verdict

    def _terms(self, peer: str, question: Inquire, *, is_willing: bool) -> Terms:
        return Terms(self.disks[peer].identity, "" if is_willing else "draining")


def main(world_of: Callable[[int], World] = World) -> None:
    """Seeds, or runs of them as FIRST-LAST. Exit status 1 if one has broken a promise."""
    is_broken = False
    for text in sys.argv[1:]:
        first, _, last = text.partition("-")
        for seed in range(int(first), int(last or first) + 1):
            world = world_of(seed)
            problems = world.run()
            if problems:
                is_broken = True
                print(*world.trace, *(f"seed {seed}: {problem}" for problem in problems), sep="\n")
    sys.exit(is_broken)


if __name__ == "__main__":
    main()
