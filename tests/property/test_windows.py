"""The windows over any traffic, with a disk whose commits take time: nothing lost, nothing handed out twice, and when
all is done nothing is remembered. The glue between the parts is as in engine/region/region.py."""

from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

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
PICKS = st.lists(st.integers(0, 10**6), max_size=6)


@dataclass
class Commit:
    """A settlement that is on its way to the disk: the message's key now, and its next, None for none."""

    old: bytes
    new: bytes | None


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
        self.commits: list[Commit] = []
        self.offers: list[list[bytes]] = []
        self.in_flight: dict[int, bytes] = {}
        self.windows = Windows(
            index=self.disk,
            scheduler=self.scheduler,
            clock=self.clock,
            limits=self.config.limits,
            flows=self.flows,
            want_route=self.wanted.append,
            expire=lambda keys: self.commits.extend(Commit(key, None) for key in keys),
            wake_pool=lambda pool: None,
        )
        for queue, names in self.disk.names.items():
            first_ms = self.disk.first_due_after(queue, None)
            if first_ms is not None:
                self.windows.learn(queue, *names, first_ms)

    # -- what happens

    @rule(
        queue=st.integers(1, QUEUES),
        count=st.integers(1, 8),
        ahead=st.sampled_from([-3, 0, 0, 0, 9, 80_000]),
        heard=st.booleans(),
    )
    def accept(self, queue: int, count: int, ahead: int, heard: bool) -> None:
        """On disk now; the region hears of it a little later."""
        keys = []
        for _ in range(count):
            keys.append(key_of(queue, self.clock.wall_ms() + ahead, self.next_id))
            self.next_id += 1
        self.disk.rows.update(dict.fromkeys(keys, NEVER_MS))
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
        self.windows.tick()
        if routed:
            self.resolve(fails=False)
        self.windows.refill(0)
        for decision in decisions(self.scheduler.take(0, self.clock.monotonic_ns(), limit)):
            key = key_of(decision.queue, decision.due_ms, decision.id)
            assert decision.id not in self.in_flight, "handed out twice"
            assert decision.id not in self.done, "handed out after its end"
            assert key in self.disk.rows
            assert not any(commit.old == key for commit in self.commits), "handed out while it is settled"
            assert decision.due_ms <= self.clock.wall_ms()
            self.in_flight[decision.id] = key

    @rule(picks=PICKS, wait_ms=st.sampled_from([0, 0, 1, 2, 700, 40_000]))
    def settle(self, picks: list[int], wait_ms: int) -> None:
        """`wait_ms` 0: delivered, else deferred for so long; 1: due at once."""
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
        commits, self.commits = self.commits[:count], self.commits[count:]
        for commit in commits:
            if self.disk.rows.pop(commit.old, None) is not None:
                if commit.new is None:
                    self.done.add(id_of(commit.old))
                else:
                    self.disk.rows[commit.new] = NEVER_MS
        self.windows.settled([id_of(commit.old) for commit in commits])
        for commit in commits:
            if commit.new is not None and commit.new in self.disk.rows:
                self.windows.redue(commit.new)

    @rule(picks=PICKS)
    def give_back(self, picks: list[int]) -> None:
        ids = self.some_in_flight(picks)
        self.scheduler.give_back(packed(ids))
        for id_ in ids:
            del self.in_flight[id_]

    @rule(picks=PICKS)
    def cancel(self, picks: list[int]) -> None:
        unheard = {id_of(key) for keys in self.offers for key in keys}  # nobody can know their ids yet
        ids = {1 + pick % self.next_id for pick in picks} - unheard
        self.scheduler.remove(packed(ids))
        free = {id_ for id_ in ids if not self.scheduler.contains(id_)}
        for key in [key for key in self.disk.rows if id_of(key) in free]:
            del self.disk.rows[key]
            self.done.add(id_of(key))

    def some_in_flight(self, picks: list[int]) -> list[int]:
        held = list(self.in_flight)
        return list(dict.fromkeys(held[pick % len(held)] for pick in picks)) if held else []

    @rule(seconds=st.sampled_from([0.001, 0.01, 1, IDLE_S + 1, 90, SITE_IDLE_S + 1]))
    def wait(self, seconds: float) -> None:
        self.clock.advance(seconds)

    @rule()
    def sweep(self) -> None:
        now_ns = self.clock.monotonic_ns()
        self.windows.sweep(100)
        self.flows.sweep(now_ns, 100)
        self.sites.sweep(now_ns, 100)

    @precondition(lambda self: self.in_flight)
    @rule()
    def restart(self) -> None:
        """What was not committed is lost with the process; what was in flight is due again."""
        self.start()

    # -- the end

    def teardown(self) -> None:
        """With time everything goes out, and then nothing is left in memory."""
        if not hasattr(self, "disk"):
            return
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
TestTraffic.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
