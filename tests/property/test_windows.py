"""The windows over any traffic, with a disk whose commits take time: nothing lost, nothing handed out twice, and when
all is done nothing is remembered. The glue between the parts is as in engine/region (outcomes.py, cancelling.py)."""

import random
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.config.load import parse_fleet
from engine.providers.profiles import load_profiles
from engine.region.flows import Flows
from engine.region.sites import IDLE_S as SITE_IDLE_S
from engine.region.sites import Counts, Sites
from engine.region.windows import IDLE_S, Windows
from engine.routing.route import Failure, Route
from engine.values.reply import Reply
from native.scheduler import Scheduler
from tests.support.clock import ManualClock
from tests.support.decisions import decisions, packed
from tests.support.due_index import NEVER_MS, DueIndex
from tests.support.fleets import fleet_data

QUEUES = 2
DOMAINS = 2
NO_ROUTE = Failure("deferred", Reply(0, "4.4.4", "no route"))
SURVIVORS = ("a", "b")
PICKS = st.lists(st.integers(0, 10**6), max_size=6)


@dataclass
class Commit:
    """A settlement that is on its way to the disk: the message's key now, and its next, None for none. `marks`: how
    often it was announced."""

    old: bytes
    new: bytes | None
    marks: int = 1


@dataclass
class Cancel:
    """A cancellation that is on its way: of these ids, of which those with these keys were in memory."""

    ids: list[int]
    keys: list[bytes]
    fails: bool


def key_of(queue: int, due_ms: int, id_: int) -> bytes:
    return queue.to_bytes(4, "big") + due_ms.to_bytes(6, "big") + id_.to_bytes(8, "big")


def id_of(key: bytes) -> int:
    return int.from_bytes(key[10:], "big")


