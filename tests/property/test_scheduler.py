"""The scheduler over any traffic: nothing lost, nothing handed out twice, no limit exceeded in any window, no
starvation, shares by weight; across restarts and clocks that step."""

import itertools
from collections import Counter
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from native.scheduler import Scheduler
from tests.reference.scheduler import Cell, FlowKey, Reference, Source, Total
from tests.support.decisions import decisions, due_keys, packed, unpacked

MS = 1_000_000
TENANTS = 3

limits = st.fixed_dictionaries(
    {
        "interval": st.sampled_from([0, 3 * MS, 10 * MS, 10 * MS, 70 * MS]),
        "burst": st.sampled_from([1, 1, 1, 2, 4]),
        "window": st.sampled_from([1, 4, 12, 12, 100]),
        "cap": st.sampled_from([None, None, 3, 10, 30]),
    }
)
topologies = st.fixed_dictionaries(
    {
        "horizon": st.sampled_from([0, 5 * MS, 50 * MS]),
        "quantum": st.integers(1, 5),
        "patience": st.sampled_from([900 * 10**9, 100 * MS]),
        "sources": st.lists(
            st.tuples(
                st.sampled_from([7, 7, 7, 6, 5, 1]),
                st.sampled_from([0, 0, 0, 1, 2]),
                st.integers(0, TENANTS - 1),
            ),
            min_size=1,
            max_size=4,
        ),
        "serving": st.lists(
            st.tuples(st.sampled_from([0x1FF, 0x1FF, 0o333, 0o444, 0]), st.sampled_from([0, 0, 0x1FF])),
            min_size=1,
            max_size=4,
        ),
        "sites": st.lists(st.integers(0, 1), min_size=1, max_size=3),  # the pool of each
        "limits": st.lists(limits, min_size=1, max_size=5),
        "totals": st.lists(
            st.tuples(
                st.sampled_from([0, 0, 2 * MS, 7 * MS, 100 * MS]), st.sampled_from([None, None, 5, 25])
            ),
            min_size=1,
            max_size=3,
        ),
        "weights": st.lists(st.integers(1, 3), min_size=TENANTS, max_size=TENANTS),
    }
)
ANY = st.integers(0, 10**6)


def dated(ids: Iterable[int]) -> bytes:
    """Due keys, each due at the time that its id says."""
    return b"".join(due_keys([id_], due_ms=id_) for id_ in ids)


