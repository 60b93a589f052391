"""Sources, sites, limits and pools as the scheduler's caller sets them: its face, but for the messages.

Each change is told to the part that it concerns; then what was parked at the sites that it touches tries
again. """

from libc.stdint cimport int64_t, uint16_t
from libc.string cimport memset

from native.limits cimport Place, begin_cell, delay_all, delay_cell, reshape_cell
from native.marks cimport NEVER, NONE, UNCAPPED
from native.sources cimport Source


cdef class Topology:
    """See the module docstring."""

    def __cinit__(self, *, seed, horizon_ns=50_000_000, quantum=16, patience_ns=900_000_000_000):
        self._flows = Flows()
        self._lanes = Lanes(self._flows, quantum, patience_ns)
        self._limits = Limits()
        self._sources = Sources()
        self._seats = Seats()
        self._choice = Choice(self._limits, self._sources, self._seats, seed, horizon_ns)

    cdef void _changed(self, uint32_t site) noexcept:
        """A source may have room at the site now: what was found about spent ones is forgotten, and what was
        parked tries again. Whatever gives a source room comes by here, at least while a share is parked."""
        cdef Place* place = &self._limits.places[site]
        memset(place.spent_until, 0, sizeof(place.spent_until))
        self._lanes.unpark(site)

    cdef void _changed_everywhere(self) noexcept:
        cdef uint32_t i
        for i in range(self._limits.capacity):
            if self._limits.places[i].known:
                self._changed(i)

    cdef void _changed_at_pool(self, uint32_t pool) noexcept:
        cdef uint32_t i
        for i in range(self._limits.capacity):
            if self._limits.places[i].known and self._lanes.lines[i].pool == pool:
                if self._lanes.lines[i].parked != NONE:
                    self._changed(i)

    # -- topology

    def set_source(self, uint32_t source, *, uint32_t netblock, int streams, int tenancy, uint32_t tenant):
        """`streams` is a bit mask; `tenancy` 0 shared, 1 dedicated, 2 hybrid."""
        self._sources.set(source, netblock, streams, tenancy, tenant)

    def set_serves(self, uint32_t source, uint32_t serves, uint32_t lends):
        """Which classes of tenants it serves, beside the tenant whose own it is: bit 3 * stream + class.
        `lends`: the same, for tenants that have no other source in the stream. All are served by default."""
        if self._sources.set_serves(source, serves, lends):
            self._changed_everywhere()

    def set_class(self, uint32_t tenant, uint32_t number):
        """The class of a tenant, 0 to 2; 0 by default."""
        if self._sources.set_class(tenant, number):
            self._changed_everywhere()

    def tenant_weight(self, uint32_t tenant, uint32_t weight):
        """Share of a tenant relative to others; 1 by default."""
        self._lanes.set_weight(tenant, weight)

    def set_source_up(self, uint32_t source, bint up):
        """A source that is down carries nothing."""
        self._sources.source(source).up = up
        self._changed_everywhere()

    def add_site(self, uint32_t site, uint32_t pool):
        """`pool` delivers for the site."""
        self._limits.add(site)
        self._lanes.add(site, pool)
        self._seats.bench(pool)

    def drop_site(self, uint32_t site):
        """Forget a site without flows, with all of its limits, and its number: True. False while it has
        flows, or stands in its pool's ring until the next take. Who adds it again sets its limits with
        `fresh=False`."""
        self._limits.check(site)
        if self._lanes.lines[site].flows or self._lanes.lines[site].listed:
            return False
        self._lanes.drop(site)
        self._limits.drop(site)
        return True

    # -- limits of a source at a site

    def set_limit(self, uint32_t source, uint32_t site, *, int64_t interval_ns, uint32_t burst=1,
                  int64_t daily_left=-1, uint32_t window=1, uint16_t weight=1000, bint fresh=True,
                  int64_t now_ns=0):
        """Limits of a source at a site. `daily_left=-1`: no cap. `fresh=False`: what it has used before is
        unknown, so its rate starts as if it had just been used up, to the horizon."""
        self._limits.check(site)
        if interval_ns < 0 or burst < 1 or window < 1 or weight > 1000:
            raise ValueError("allowed are interval_ns >= 0, burst >= 1, window >= 1, weight 0 to 1000")
        if now_ns < self._lanes.now:
            now_ns = self._lanes.now
        self._seats.seat(self._lanes.lines[site].pool, source)
        begin_cell(self._limits.new_cell(source, site), interval_ns, burst, daily_left, window, weight,
                   -1 if fresh else now_ns + self._choice.horizon)
        self._changed(site)

    def set_weight(self, uint32_t source, uint32_t site, uint16_t weight):
        """0 to 1000; 0 takes the source out of the choice."""
        self._limits.cell(source, site).weight = weight
        self._changed(site)

    def reshape(self, uint32_t source, uint32_t site, *, int64_t interval_ns, uint32_t window,
                uint16_t weight):
        """Other rate, window and weight from now on; the daily count and what the rate has granted stay."""
        cdef Cell* cell = self._limits.cell(source, site)
        if interval_ns < 0 or window < 1 or weight > 1000:
            raise ValueError("allowed are interval_ns >= 0, window >= 1, weight 0 to 1000")
        reshape_cell(cell, interval_ns, window, weight)
        self._changed(site)

    def not_before(self, uint32_t source, uint32_t site, int64_t at_ns):
        """The next message over that source to the site goes at that time at the earliest, if it has a rate:
        a transaction of it began later than it was allowed to."""
        delay_cell(self._limits.cell(source, site), at_ns)

    def suspend(self, uint32_t source, int64_t site, int64_t until_ns):
        """No message over that source to the site (-1: to any) before that time; an earlier time ends it."""
        if site >= 0:
            self._limits.cell(source, <uint32_t>site).suspended_until = until_ns
            self._changed(<uint32_t>site)
        else:
            self._sources.source(source).suspended_until = until_ns
            self._changed_everywhere()

    def suspend_netblock(self, uint32_t netblock, int64_t site, int64_t until_ns):
        """As `suspend`, for every source of a netblock."""
        cdef uint32_t source
        cdef Source* named
        if site >= 0:
            self._limits.check(<uint32_t>site)
        for source in range(self._sources.capacity):
            named = &self._sources.sources[source]
            if named.netblock != netblock or not named.streams:
                continue
            if site < 0 or self._limits.serves(source, <uint32_t>site):
                self.suspend(source, site, until_ns)

    def suspend_site(self, uint32_t site, int64_t until_ns):
        """As `suspend`, for every source."""
        self._limits.check(site)
        self._limits.places[site].suspended_until = until_ns
        self._changed(site)

    def set_daily_left(self, uint32_t source, uint32_t site, int64_t left):
        """So many more today (-1: no cap); what is outstanding counts as charged already."""
        self._limits.cell(source, site).daily_left = NEVER if left < 0 else left
        self._changed(site)

    def change_daily(self, uint32_t source, uint32_t site, int64_t change):
        """The cap of today changes by `change`; what was used stays used. ValueError: there is no cap."""
        cdef Cell* cell = self._limits.cell(source, site)
        if cell.daily_left > UNCAPPED:
            raise ValueError(f"source {source} has no daily cap at site {site}")
        cell.daily_left += change
        self._changed(site)

    def renew_daily(self, uint32_t source, uint32_t site, int64_t cap):
        """A new day begins with `cap`. What is outstanding may go out today, so it is charged to today."""
        cdef Cell* cell = self._limits.cell(source, site)
        if cap < 0:
            raise ValueError(f"cap {cap}: allowed are 0 and more")
        cell.daily_left = cap - cell.outstanding
        self._changed(site)

    def daily_left(self, uint32_t source, uint32_t site):
        """What is left today, None without a cap; below 0 if midnight met more outstanding."""
        cdef int64_t left = self._limits.cell(source, site).daily_left
        return None if left > UNCAPPED else left

    def outstanding(self, uint32_t source, uint32_t site):
        return self._limits.cell(source, site).outstanding

    # -- limits of all sources together at a site

    def set_total(self, uint32_t site, *, int64_t interval_ns, int64_t daily_left=-1, int64_t now_ns=0):
        """Limits of all sources together at a site: time between two messages (0: no rate), and messages left
        today (-1: no cap). What was sent before is unknown: the rate starts as if just used up."""
        cdef Place* place
        self._limits.check(site)
        if interval_ns < 0:
            raise ValueError(f"interval_ns {interval_ns}: allowed are 0 and more")
        place = &self._limits.places[site]
        place.interval = interval_ns
        place.daily_left = NEVER if daily_left < 0 else daily_left
        delay_all(place, now_ns + self._choice.horizon + interval_ns)
        self._changed(site)

    def renew_total(self, uint32_t site, int64_t cap):
        """A new day begins with `cap` for all sources. What is outstanding is charged to today."""
        self._limits.check(site)
        if cap < 0:
            raise ValueError(f"cap {cap}: allowed are 0 and more")
        self._limits.places[site].daily_left = cap - self._limits.places[site].outstanding
        self._changed(site)

    def total_left(self, uint32_t site):
        """What is left today for all sources, None without a cap; below 0: midnight met more outstanding."""
        self._limits.check(site)
        cdef int64_t left = self._limits.places[site].daily_left
        return None if left > UNCAPPED else left

    # -- the processes of a pool

    def set_shard(self, uint32_t pool, uint32_t source, uint32_t shard):
        """That shard of the pool carries the source's messages from now on (0 by default). ValueError: the
        source has messages outstanding at another."""
        self._seats.set_shard(pool, source, shard)
        self._changed_at_pool(pool)

    def hold(self, uint32_t pool, uint32_t source, bint held):
        """While held the source carries nothing for the pool."""
        self._seats.seat(pool, source).held = held
        if not held:
            self._changed_at_pool(pool)

    def close_shards(self, uint32_t pool, uint32_t closed):
        """Bit n of `closed`: the sources of shard n carry nothing for the pool now."""
        if self._seats.close(pool, closed):
            self._changed_at_pool(pool)

    def shard_outstanding(self, uint32_t pool, uint32_t shard):
        """Messages in flight at a shard."""
        return self._seats.outstanding_at(pool, shard)

    def seat_outstanding(self, uint32_t pool, uint32_t source):
        """Messages of a source in flight at a pool."""
        return self._seats.seat(pool, source).outstanding

    def granted(self, uint32_t pool, uint32_t source):
        """Messages ever taken for a source at a pool."""
        return self._seats.seat(pool, source).granted