class Traffic(RuleBasedStateMachine):
    @initialize(window=st.integers(1, 6), more=st.integers(0, 12))
    def build(self, window: int, more: int) -> None:
        self.clock = ManualClock()
        self.disk = DueIndex()
        for queue in range(1, QUEUES + 1):
            # several domains per site, several campaigns per domain
            self.disk.names[queue] = f"d{queue % DOMAINS}.example", queue // 3, "tenant", f"c{queue % 3}"
        limits = {"ready_window": window, "ready_total": window + more, "window_per_connection": 1000}
        providers = {"default": {"rate": "unlimited", "max_connections": 100}}
        self.config = parse_fleet(fleet_data(limits=limits, providers=providers))
        self.next_id = 1
        self.latest_ms = 0
        self.done: set[int] = set()
        self.start()

    def start(self) -> None:
        """As a region starts from its spool."""
        self.scheduler = Scheduler(seed=1)
        self.sites = Sites(
            config=self.config,
            region="eu",
            profiles=load_profiles(self.config.providers),
            scheduler=self.scheduler,
        )
        self.flows = Flows(scheduler=self.scheduler, sites=self.sites)
        self.wanted: list[str] = []
        self.commits: list[Commit | Cancel] = []
        self.offers: list[list[bytes]] = []
        self.in_flight: dict[int, bytes] = {}
        self.held: dict[str, list[int]] = {name: [] for name in SURVIVORS}
        self.windows = Windows(
            index=self.disk,
            scheduler=self.scheduler,
            clock=self.clock,
            limits=self.config.limits,
            flows=self.flows,
            want_route=self.wanted.append,
            expire=self.expire,
            wake_pool=lambda pool: None,
        )
        for queue, names in self.disk.names.items():
            first_ms = self.disk.first_due_after(queue, None)
            if first_ms is not None:
                self.windows.learn(queue, *names, first_ms)

    def expire(self, keys: list[bytes]) -> None:
        for _ in range(2):  # when they are found, and when their settlement begins
            self.windows.settling([id_of(key) for key in keys])
        self.commits.extend(Commit(key, None, marks=2) for key in keys)

    # -- what happens

    @rule(
        queue=st.integers(1, QUEUES),
        count=st.integers(1, 8),
        ahead=st.sampled_from([-3, 0, 0, 0, 9, 80_000]),
        lasts=st.sampled_from([None, None, 2, 50_000]),
        heard=st.sampled_from([True, True, False]),
    )
    def accept(self, queue: int, count: int, ahead: int, lasts: int | None, heard: bool) -> None:
        """On disk now; the region hears of it a little later. `lasts`: until its expiry."""
        keys = []
        for _ in range(count):
            keys.append(key_of(queue, self.clock.wall_ms() + ahead, self.next_id))
            self.next_id += 1
        expires_ms = NEVER_MS if lasts is None else self.clock.wall_ms() + ahead + lasts
        self.disk.rows.update(dict.fromkeys(keys, expires_ms))
        self.offers.append(keys)
        if heard:
            self.hear()

    @rule()
    def hear(self) -> None:
        for keys in self.offers:
            self.windows.offer(keys, self.clock.wall_ms())
        self.offers.clear()

    @rule(fails=st.sampled_from([False, False, True]))
    def resolve(self, fails: bool) -> None:
        wanted = list(self.wanted)
        self.wanted.clear()
        for domain in wanted:
            if fails:
                while keys := self.windows.take_unroutable(domain, NO_ROUTE, 3):
                    for key in keys:
                        self.settle_one(key, 500)
                    self.commit()
            else:
                site = self.sites.open(
                    f"mx{domain[:2]}" if domain < "d1" else "mx",
                    "default",
                    now_ns=self.clock.monotonic_ns(),
                    counts=Counts(0),
                    terms={},
                )
                self.windows.routed(domain, Route(site.name, "default", (), "disabled"), site)

    @rule(limit=st.integers(1, 10), routed=st.booleans())
    def take(self, limit: int, routed: bool = True) -> None:
        self.latest_ms = max(self.latest_ms, self.clock.wall_ms())
        self.windows.tick()
        if routed:
            self.resolve(fails=False)
        self.windows.refill(0)
        for decision in decisions(self.scheduler.take(0, self.clock.monotonic_ns(), limit)):
            key = key_of(decision.queue, decision.due_ms, decision.id)
            assert decision.id not in self.in_flight, "handed out twice"
            assert decision.id not in self.done, "handed out after its end"
            assert key in self.disk.rows
            assert not self.windows.is_settling(decision.id), "handed out while it is settled"
            assert not self.windows.is_held(decision.id), "handed out while a survivor has it"
            assert decision.due_ms <= self.latest_ms
            self.in_flight[decision.id] = key

    @rule(picks=PICKS, wait_ms=st.sampled_from([0, 0, 1, 2, 700, 40_000]))
    def settle(self, picks: list[int], wait_ms: int) -> None:
        """`wait_ms` 0: delivered, else deferred for so long; 1: due at once."""
        self.hear()  # what a pool has was put on disk after its acceptance
        for id_ in self.some_in_flight(picks):
            key = self.in_flight.pop(id_)
            self.scheduler.settle(packed([id_]))
            self.settle_one(key, wait_ms)

    def settle_one(self, key: bytes, wait_ms: int) -> None:
        self.windows.settling([id_of(key)])
        if not wait_ms:
            self.commits.append(Commit(key, None))
            return
        due_ms = self.clock.wall_ms() + wait_ms - 1
        queue = int.from_bytes(key[:4], "big")
        self.commits.append(Commit(key, key_of(queue, due_ms, id_of(key))))

    @rule(count=st.integers(1, 9))
    def commit(self, count: int = 1000) -> None:
        """In the order in which they came: the region hears of what was accepted before of what was settled after."""
        self.hear()
        group, self.commits = self.commits[:count], self.commits[count:]
        for one in group:
            if isinstance(one, Commit):
                self.put_settled(one)
            elif not one.fails:
                for key in [key for key in self.disk.rows if id_of(key) in one.ids]:
                    self.end(key)
        for one in group:
            if isinstance(one, Cancel):
                self.windows.settled(one.ids)
                self.windows.restore(one.keys)
                continue
            for _ in range(one.marks):
                self.windows.settled([id_of(one.old)])
            if one.new is not None and one.new in self.disk.rows:
                self.windows.redue(one.new)

    def put_settled(self, commit: Commit) -> None:
        if commit.old not in self.disk.rows:
            return  # it is settled already
        if commit.new is None:
            self.end(commit.old)
        else:
            self.disk.rows[commit.new] = self.disk.rows.pop(commit.old)

    def end(self, key: bytes) -> None:
        del self.disk.rows[key]
        self.done.add(id_of(key))

    @rule(wait_ms=st.sampled_from([0, 1, 700, 40_000]))
    def turn(self, wait_ms: int) -> None:
        """All that may go now goes, and all has one answer, which is on disk at once."""
        self.take(10)
        self.settle(list(range(len(self.in_flight))), wait_ms)
        self.commit()

    @rule(picks=PICKS)
    def give_back(self, picks: list[int]) -> None:
        ids = self.some_in_flight(picks)
        self.scheduler.give_back(packed(ids))
        for id_ in ids:
            del self.in_flight[id_]

    @rule(picks=PICKS, fails=st.booleans())
    def cancel(self, picks: list[int], fails: bool) -> None:
        unheard = {id_of(key) for keys in self.offers for key in keys}  # nobody can know their ids yet
        ids = {1 + pick % self.next_id for pick in picks} - unheard
        keys = [key for id_ in ids if (key := self.scheduler.key_of(id_)) is not None]
        self.scheduler.remove(packed(ids))
        free = [id_ for id_ in ids if not (self.scheduler.contains(id_) or self.windows.is_held(id_))]
        self.windows.settling(free)
        self.commits.append(Cancel(free, keys, fails))

    # -- pools that outlive the region

    @rule(name=st.sampled_from(SURVIVORS), picks=PICKS, wait_ms=st.sampled_from([None, 0, 1, 700]))
    def survivor_speaks(self, name: str, picks: list[int], wait_ms: int | None) -> None:
        """Of some of what it has. None: it gives them back."""
        for id_ in self.some(self.held[name], picks):
            self.held[name].remove(id_)
            on_disk = next((key for key in self.disk.rows if id_of(key) == id_), None)
            key = self.windows.release(id_) or on_disk
            assert key == on_disk
            if key is not None and wait_ms is None:
                self.windows.restore([key])
            elif key is not None:
                self.settle_one(key, wait_ms or 0)

    @rule(name=st.sampled_from(SURVIVORS))
    def survivor_dies(self, name: str) -> None:
        self.held[name].clear()
        self.windows.release_all(name)

    def some_in_flight(self, picks: list[int]) -> list[int]:
        return self.some(list(self.in_flight), picks)

    def some(self, ids: list[int], picks: list[int]) -> list[int]:
        return list(dict.fromkeys(ids[pick % len(ids)] for pick in picks)) if ids else []

    @precondition(lambda self: self.next_id > 1)
    @rule(seconds=st.sampled_from([0.001, 0.01, 1, IDLE_S + 1, 90, SITE_IDLE_S + 1]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule(seconds=st.sampled_from([0.001, 1, 90, 4000]))
    def step_back(self, seconds: float) -> None:
        """The wall clock is set back; what was due is due."""
        self.latest_ms = max(self.latest_ms, self.clock.wall_ms())
        self.clock.step_wall(-seconds)

    @rule()
    def sweep(self) -> None:
        now_ns = self.clock.monotonic_ns()
        self.windows.sweep(100)
        self.flows.sweep(now_ns, 100)
        self.sites.sweep(now_ns, 100)

    @precondition(lambda self: self.in_flight)
    @rule(happens=st.sampled_from([False, False, True]), survive=st.booleans())
    def restart(self, happens: bool, survive: bool) -> None:
        """What was not committed is lost with the process; what was in flight is due again, unless pools `survive`."""
        if not happens:
            return
        on_disk = {id_of(key) for key in self.disk.rows}
        left = [id_ for ids in (self.in_flight, *self.held.values()) for id_ in ids if id_ in on_disk]
        self.start()
        if survive:
            for place, name in enumerate(SURVIVORS):
                self.held[name] = left[place :: len(SURVIVORS)]
                self.windows.hold(name, self.held[name])

    @invariant()
    def nothing_is_forgotten(self) -> None:
        """What the module promises of each due key, at every moment and not only once all is done."""
        unheard = {key for keys in self.offers for key in keys} if hasattr(self, "offers") else set()
        for key in self.disk.rows if hasattr(self, "disk") else ():
            number, due_ms = int.from_bytes(key[:4], "big"), int.from_bytes(key[4:10], "big")
            id_ = id_of(key)
            is_busy = self.windows.is_settling(id_) or self.windows.is_held(id_)
            if is_busy or key in unheard or self.scheduler.key_of(id_) == key:
                continue
            queue = self.windows.get(number)
            assert queue is not None
            assert queue.cursor is None or queue.cursor < key
            assert queue.backlogged or 0 < queue.armed_ms <= due_ms

    # -- the end

    def teardown(self) -> None:
        """With time everything goes out, and then nothing is left in memory."""
        if not hasattr(self, "disk"):
            return
        for name in SURVIVORS:
            self.survivor_dies(name)
        self.clock.advance(max(0, self.latest_ms - self.clock.wall_ms()) / 1000)
        for _ in range(self.next_id + 10):
            self.hear()
            self.commit()
            self.take(100)
            self.settle(list(range(len(self.in_flight))), 0)
            self.clock.advance(1 if self.windows.backlogged() else 80)
        self.commit()
        assert not self.disk.rows, "something that was due is forgotten"
        assert self.done == set(range(1, self.next_id))
        for _ in range(3):
            self.clock.advance(SITE_IDLE_S + 1)
            self.take(10)
            self.sweep()
        stats = self.scheduler.stats()
        left = len(self.windows), len(self.flows), len(self.sites), stats["flows"], stats["sites"]
        assert left == (0, 0, 0, 0, 0)
        assert (len(self.sites.campaigns), len(self.sites.tenants), self.windows.backlogged()) == (0, 0, 0)


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=100, stateful_step_count=60, deadline=None)


@pytest.mark.parametrize("seed", range(30))
def test_long_traffic(seed: int) -> None:
    """The same rules at random, in runs longer than hypothesis makes them."""
    draw = random.Random(seed)
    traffic = Traffic()
    traffic.build(window=draw.randint(1, 6), more=draw.randint(0, 12))

    def picks() -> list[int]:
        return [draw.randint(0, 10**6) for _ in range(draw.randint(0, 6))]

    def accept() -> None:
        ahead, lasts = draw.choice([-3, 0, 0, 0, 9, 80_000]), draw.choice([None, None, 2, 50_000])
        traffic.accept(draw.randint(1, QUEUES), draw.randint(1, 8), ahead, lasts, draw.random() < 0.6)

    steps: list[Callable[[], None]] = [
        accept,
        traffic.hear,
        lambda: traffic.resolve(draw.random() < 0.3),
        lambda: traffic.take(draw.randint(1, 10), draw.random() < 0.7),
        lambda: traffic.settle(picks(), draw.choice([0, 0, 1, 2, 700, 40_000])),
        lambda: traffic.turn(draw.choice([0, 0, 1, 700, 40_000])),
        lambda: traffic.commit(draw.randint(1, 9)),
        lambda: traffic.give_back(picks()),
        lambda: traffic.cancel(picks(), draw.random() < 0.3),
        lambda: traffic.wait(draw.choice([0.001, 0.01, 1, IDLE_S + 1, 90, SITE_IDLE_S + 1])),
        lambda: (
            traffic.step_back(draw.choice([0.001, 0.001, 1, 1, 90, 4000])) if draw.random() < 0.1 else None
        ),
        lambda: traffic.survivor_speaks(draw.choice(SURVIVORS), picks(), draw.choice([None, 0, 1, 700])),
        traffic.sweep,
    ]
    for _ in range(400):
        draw.choice(steps)()
        traffic.nothing_is_forgotten()
        if draw.random() < 0.02:
            traffic.restart(happens=True, survive=draw.random() < 0.7)
        if draw.random() < 0.02:
            traffic.survivor_dies(draw.choice(SURVIVORS))
    traffic.teardown()
