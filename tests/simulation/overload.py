"""Random schedules of the hand-over with overloaded regions: `python -m tests.simulation.overload SEED | FIRST-LAST`

The faults of tests/simulation/handover.py, and regions that send at different speeds, which change. What is given away
and taken for being overloaded is the region's own code (engine/region/relief.py), on the schedule's clock. Checked as
well: without drains what was handed over stays where it is; a peer gets one portion in a second.
"""

from collections import Counter
from typing import Any

from engine.failover.handover import MS, Effect, Giver, Inquire, Reply, Request, Terms
from engine.region.need import Path
from engine.region.relief import Relief
from tests.simulation.handover import FAULTY, NAMES, Mail, World, main

PATH: Path = ("site", 1, "shop")
MESSAGES = 60
SPEEDS = (0.005, 0.02, 0.2)
AFTER_MS = 2_000


class Here:
    """What a region's relief sees of the world: its clock, its sources (free), and what waits there."""

    def __init__(self, world: "Overloaded", name: str) -> None:
        self._world = world
        self._name = name

    def wall_ms(self) -> int:
        return self._world.now // MS

    def monotonic_ns(self) -> int:
        return self._world.now

    def may_carry(self, stream: int, tenant: str) -> list[int]:
        return [0]

    def blocked_until(self, site: str, sources: object, now_ms: int) -> int:
        return 0

    def held_by(self, site: str, sources: object, now_ms: int) -> str:
        return "rate"

    def paths(self) -> set[Path]:
        return {PATH} if self._world.waiting(self._name) else set()

    def full_sites(self) -> set[str]:
        return set()

    def waited_ms(self, path: Path, now_ms: int) -> int:
        since = [self._world.accepted_ms[id_] for id_ in self._world.waiting(self._name)]
        return max(0, now_ms - min(since, default=now_ms))

    def before_ms(self, site: str, stream: int, now_ms: int) -> int:
        return self.waited_ms(PATH, now_ms)

    def unrouted_ms(self, now_ms: int) -> int:
        return 0

    def take_cost(self) -> int:
        return 1

    def note_events(self, events: list[tuple[int, str, dict[str, Any]]]) -> None:
        self._world.changes[self._name] += len(events)


class Overloaded(World):
    """See the module docstring. `faults`: without them nothing is lost, late or killed, and nobody is drained."""

    def __init__(
        self, seed: int, *, overloaded_ms: int | None = AFTER_MS, speeds: dict[str, float] | None = None
    ) -> None:
        self.homes: dict[int, str] = {}
        self.accepted_ms: dict[int, int] = {}
        self.guests: dict[
            int, tuple[str, bytes]
        ] = {}  # what is, or was, elsewhere than at home: where, on which disk
        self.reliefs: dict[str, Relief] = {}
        self.portions: list[
            tuple[tuple[str, int, str], int, int]
        ] = []  # (giver, its life, peer), when, how many
        self.changes: Counter[str] = Counter()
        self._overloaded_ms = overloaded_ms
        self._speeds = speeds
        super().__init__(seed)
        if speeds is not None:
            self.is_calm = True

    def ids(self) -> range:
        return range(1, MESSAGES + 1)

    def _accept(self) -> None:
        """One region gets most of it."""
        self.has_drains = self.rng.random() < 0.5
        for id_ in self.ids():
            home = NAMES[0] if self._speeds is not None else self.rng.choice("aaaabc")
            self.homes[id_] = home
            delay = 0 if self._speeds is not None else self.rng.randrange(FAULTY // 2)
            self.later(delay, lambda id_=id_: self._take_in(id_))

    def _take_in(self, id_: int) -> None:
        self.accepted_ms[id_] = self.now // MS
        self.disks[self.homes[id_]].queued[id_] = Mail()

    def waiting(self, name: str) -> list[int]:
        disk = self.disks[name]
        return [id_ for id_, mail in disk.queued.items() if mail.is_due and id_ not in disk.flying]

    def _mischief(self) -> None:
        if self._speeds is not None:
            return
        if self.rng.random() < 0.2:
            self.pace[self.rng.choice(NAMES)] = self.rng.choice(SPEEDS)
        super()._mischief()
        if not self.has_drains:
            self.draining = dict.fromkeys(NAMES, False)

    def _start(self, name: str) -> None:
        if not self.reliefs:
            self.pace = self._speeds or {name: self.rng.choice(SPEEDS) for name in NAMES}
        here = Here(self, name)
        self.reliefs[name] = Relief(
            blocked_ms=AFTER_MS,
            overloaded_ms=self._overloaded_ms,
            clock=here,
            events=here,
            paths=here,
            mail=here,
            waits=here,
            is_full=lambda site: False,
        )
        super()._start(name)

    def _pace(self, name: str) -> float:
        return 0.5 if self.is_calm and self._speeds is None else self.pace[name]

    def _look_around(self, name: str, giver: Giver) -> None:
        relief, peers = self.reliefs[name], [n for n in NAMES if n != name]
        if self.draining[name]:
            relief.rest()
        elif not relief.look():
            peers = []
        giver.paths, giver.overloaded = relief.blocked, relief.overloaded
        giver.give(peers, self.now)
        if not self.has_drains:
            self._check_guests(name)

    def _check_guests(self, name: str) -> None:
        """What has been handed over stays where it is, or is lost with that disk."""
        disk = self.disks[name]
        for id_, mail in disk.queued.items():
            host, identity = self.guests.get(id_, (name, disk.identity))
            if host != name and mail.is_due and self.disks[host].identity == identity:
                self.problems.append(f"{self.now // MS}: message {id_} went from {host} to {name}")
            if self.homes[id_] != name:
                self.guests[id_] = name, disk.identity

    def _find(self, name: str, peer: str) -> list[int]:
        if self.draining[name]:
            return super()._find(name, peer)
        only, most = self.reliefs[name].wanted(peer, self.givers[name].paths_of(peer), self.now)
        if PATH not in only:
            return []
        found = sorted(
            id_
            for id_ in self.waiting(name)
            if self.homes[id_] == name and self.accepted_ms[id_] < only[PATH]
        )[:most]
        if found:
            self.reliefs[name].gave(peer, self.now)
            self._check_portion(name, peer, len(found))
        return found

    def _check_portion(self, name: str, peer: str, count: int) -> None:
        way = name, self.lives[name], peer
        before = [at for other, at, _ in self.portions if other == way]
        if before and self.now - before[-1] < 1_000 * MS:
            self.problems.append(f"{self.now // MS}: {name} gives {peer} a second portion within a second")
        self.portions.append((way, self.now, count))

    def _hear(self, name: str, giver: Giver, peer: str, request: Request, reply: Reply) -> list[Effect]:
        if isinstance(request, Inquire) and isinstance(reply, Terms):
            self.reliefs[name].heard(peer, request, reply, self.now)
        return super()._hear(name, giver, peer, request, reply)

    def _terms(self, peer: str, question: Inquire, *, is_willing: bool) -> Terms:
        terms = super()._terms(peer, question, is_willing=is_willing)
        return Terms(terms.disk, terms.refusal, self.reliefs[peer].takes(question))


if __name__ == "__main__":
    main(Overloaded)
