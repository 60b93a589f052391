"""What the scheduler may and must decide, written to be obvious and slow: the oracle of its property test.

It does not choose. It is told each decision, checks that it was allowed, and remembers it; and it says whether
anything else could have been handed out. Rates are judged from the whole list of grants each time, by the definition
of GCRA; the windows of real time, across restarts, by comparing all grants with each other.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import pairwise

from tests.support.decisions import Decision

TICK = 1 << 20  # a timer fires at most so late
LOW_TURN = 16
PATIENT_TURN = 4
FlowKey = tuple[int, int, int, int]  # site, stream, tenant, campaign


@dataclass
class Source:
    netblock: int
    streams: int
    tenancy: int
    tenant: int
    up: bool = True
    suspended_until: int = 0
    serves: int = 0x1FF  # bit 3 * stream + class: whose mail it carries, beside its own tenant's
    lends: int = 0  # the same, for who has no other


@dataclass
class Grant:
    id: int
    now: int
    send_at: int


@dataclass
class Cell:
    """A source at a site. `used` is today's count, `cap` None for none."""

    interval: int
    burst: int
    window: int
    cap: int | None
    weight: int = 1000
    suspended_until: int = 0
    start_tat: int = 0
    used: int = 0
    outstanding: dict[int, Grant] = field(default_factory=dict)
    grants: list[Grant] = field(default_factory=list)  # charged to the rate, in order
    sent: list[int] = field(default_factory=list)  # real times of all that was never given back

    def tat(self) -> int:
        tat = self.start_tat
        for grant in self.grants:
            tat = max(tat, grant.send_at) + self.interval
        return tat

    def earliest(self, now: int) -> int:
        return max(now, self.tat() - (self.burst - 1) * self.interval) if self.interval else now


@dataclass
class Total:
    """All sources at a site. The rate is one message per interval, whatever is given back."""

    interval: int = 0
    cap: int | None = None
    tat: int = 0
    used: int = 0