class Traffic(RuleBasedStateMachine):
    """The scheduler beside the reference. The clock is that of one incarnation; `base` makes it real time."""

    @initialize(topology=topologies, seed=ANY)
    def build(self, topology: dict[str, Any], seed: int) -> None:
        self.topology = topology
        self.reference = Reference(topology["horizon"], topology["patience"])
        self.pools = topology["sites"]
        self.next_id = 1
        self.now = self.reference.now = 1_000 * MS
        self.persisted: dict[tuple[int, int], int] = {}
        self.persisted_totals: dict[int, int] = {}
        for number, (streams, tenancy, tenant) in enumerate(topology["sources"]):
            made = Source(number // 2, streams, tenancy, tenant)
            made.serves, made.lends = topology["serving"][number % len(topology["serving"])]
            self.reference.sources[number] = made
        for site, pool in enumerate(self.pools):
            self.reference.pools[site] = pool
            self.reference.totals[site] = Total(*topology["totals"][site % len(topology["totals"])])
            for source in self.reference.sources:
                chosen = topology["limits"][(site * 3 + source) % len(topology["limits"])]
                self.reference.cells[source, site] = Cell(**chosen)
        self.start(seed, fresh=True)

    def start(self, seed: int, *, fresh: bool) -> None:
        """An incarnation as a region builds it: limits of unknown past, daily counts from disk."""
        self.started = self.now
        self.scheduler = Scheduler(
            seed=seed,
            horizon_ns=self.topology["horizon"],
            quantum=self.topology["quantum"],
            patience_ns=self.topology["patience"],
        )
        self.flows: dict[int, FlowKey] = {}
        for number, source in self.reference.sources.items():
            self.scheduler.set_source(
                number,
                netblock=source.netblock,
                streams=source.streams,
                tenancy=source.tenancy,
                tenant=source.tenant,
            )
            self.scheduler.set_serves(number, source.serves, source.lends)
        for tenant, weight in enumerate(self.topology["weights"]):
            self.scheduler.tenant_weight(tenant, weight)
            self.scheduler.set_class(tenant, self.reference.classes.get(tenant, 0))
        for site in range(len(self.pools)):
            self.open_site(site, fresh=fresh)

    def open_site(self, site: int, *, fresh: bool) -> None:
        self.scheduler.add_site(site, self.pools[site])
        total = self.reference.totals[site]
        left = -1
        if total.cap is not None:
            left = max(0, total.cap - self.persisted_totals.get(site, 0))
            assert left <= total.cap - total.used
            total.used = total.cap - left
        now = max(self.now, self.reference.now)  # its clock does not step back
        total.tat = now + self.topology["horizon"] + total.interval
        self.scheduler.set_total(site, interval_ns=total.interval, daily_left=left, now_ns=now)
        for (source_no, number), cell in self.reference.cells.items():
            if number != site:
                continue
            left = -1 if cell.cap is None else max(0, cell.cap - self.persisted.get((source_no, site), 0))
            if cell.cap is not None:
                assert left <= cell.cap - cell.used
                cell.used = cell.cap - left
            self.scheduler.set_limit(
                source_no,
                site,
                interval_ns=cell.interval,
                burst=cell.burst,
                window=cell.window,
                daily_left=left,
                fresh=fresh,
                now_ns=self.now,
            )

    def flow(self, key: FlowKey) -> int:
        number = self.scheduler.flow(*key)
        assert self.flows.setdefault(number, key) == key
        return number

    def some_in_flight(self, picks: list[int]) -> list[int]:
        held = list(self.reference.in_flight)
        return [held[pick % len(held)] for pick in picks] if held else []

    # -- messages

    @rule(
        site=ANY,
        stream=st.integers(0, 2),
        tenant=st.integers(0, TENANTS - 1),
        campaign=st.integers(0, 1),
        count=st.integers(1, 12),
        again=st.integers(0, 3),
    )
    def add(self, site: int, stream: int, tenant: int, campaign: int, count: int, again: int) -> None:
        key = site % len(self.pools), stream, tenant, campaign
        ids = range(max(1, self.next_id - again), self.next_id + count)
        self.next_id += count
        assert self.scheduler.add(self.flow(key), dated(ids)) == self.reference.add(key, ids)

    @rule(
        pool=st.integers(0, 1),
        step=st.sampled_from([0, 0, MS, 4 * MS, 12 * MS, 80 * MS, 5_000 * MS, -MS, -60 * MS]),
        limit=st.integers(1, 20),
    )
    def take(self, pool: int, step: int, limit: int) -> None:
        self.now = max(self.started, self.now + step)
        decided = decisions(self.scheduler.take(pool, self.now, limit))
        self.reference.take(pool, self.now, limit, decided, self.flows)
        for decision in decided:  # the counts are on disk before the batch is handed over
            cell = self.reference.cells[decision.source, decision.site]
            left = self.scheduler.daily_left(decision.source, decision.site)
            if cell.cap is not None and left is not None:
                self.persisted[decision.source, decision.site] = cell.cap - left
            total = self.reference.totals[decision.site]
            left = self.scheduler.total_left(decision.site)
            assert (left is None) == (total.cap is None)
            if total.cap is not None and left is not None:
                self.persisted_totals[decision.site] = total.cap - left

    @rule(picks=st.lists(ANY, max_size=8), unknown=ANY)
    def settle(self, picks: list[int], unknown: int) -> None:
        ids = [*self.some_in_flight(picks), self.next_id + unknown]
        self.scheduler.settle(packed(ids))
        self.reference.settle(ids)

    @rule(picks=st.lists(ANY, max_size=8))
    def give_back(self, picks: list[int]) -> None:
        ids = list(dict.fromkeys(self.some_in_flight(picks)))
        self.scheduler.give_back(packed(ids))
        self.reference.give_back(ids)

    @rule(picks=st.lists(ANY, min_size=1, max_size=4))
    def remove(self, picks: list[int]) -> None:
        ids = [1 + pick % self.next_id for pick in picks]
        assert self.scheduler.remove(packed(ids)) == self.reference.remove(ids)

    @rule(which=ANY)
    def look_at_the_next(self, which: int) -> None:
        if self.flows:
            number = list(self.flows)[which % len(self.flows)]
            line = self.reference.lines.get(self.flows[number])
            assert self.scheduler.head_due_ms(number) == (next(iter(line)) if line else -1)

    @rule(which=ANY)
    def drop_flow(self, which: int) -> None:
        if not self.flows:
            return
        number = list(self.flows)[which % len(self.flows)]
        key = self.flows[number]
        busy = bool(self.reference.lines.get(key)) or any(
            key == other for other, _ in self.reference.in_flight.values()
        )
        if self.scheduler.drop_flow(number):
            assert not busy
            del self.flows[number]

    @rule(site=ANY, drained=st.booleans())
    def drop_site(self, site: int, drained: bool) -> None:
        """A site without flows is forgotten; at the next message for it its limits are of unknown past again."""
        site %= len(self.pools)
        if drained:
            self.drain(site)
        for number in [number for number, key in self.flows.items() if key[0] == site]:
            if self.scheduler.drop_flow(number):
                del self.flows[number]
        has_flows = any(key[0] == site for key in self.flows.values())
        if not self.scheduler.drop_site(site):
            return
        assert not has_flows
        self.reference.forget_site(site)
        self.open_site(site, fresh=False)

    def drain(self, site: int) -> None:
        """Nothing is ready or in flight there, and a take has gone by."""
        ready = [n for key, line in self.reference.lines.items() if key[0] == site for n in line]
        flying = [n for n, (key, _) in self.reference.in_flight.items() if key[0] == site]
        self.scheduler.remove(packed(ready))
        self.reference.remove(ready)
        self.scheduler.settle(packed(flying))
        self.reference.settle(flying)
        self.take(self.pools[site], 0, 20)

    # -- limits change

    @rule(source=ANY, site=ANY, ahead=st.sampled_from([0, MS, 30 * MS, 1_000 * MS]), everywhere=st.booleans())
    def suspend(self, source: int, site: int, ahead: int, everywhere: bool) -> None:
        source %= len(self.reference.sources)
        site %= len(self.pools)
        until = self.now + ahead
        if everywhere:
            self.scheduler.suspend(source, -1, until)
            self.reference.sources[source].suspended_until = until
        else:
            self.scheduler.suspend(source, site, until)
            self.reference.cells[source, site].suspended_until = until

    @rule(site=ANY, netblock=st.integers(0, 1), ahead=st.sampled_from([0, 30 * MS]))
    def suspend_netblock(self, site: int, netblock: int, ahead: int) -> None:
        site %= len(self.pools)
        self.scheduler.suspend_netblock(netblock, site, self.now + ahead)
        for number, source in self.reference.sources.items():
            if source.netblock == netblock:
                self.reference.cells[number, site].suspended_until = self.now + ahead

    @rule(site=ANY, ahead=st.sampled_from([0, MS, 30 * MS]))
    def suspend_site(self, site: int, ahead: int) -> None:
        site %= len(self.pools)
        self.scheduler.suspend_site(site, self.now + ahead)
        self.reference.suspended_sites[site] = self.now + ahead

    @rule(source=ANY, site=ANY, weight=st.sampled_from([0, 100, 1000]))
    def set_weight(self, source: int, site: int, weight: int) -> None:
        cell = source % len(self.reference.sources), site % len(self.pools)
        self.scheduler.set_weight(*cell, weight)
        self.reference.cells[cell].weight = weight

    @rule(source=ANY, up=st.booleans())
    def set_source_up(self, source: int, up: bool) -> None:
        source %= len(self.reference.sources)
        self.scheduler.set_source_up(source, up)
        self.reference.sources[source].up = up

    # -- classes of tenants

    @rule(tenant=st.integers(0, TENANTS - 1), number=st.integers(0, 2))
    def set_class(self, tenant: int, number: int) -> None:
        self.scheduler.set_class(tenant, number)
        self.reference.classes[tenant] = number

    @rule(source=ANY, serves=st.sampled_from([0x1FF, 0o333, 0o444]), lends=st.sampled_from([0, 0x1FF]))
    def set_serves(self, source: int, serves: int, lends: int) -> None:
        source %= len(self.reference.sources)
        self.scheduler.set_serves(source, serves, lends)
        self.reference.sources[source].serves = serves
        self.reference.sources[source].lends = lends

    # -- shards

    @rule(pool=st.integers(0, 1), source=ANY, shard=st.integers(0, 2))
    def set_shard(self, pool: int, source: int, shard: int) -> None:
        seat = pool, source % len(self.reference.sources)
        if self.reference.at_seat(*seat) and self.reference.shards.get(seat, 0) != shard:
            with pytest.raises(ValueError, match=r"has \d+ messages at shard"):
                self.scheduler.set_shard(*seat, shard)
            return
        self.scheduler.set_shard(*seat, shard)
        self.reference.shards[seat] = shard

    @rule(pool=st.integers(0, 1), source=ANY, held=st.booleans())
    def hold(self, pool: int, source: int, held: bool) -> None:
        seat = pool, source % len(self.reference.sources)
        self.scheduler.hold(*seat, held)
        (self.reference.held.add if held else self.reference.held.discard)(seat)

    @rule(pool=st.integers(0, 1), closed=st.sets(st.integers(0, 2)))
    def close_shards(self, pool: int, closed: set[int]) -> None:
        self.scheduler.close_shards(pool, sum(1 << shard for shard in closed))
        self.reference.closed[pool] = closed

    @rule()
    def midnight(self) -> None:
        for (source, site), cell in self.reference.cells.items():
            if cell.cap is not None:
                self.scheduler.renew_daily(source, site, cell.cap)
        for site, total in self.reference.totals.items():
            if total.cap is not None:
                self.scheduler.renew_total(site, total.cap)
        self.reference.new_day()
        self.persisted_totals = {site: total.used for site, total in self.reference.totals.items()}
        # an incarnation that starts now finds yesterday's counts for what is outstanding: those that it wrote
        self.persisted = {key: cell.used for key, cell in self.reference.cells.items()}

    @precondition(lambda self: self.next_id > 10)
    @rule(down=st.sampled_from([0, MS, 500 * MS]), reboot=st.booleans(), seed=ANY)
    def restart(self, down: int, reboot: bool, seed: int) -> None:
        """Everything in memory is gone, and after a reboot the monotonic clock begins anew; what is queued is on
        disk. The clock had gone to `now`, whatever steps back a caller made since."""
        real = self.reference.now + self.reference.base + down
        self.now = 5 * MS if reboot else self.reference.now + down
        self.reference.restart(self.now, real - self.now)
        self.start(seed, fresh=False)
        for key, line in self.reference.lines.items():
            if line:
                assert self.scheduler.add(self.flow(key), dated(line)) == len(line)

    # -- at any time

    @invariant()
    def both_hold_the_same(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        reference, made = self.reference, self.scheduler
        assert made.held() == sum(map(len, reference.lines.values())) + len(reference.in_flight)
        for number, key in self.flows.items():
            assert made.ready(number) == len(reference.lines.get(key, ()))
        for pool in range(2):
            expected = [n for n, (key, _) in reference.in_flight.items() if self.pools[key[0]] == pool]
            assert sorted(unpacked(made.in_flight_of(pool))) == sorted(expected)
            by_shard = [unpacked(made.in_flight_of(pool, shard)) for shard in range(3)]
            assert sorted(itertools.chain(*by_shard)) == sorted(expected)
            for shard, ids in enumerate(by_shard):
                assert made.shard_outstanding(pool, shard) == len(ids)
                for n in ids:
                    assert reference.shards.get((pool, reference.in_flight[n][1][0]), 0) == shard
        for (source, site), cell in reference.cells.items():
            assert made.outstanding(source, site) == len(cell.outstanding)
            left = made.daily_left(source, site)
            assert left == (None if cell.cap is None else cell.cap - cell.used)

    @invariant()
    def no_window_holds_too_much(self) -> None:
        if hasattr(self, "reference"):
            self.reference.check_windows()

    @invariant()
    def it_wakes_in_time(self) -> None:
        """A pool that sleeps until `next_wake_ns` misses nothing: until then nothing may be handed out."""
        if not hasattr(self, "reference"):
            return
        for pool in range(2):
            wake = self.scheduler.next_wake_ns(pool)
            if wake == 0:
                continue
            until = self.reference.now + 10_000 * MS if wake < 0 else wake - (1 << 20)
            for key, line in self.reference.lines.items():
                if line and self.pools[key[0]] == pool and until > self.reference.now:
                    assert not self.reference.allowed(key, until), f"{key} sleeps through its time"


TestTraffic = Traffic.TestCase
TestTraffic.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)


@given(
    weights=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    quantum=st.integers(1, 6),
    interval=st.sampled_from([0, 2 * MS, 9 * MS]),
    sources=st.integers(1, 4),
    window=st.sampled_from([1, 5, 1000]),
    visits=st.lists(
        st.tuples(st.sampled_from([0, MS, 5 * MS, 20 * MS]), st.integers(1, 9)), min_size=20, max_size=120
    ),
)
@settings(max_examples=100, deadline=None)
def test_tenants_with_work_are_never_more_than_one_turn_apart(
    weights: list[int],
    quantum: int,
    interval: int,
    sources: int,
    window: int,
    visits: list[tuple[int, int]],
) -> None:
    made = Scheduler(seed=7, horizon_ns=10 * MS, quantum=quantum)
    made.add_site(0, 0)
    for source in range(sources):
        made.set_source(source, netblock=0, streams=7, tenancy=0, tenant=0)
        made.set_limit(source, 0, interval_ns=interval, window=window)
    for tenant, weight in enumerate(weights):
        made.tenant_weight(tenant, weight)
        first = 1 + tenant * 10_000
        made.add(made.flow(0, 2, tenant, 0), due_keys(range(first, first + 2000)))
    served: Counter[int] = Counter()
    now = 0
    for step, limit in visits:
        now += step
        found = decisions(made.take(0, now, limit))
        served.update((decision.id - 1) // 10_000 for decision in found)
        made.settle(packed(decision.id for decision in found))
        shares = [served[tenant] / weight for tenant, weight in enumerate(weights)]
        assert max(shares) - min(shares) <= quantum


@given(
    flows=st.lists(
        st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)),
        min_size=1,
        max_size=12,
        unique=True,
    ),
    interval=st.sampled_from([0, 2 * MS, 9 * MS]),
    quantum=st.integers(1, 4),
    limit=st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_no_flow_starves(flows: list[tuple[int, int, int]], interval: int, quantum: int, limit: int) -> None:
    """Whatever the others bring: two lower lanes get one message in 32 each, and in a lane each flow its turns."""
    made = Scheduler(seed=7, horizon_ns=5 * MS, quantum=quantum)
    made.add_site(0, 0)
    made.set_source(0, netblock=0, streams=7, tenancy=0, tenant=0)
    made.set_limit(0, 0, interval_ns=interval, window=50)
    numbers = [made.flow(0, *flow) for flow in flows]
    bound = 32 * (quantum + 1) * 10
    for number in numbers:
        first = 1 + number * 10_000
        made.add(number, due_keys(range(first, first + bound)))
    served: Counter[int] = Counter()
    now = 0
    while sum(served.values()) < bound:
        now += 10 * MS
        found = decisions(made.take(0, now, limit))
        served.update(decision.flow for decision in found)
        made.settle(packed(decision.id for decision in found))
    assert all(served[number] > 0 for number in numbers)


@given(
    horizon=st.sampled_from([0, 5 * MS, 50 * MS]),
    interval=st.sampled_from([3 * MS, 10 * MS, 70 * MS]),
    burst=st.integers(1, 3),
    cap=st.sampled_from([None, 3, 30]),
    visits=st.lists(
        st.tuples(st.sampled_from([0, MS, 12 * MS, 80 * MS]), st.integers(1, 9), st.booleans()),
        min_size=3,
        max_size=25,
    ),
)
@settings(max_examples=150, deadline=None)
def test_a_site_that_comes_and_goes_never_exceeds_its_limits(
    horizon: int, interval: int, burst: int, cap: int | None, visits: list[tuple[int, int, bool]]
) -> None:
    made = Scheduler(seed=7, horizon_ns=horizon)
    made.set_source(0, netblock=0, streams=7, tenancy=0, tenant=0)
    sent: list[int] = []
    now, next_id, site, fresh = 1_000 * MS, 1, -1, True
    for step, count, goes in visits:
        now += step
        if site < 0:
            site = 0
            made.add_site(site, 0)
            left = -1 if cap is None else cap - len(sent)
            made.set_limit(
                0,
                site,
                interval_ns=interval,
                burst=burst,
                window=100,
                daily_left=left,
                fresh=fresh,
                now_ns=now,
            )
            flow, fresh = made.flow(site, 0, 0, 0), False
        made.add(flow, due_keys(range(next_id, next_id + count)))
        next_id += count
        found = decisions(made.take(0, now, 20))
        sent += [decision.send_at for decision in found]
        made.settle(packed(decision.id for decision in found))
        if goes:
            made.remove(packed(range(1, next_id)))
            made.take(0, now, 20)  # what was removed leaves its line, unless it is parked
            if made.drop_flow(flow):
                assert made.drop_site(site)
                site = -1
    assert cap is None or len(sent) <= cap
    for first, begin in enumerate(sent):
        for last in range(first, len(sent)):
            assert (last - first + 1 - burst) * interval <= sent[last] - begin