class Reference:
    def __init__(self, horizon: int, patience: int = 900 * 10**9) -> None:
        self.horizon = horizon
        self.patience = patience
        self.low_turns: dict[int, int] = {}  # the turn behind the last one of a lower lane
        self.waits_since: dict[tuple[int, int], int] = {}  # (site, lane): the last grant, or when it got work
        self.sources: dict[int, Source] = {}
        self.cells: dict[tuple[int, int], Cell] = {}
        self.pools: dict[int, int] = {}  # of each site
        self.totals: dict[int, Total] = {}
        self.classes: dict[int, int] = {}  # of each tenant, 0 for who is not here
        self.suspended_sites: dict[int, int] = {}
        self.shards: dict[tuple[int, int], int] = {}  # (pool, source): 0 for what is not here
        self.held: set[tuple[int, int]] = set()  # (pool, source)
        self.closed: dict[int, set[int]] = {}  # shards of each pool
        self.lines: dict[FlowKey, list[int]] = {}
        self.in_flight: dict[int, tuple[FlowKey, tuple[int, int]]] = {}
        self.turns: dict[int, int] = {}
        self.now = 0
        self.base = 0  # real time less the incarnation's clock

    # -- what is allowed

    def may_carry(self, source_no: int, key: FlowKey, now: int) -> int | None:
        """The time that the source may promise the next message of this flow, or None."""
        site, stream, tenant, _ = key
        source = self.sources[source_no]
        cell = self.cells.get((source_no, site))
        if cell is None or not source.up or not source.streams >> stream & 1:
            return None
        if not self.is_for(source, stream, tenant):
            return None
        seat = self.pools[site], source_no
        if seat in self.held or self.shards.get(seat, 0) in self.closed.get(seat[0], ()):
            return None
        if max(source.suspended_until, cell.suspended_until, self.suspended_sites.get(site, 0)) > now:
            return None
        if cell.weight == 0 or len(cell.outstanding) >= cell.window:
            return None
        if cell.cap is not None and cell.used >= cell.cap:
            return None
        earliest = cell.earliest(now)
        return earliest if earliest <= now + self.horizon else None

    def is_for(self, source: Source, stream: int, tenant: int) -> bool:
        """Whether a source is there for a tenant's mail at all, whatever the state of the sources is."""
        bit = 1 << (3 * stream + self.classes.get(tenant, 0))
        others = [s for s in self.sources.values() if s.streams >> stream & 1 and s is not source]
        if source.tenancy and source.tenant == tenant:
            return True
        if source.tenancy == 1:
            return False
        has_other = any(
            (s.tenancy and s.tenant == tenant) or (s.tenancy != 1 and s.serves & bit) for s in others
        )
        return bool(source.serves & bit or (source.lends & bit and not has_other))

    def rank(self, source_no: int, tenant: int) -> int:
        source = self.sources[source_no]
        return {1: 0, 2: 1}.get(source.tenancy, 2) if source.tenant == tenant and source.tenancy else 2

    def allowed(self, key: FlowKey, now: int) -> dict[int, int]:
        """The sources that may carry the flow's next message now, of the best kind that has any, and when."""
        times = {n: at for n in self.sources if (at := self.may_carry(n, key, now)) is not None}
        total = self.totals.get(key[0], Total())
        if total.cap is not None and total.used >= total.cap:
            return {}
        if total.interval:
            at = max(now, total.tat)
            if at > now + self.horizon:
                return {}
            first = max(at, min(times.values(), default=at))
            times = {n: first for n, time in times.items() if time <= first}
        best = min((self.rank(n, key[2]) for n in times), default=0)
        return {n: at for n, at in times.items() if self.rank(n, key[2]) == best}

    def at_seat(self, pool: int, source: int) -> int:
        """Messages of a source in flight at a pool."""
        return sum(
            len(cell.outstanding)
            for (number, site), cell in self.cells.items()
            if number == source and self.pools[site] == pool
        )

    def lanes_with_work(self, site: int, now: int) -> set[int]:
        return {
            key[1] for key, line in self.lines.items() if line and key[0] == site and self.allowed(key, now)
        }

    # -- what happens

    def add(self, key: FlowKey, ids: Iterable[int]) -> int:
        held = {n for line in self.lines.values() for n in line} | set(self.in_flight)
        new = [n for n in dict.fromkeys(ids) if n not in held]
        self.lines.setdefault(key, []).extend(new)
        return len(new)

    def take(
        self, pool: int, now: int, limit: int, decided: list[Decision], flows: dict[int, FlowKey]
    ) -> None:
        self.now = max(self.now, now)
        for decision in decided:
            self._decide(pool, decision, flows[decision.flow])
        assert len(decided) <= limit
        if len(decided) < limit:
            for key, line in self.lines.items():
                if line and self.pools[key[0]] == pool:
                    assert not self.allowed(key, self.now - TICK), f"{key} was passed over"

    def _decide(self, pool: int, decision: Decision, key: FlowKey) -> None:
        now = self.now
        site, lane = key[0], key[1]
        assert self.pools[site] == pool
        assert decision.site == site
        assert self.lines[key][:1] == [decision.id], "not the next of its flow"
        assert self.allowed(key, now).get(decision.source) == decision.send_at
        turn = self.turns.get(site, 0)
        surely = self.lanes_with_work(site, now - TICK)  # those whose timer must have fired
        since = self.waits_since.get((site, lane), 0)
        is_patient = turn - self.low_turns.get(site, 0) >= PATIENT_TURN and now - since >= self.patience
        self.waits_since[site, lane] = now
        if lane:
            self.low_turns[site] = turn + 1
        if lane and is_patient:
            pass  # it has waited long enough
        elif turn % LOW_TURN != LOW_TURN - 1:
            assert not any(other < lane for other in surely), "a higher lane was passed over"
        elif lane == 0:
            assert surely <= {0}, "the lower lanes were passed over in their turn"
        self.turns[site] = turn + 1
        self.lines[key].pop(0)
        cell = self.cells[decision.source, site]
        grant = Grant(decision.id, now, decision.send_at)
        cell.outstanding[decision.id] = grant
        cell.grants.append(grant)
        cell.used += 1
        total = self.totals.setdefault(site, Total())
        total.used += 1
        total.tat = decision.send_at + total.interval
        self.in_flight[decision.id] = key, (decision.source, site)

    def settle(self, ids: Iterable[int]) -> None:
        for n in ids:
            if n in self.in_flight:
                _, cell_key = self.in_flight.pop(n)
                cell = self.cells[cell_key]
                cell.sent.append(cell.outstanding.pop(n).send_at + self.base)

    def give_back(self, ids: Iterable[int]) -> None:
        returned = [n for n in dict.fromkeys(ids) if n in self.in_flight]
        for n in reversed(returned):
            key, cell_key = self.in_flight.pop(n)
            cell = self.cells[cell_key]
            del cell.outstanding[n]
            cell.used -= 1
            self.totals[key[0]].used -= 1
            self.lines[key].insert(0, n)
        for cell in self.cells.values():
            # a grant that is not the last one leaves its charge behind: that time is gone
            while cell.grants and cell.grants[-1].id in returned:
                cell.grants.pop()

    def remove(self, ids: Iterable[int]) -> int:
        removed = 0
        for n in set(ids):
            for line in self.lines.values():
                if n in line:
                    line.remove(n)
                    removed += 1
        return removed

    def new_day(self) -> None:
        for cell in self.cells.values():
            cell.used = len(cell.outstanding)
        for site, total in self.totals.items():
            total.used = sum(len(c.outstanding) for (_, at), c in self.cells.items() if at == site)

    def restart(self, now: int, base: int) -> None:
        """A new incarnation with its own clock. What was in flight may have been sent, and is ready again."""
        for n, (key, cell_key) in self.in_flight.items():
            self.lines[key].insert(0, n)
            self.cells[cell_key].sent.append(self.cells[cell_key].outstanding[n].send_at + self.base)
        self.in_flight.clear()
        self.turns.clear()
        self.low_turns.clear()
        self.waits_since.clear()
        self.suspended_sites.clear()
        self.shards.clear()
        self.held.clear()
        self.closed.clear()
        for source in self.sources.values():
            source.up, source.suspended_until = True, 0
        self.now, self.base = now, base
        for cell in self.cells.values():
            cell.outstanding.clear()
            self._begin_anew(cell)
        for total in self.totals.values():
            total.tat = now + self.horizon + total.interval

    def forget_site(self, site: int) -> None:
        """The site is dropped, and will be opened again like one that was never met, but for the counts of the day."""
        self.suspended_sites.pop(site, None)
        self.turns.pop(site, None)
        self.low_turns.pop(site, None)
        total = self.totals[site]
        total.tat = self.now + self.horizon + total.interval
        for (_, number), cell in self.cells.items():
            if number == site:
                assert not cell.outstanding
                self._begin_anew(cell)

    def _begin_anew(self, cell: Cell) -> None:
        cell.grants.clear()
        cell.weight, cell.suspended_until = 1000, 0
        cell.start_tat = self.now + self.horizon + cell.burst * cell.interval

    def times_of(self, cell: Cell) -> list[int]:
        """Real times of all that went out, or may yet."""
        return cell.sent + [grant.send_at + self.base for grant in cell.outstanding.values()]

    # -- what must hold at any time

    def check_windows(self) -> None:
        """No window of real time, however long, holds more than the burst and what the interval adds to it."""
        for site, total in self.totals.items():
            assert total.cap is None or total.used <= total.cap
            at_site = [cell for (_, number), cell in self.cells.items() if number == site]
            times = sorted(t for cell in at_site for t in self.times_of(cell))
            assert all(later - one >= total.interval for one, later in pairwise(times))
        for cell in self.cells.values():
            assert len(cell.outstanding) <= cell.window
            assert cell.cap is None or cell.used <= cell.cap
            times = sorted(self.times_of(cell))
            for first, begin in enumerate(times):
                for last in range(first, len(times)):
                    assert (last - first + 1 - cell.burst) * cell.interval <= times[last] - begin
