"""The scheduler: which message goes next, over which source, and when.

Owns the ready messages in memory, the limits of every (source, site), and who waits for what. Knows numbers
only: time and the seed are arguments, there is no clock, no randomness and no configuration in here.

Order: a pool's sites take turns; at a site the streams have strict priority, except that one message in
sixteen goes to a lower stream that has work (the two lower ones in turn), and one in four where that would
take longer than `patience_ns`, so bulk never starves; in a stream
tenants share by deficit round robin with their weights, and a tenant's campaigns by turns. The source is
chosen last: among those that may carry the message now, the less loaded of two picked at random; a tenant's
dedicated sources first, then hybrid ones of its own, then the shared (and others' hybrid ones) that serve its
class of tenants in that stream.

Limits: a rate is a GCRA cell in integer nanoseconds (burst 1 by default); a take may grant a time up to
`horizon_ns` ahead. A daily count and a window of outstanding messages are charged at the take. What is given
back unsent is refunded exactly, the rate only if no later grant stands on it. All sources of a site may have
a rate and a daily count together; that rate is not refunded. Time never goes back: a take at an earlier time
than the last one counts as one at that time.

A share (a tenant's messages in a stream of a site) that no source may carry now is parked until the earliest
time at which one may, or until something changes at the site. It comes back in its order and goes on with the
turn that it had begun. So nothing is scanned in vain, and nobody blocks another.

Memory: 48 bytes per message that the scheduler has held at once, 56 per (source, site), and a little per
flow; a flow or a site that is dropped gives its place to the next.

Shards: a pool may be several processes. Each source's messages for the pool are carried by one of them, so
what the process keeps for the source (connections, pace) holds; a shard without room is closed, a source that
moves from one to the other is held meanwhile.
"""

from libc.stdlib cimport qsort
from libc.string cimport memcpy, memset

from native.memory cimport allocate, live_blocks_c, reallocate, release

cdef extern from *:
    """
    #define SCHEDULER_NONE 0xFFFFFFFFu
    #define SCHEDULER_NEVER INT64_MAX
    #define SCHEDULER_UNCAPPED (INT64_MAX / 2)
    """
    const uint32_t NONE "SCHEDULER_NONE"
    const int64_t NEVER "SCHEDULER_NEVER"
    const int64_t UNCAPPED "SCHEDULER_UNCAPPED"   # a daily count above it stands for no cap

cdef enum:
    FREE                         # states of a slot
    READY
    IN_FLIGHT
    REMOVED

cdef enum:
    IDLE                         # states of a share
    LISTED
    PARKED

cdef enum:
    LANES = 3
    CLASSES = 3                  # of tenants
    MAX_SHARDS = 32
    KEY_SIZE = 18
    ENTRY_SIZE = 40

cdef enum:                       # why a source could not take a message: bits of _why
    WAITS_RATE = 1
    WAITS_WINDOW = 2
    WAITS_DAILY = 4
    WAITS_SUSPENDED = 8

cdef uint32_t LOW_TURN = 16
cdef uint32_t PATIENT_TURN = 4


def live_blocks():
    """Blocks of memory that are not freed; -1 in a release build."""
    return live_blocks_c


cdef struct Entry:
    uint64_t id
    int64_t send_at
    uint32_t site
    uint16_t source
    uint16_t flags
    uint32_t flow
    uint32_t queue
    uint64_t due_ms


cdef int _later_first(const void* one, const void* other) noexcept nogil:
    cdef uint32_t first = (<const Returned*>one).grant
    cdef uint32_t second = (<const Returned*>other).grant
    return (first < second) - (first > second)


cdef inline uint64_t _big_endian(const unsigned char* data, int size) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(size):
        value = value << 8 | data[i]
    return value


cdef inline uint32_t _hash(uint64_t id_) noexcept nogil:
    return <uint32_t>((id_ * <uint64_t>0x9E3779B97F4A7C15) >> 32)


cdef void* _extended(void* block, uint32_t* capacity, uint32_t wanted, size_t size) except NULL:
    """Grow an array to hold index `wanted`; new elements are zero."""
    cdef uint32_t larger = capacity[0]
    cdef char* grown
    if larger < 16:
        larger = 16
    while larger <= wanted:
        if larger > 1 << 30:
            raise MemoryError
        larger *= 2
    grown = <char*>reallocate(block, larger * size)
    if grown == NULL:
        raise MemoryError
    memset(grown + capacity[0] * size, 0, (larger - capacity[0]) * size)
    capacity[0] = larger
    return grown


cdef class Scheduler:
    """See the module docstring."""

    def __cinit__(self, *, seed, horizon_ns=50_000_000, quantum=16, patience_ns=900_000_000_000):
        self._wheels = []
        self._free_flow = NONE
        self._free_share = NONE
        self._flow_numbers = {}
        self._share_numbers = {}
        self._free = NONE
        self._random = (<uint64_t>seed) ^ <uint64_t>0x9E3779B97F4A7C15
        if self._random == 0:
            self._random = 1
        self._horizon = horizon_ns
        self._quantum = quantum
        self._patience = patience_ns
        self._generation = 1
        self._rehash(4096)

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self._roster_capacity):
            release(self._rosters[i].list)
        for i in range(self._site_capacity):
            release(self._sites[i].cells)
        release(self._slots)
        release(self._table)
        release(self._flows)
        release(self._shares)
        release(self._sites)
        release(self._sources)
        for i in range(self._pool_capacity):
            release(self._pools[i].seats)
        release(self._pools)
        release(self._tenant_weight)
        release(self._tenant_class)
        release(self._owner)
        release(self._rosters)

    # -- topology

    def set_source(self, uint32_t source, *, uint32_t netblock, int streams, int tenancy, uint32_t tenant):
        """`streams` is a bit mask; `tenancy` 0 shared, 1 dedicated, 2 hybrid."""
        if source >= 0xFFFF:
            raise ValueError(f"source {source}: allowed are 0 to 65534")
        if not 0 <= tenancy <= 2:
            raise ValueError(f"tenancy {tenancy}: allowed are 0, 1 and 2")
        if tenancy and tenant >= self._owner_capacity:
            self._owner = <uint32_t*>_extended(self._owner, &self._owner_capacity, tenant, sizeof(uint32_t))
        if source >= self._source_capacity:
            self._sources = <Source*>_extended(self._sources, &self._source_capacity, source, sizeof(Source))
        if tenancy and not self._owner[tenant]:
            self._owner_count += 1
            self._owner[tenant] = self._owner_count
        self._sources[source].netblock = netblock
        self._sources[source].streams = <uint8_t>streams
        self._sources[source].tenancy = <uint8_t>tenancy
        self._sources[source].tenant = tenant
        self._sources[source].serves = 0x1FF
        self._sources[source].lends = 0
        self._sources[source].up = 1
        self._generation += 1

    def set_serves(self, uint32_t source, uint32_t serves, uint32_t lends):
        """Which classes of tenants it serves, beside the tenant whose own it is: bit 3 * stream + class.
        `lends`: the same, for
        tenants that have no other source in the stream. All are served by default."""
        if source >= self._source_capacity or not self._sources[source].streams:
            raise KeyError(f"source {source} is not known")
        if serves > 0x1FF or lends > 0x1FF:
            raise ValueError(f"serves {serves}, lends {lends}: allowed are 9 bits")
        if self._sources[source].serves == serves and self._sources[source].lends == lends:
            return
        self._sources[source].serves = <uint16_t>serves
        self._sources[source].lends = <uint16_t>lends
        self._renew_rosters()

    def set_class(self, uint32_t tenant, uint32_t number):
        """The class of a tenant, 0 to 2; 0 by default."""
        if number >= CLASSES:
            raise ValueError(f"class {number}: allowed are 0 to {CLASSES - 1}")
        if tenant >= self._class_capacity:
            self._tenant_class = <uint8_t*>_extended(
                self._tenant_class, &self._class_capacity, tenant, sizeof(uint8_t))
        if self._tenant_class[tenant] != number:
            self._tenant_class[tenant] = <uint8_t>number
            self._renew_rosters()

    cdef int _renew_rosters(self) except -1:
        """Who may carry whose messages has changed."""
        cdef uint32_t i
        self._generation += 1
        for i in range(self._site_capacity):
            if self._sites[i].known and self._sites[i].parked != NONE:
                self._unpark_site(i)
        return 0

    def add_site(self, uint32_t site, uint32_t pool):
        """`pool` delivers for the site."""
        cdef uint32_t i
        if site >= self._site_capacity:
            self._sites = <Site*>_extended(self._sites, &self._site_capacity, site, sizeof(Site))
        self._pool(pool)
        if self._sites[site].known:
            raise ValueError(f"site {site} is known")
        self._sites[site].known = 1
        self._sites[site].pool = pool
        self._sites[site].parked = self._sites[site].parked_tail = NONE
        self._sites[site].timer = -1
        self._sites[site].daily_left = NEVER
        for i in range(3):
            self._sites[site].head[i] = self._sites[site].tail[i] = NONE

    def drop_site(self, uint32_t site):
        """Forget a site without flows, with all of its limits, and its number: True. False while it has
        flows, or stands in its pool's ring until the next take. Who adds it again sets its limits with
        `fresh=False`."""
        self._check_site(site)
        cdef Site* at = &self._sites[site]
        if at.flows or at.listed:
            return False
        if at.timer >= 0:
            (<Wheel>self._wheels[at.pool]).cancel_c(at.timer)
        release(at.cells)
        memset(at, 0, sizeof(Site))
        return True

    cdef int _check_site(self, uint32_t site) except -1:
        if site >= self._site_capacity or not self._sites[site].known:
            raise KeyError(f"site {site} is not known")
        return 0

    cdef int _check_cell(self, uint32_t source, uint32_t site) except -1:
        self._check_site(site)
        if source >= self._sites[site].cell_count or self._sites[site].cells[source].window == 0:
            raise KeyError(f"source {source} has no limits at site {site}")
        return 0

    def set_limit(self, uint32_t source, uint32_t site, *, int64_t interval_ns, uint32_t burst=1,
                  int64_t daily_left=-1, uint32_t window=1, uint16_t weight=1000, bint fresh=True,
                  int64_t now_ns=0):
        """Limits of a source at a site. `daily_left=-1`: no cap. `fresh=False`: what it has used before is
        unknown, so its rate starts as if it had just been used up, to the horizon."""
        cdef Site* at
        cdef Cell* cell
        self._check_site(site)
        if interval_ns < 0 or burst < 1 or window < 1 or weight > 1000:
            raise ValueError("allowed are interval_ns >= 0, burst >= 1, window >= 1, weight 0 to 1000")
        at = &self._sites[site]
        if source >= at.cell_count:
            at.cells = <Cell*>_extended(at.cells, &at.cell_count, source, sizeof(Cell))
        cell = &at.cells[source]
        cell.interval = interval_ns
        cell.burst = burst
        cell.daily_left = NEVER if daily_left < 0 else daily_left
        cell.window = window
        cell.weight = weight
        cell.grants += 1
        self._seat(at.pool, source)
        if now_ns < self._now:
            now_ns = self._now
        if not fresh and cell.tat < now_ns + self._horizon + burst * interval_ns:
            cell.tat = now_ns + self._horizon + burst * interval_ns
        self._unpark_site(site)

    def set_weight(self, uint32_t source, uint32_t site, uint16_t weight):
        """0 to 1000; 0 takes the source out of the choice."""
        self._check_cell(source, site)
        self._sites[site].cells[source].weight = weight
        self._unpark_site(site)

    def reshape(self, uint32_t source, uint32_t site, *, int64_t interval_ns, uint32_t window,
                uint16_t weight):
        """Other rate, window and weight from now on; the daily count and what the rate has granted stay."""
        cdef Cell* cell
        self._check_cell(source, site)
        if interval_ns < 0 or window < 1 or weight > 1000:
            raise ValueError("allowed are interval_ns >= 0, window >= 1, weight 0 to 1000")
        cell = &self._sites[site].cells[source]
        # The next message keeps the new distance from the last one, in both directions: what is used up
        # stays used up, nothing saved up grows, and a rate that goes down and up again leaves no debt behind.
        cell.tat += cell.burst * (interval_ns - cell.interval)
        cell.interval = interval_ns
        cell.window = window
        cell.weight = weight
        cell.grants += 1
        self._unpark_site(site)

    def not_before(self, uint32_t source, uint32_t site, int64_t at_ns):
        """The next message over that source to the site goes at that time at the earliest, if it has a rate:
        a transaction of it began later than it was allowed to."""
        cdef Cell* cell
        cdef int64_t tat
        self._check_cell(source, site)
        cell = &self._sites[site].cells[source]
        tat = at_ns + <int64_t>(cell.burst - 1) * cell.interval
        if cell.interval and cell.tat < tat:
            cell.tat = tat
            cell.grants += 1

    def suspend(self, uint32_t source, int64_t site, int64_t until_ns):
        """No message over that source to the site (-1: to any) before that time; an earlier time ends it."""
        cdef uint32_t i
        if site >= 0:
            self._check_cell(source, <uint32_t>site)
            self._sites[site].cells[source].suspended_until = until_ns
            self._unpark_site(<uint32_t>site)
            return
        if source >= self._source_capacity:
            raise KeyError(f"source {source} is not known")
        self._sources[source].suspended_until = until_ns
        for i in range(self._site_capacity):
            if self._sites[i].known:
                self._unpark_site(i)

    def suspend_netblock(self, uint32_t netblock, int64_t site, int64_t until_ns):
        """As `suspend`, for every source of a netblock."""
        cdef uint32_t source
        if site >= 0:
            self._check_site(<uint32_t>site)
        for source in range(self._source_capacity):
            if self._sources[source].netblock != netblock or not self._sources[source].streams:
                continue
            if site < 0 or (source < self._sites[site].cell_count and self._sites[site].cells[source].window):
                self.suspend(source, site, until_ns)

    def suspend_site(self, uint32_t site, int64_t until_ns):
        self._check_site(site)
        self._sites[site].suspended_until = until_ns
        self._unpark_site(site)

    def set_total(self, uint32_t site, *, int64_t interval_ns, int64_t daily_left=-1, int64_t now_ns=0):
        """Limits of all sources together at a site: time between two messages (0: no rate), and messages left
        today (-1: no cap). What was sent before is unknown: the rate starts as if just used up."""
        cdef Site* at
        self._check_site(site)
        if interval_ns < 0:
            raise ValueError(f"interval_ns {interval_ns}: allowed are 0 and more")
        at = &self._sites[site]
        at.interval = interval_ns
        at.daily_left = NEVER if daily_left < 0 else daily_left
        if interval_ns and at.tat < now_ns + self._horizon + interval_ns:
            at.tat = now_ns + self._horizon + interval_ns
        self._unpark_site(site)

    def renew_total(self, uint32_t site, int64_t cap):
        """A new day begins with `cap` for all sources. What is outstanding is charged to today."""
        self._check_site(site)
        if cap < 0:
            raise ValueError(f"cap {cap}: allowed are 0 and more")
        self._sites[site].daily_left = cap - self._sites[site].outstanding
        self._unpark_site(site)

    def total_left(self, uint32_t site):
        """What is left today for all sources, None without a cap; below 0: midnight met more outstanding."""
        self._check_site(site)
        cdef int64_t left = self._sites[site].daily_left
        return None if left > UNCAPPED else left

    def set_source_up(self, uint32_t source, bint up):
        cdef uint32_t i
        if source >= self._source_capacity:
            raise KeyError(f"source {source} is not known")
        self._sources[source].up = up
        for i in range(self._site_capacity):
            if self._sites[i].known:
                self._unpark_site(i)

    def set_daily_left(self, uint32_t source, uint32_t site, int64_t left):
        """So many more today (-1: no cap); what is outstanding counts as charged already."""
        self._check_cell(source, site)
        self._sites[site].cells[source].daily_left = NEVER if left < 0 else left
        self._unpark_site(site)

    def change_daily(self, uint32_t source, uint32_t site, int64_t change):
        """The cap of today changes by `change`; what was used stays used. ValueError: there is no cap."""
        self._check_cell(source, site)
        if self._sites[site].cells[source].daily_left > UNCAPPED:
            raise ValueError(f"source {source} has no daily cap at site {site}")
        self._sites[site].cells[source].daily_left += change
        self._unpark_site(site)

    def renew_daily(self, uint32_t source, uint32_t site, int64_t cap):
        """A new day begins with `cap`. What is outstanding may go out today, so it is charged to today."""
        self._check_cell(source, site)
        if cap < 0:
            raise ValueError(f"cap {cap}: allowed are 0 and more")
        self._sites[site].cells[source].daily_left = cap - self._sites[site].cells[source].outstanding
        self._unpark_site(site)

    def daily_left(self, uint32_t source, uint32_t site):
        """What is left today, None without a cap; below 0 if midnight met more outstanding."""
        self._check_cell(source, site)
        cdef int64_t left = self._sites[site].cells[source].daily_left
        return None if left > UNCAPPED else left

    # -- shards: the processes of one pool, each of which carries some of the sources

    cdef Pool* _pool(self, uint32_t pool) except NULL:
        """The pool, made if it is new; the pointer is good until the next new one."""
        cdef uint32_t old = self._pool_capacity
        cdef uint32_t i
        if pool >= old:
            self._pools = <Pool*>_extended(self._pools, &self._pool_capacity, pool, sizeof(Pool))
            for i in range(old, self._pool_capacity):
                self._pools[i].head = self._pools[i].tail = NONE
                self._wheels.append(Wheel(0))
        return &self._pools[pool]

    cdef Seat* _seat(self, uint32_t pool, uint32_t source) except NULL:
        cdef Pool* at
        if source >= 0xFFFF:
            raise ValueError(f"source {source}: allowed are 0 to 65534")
        at = self._pool(pool)
        if source >= at.seat_count:
            at.seats = <Seat*>_extended(at.seats, &at.seat_count, source, sizeof(Seat))
        return &at.seats[source]

    cdef void _unpark_pool(self, uint32_t pool) noexcept:
        cdef uint32_t i
        for i in range(self._site_capacity):
            if self._sites[i].known and self._sites[i].pool == pool and self._sites[i].parked != NONE:
                self._unpark_site(i)

    def set_shard(self, uint32_t pool, uint32_t source, uint32_t shard):
        """That shard of the pool carries the source's messages from now on (0 by default). ValueError: the
        source has messages outstanding at another."""
        cdef Seat* seat = self._seat(pool, source)
        if shard >= MAX_SHARDS:
            raise ValueError(f"shard {shard}: allowed are 0 to {MAX_SHARDS - 1}")
        if seat.outstanding and seat.shard != shard:
            raise ValueError(f"source {source} has {seat.outstanding} messages at shard {seat.shard}")
        seat.shard = <uint8_t>shard
        self._unpark_pool(pool)

    def hold(self, uint32_t pool, uint32_t source, bint held):
        """While held the source carries nothing for the pool."""
        self._seat(pool, source).held = held
        if not held:
            self._unpark_pool(pool)

    def close_shards(self, uint32_t pool, uint32_t closed):
        """Bit n of `closed`: the sources of shard n carry nothing for the pool now."""
        cdef Pool* at = self._pool(pool)
        cdef uint32_t opened = at.closed & ~closed
        at.closed = closed
        if opened:
            self._unpark_pool(pool)

    def shard_outstanding(self, uint32_t pool, uint32_t shard):
        """Messages in flight at a shard."""
        cdef Pool* at = self._pool(pool)
        cdef uint32_t i
        cdef uint32_t count = 0
        for i in range(at.seat_count):
            if at.seats[i].shard == shard:
                count += at.seats[i].outstanding
        return count

    def presume_sent(self, uint32_t pool, uint32_t shard, int64_t now_ns):
        """A shard ended without a word: what is in flight there may have begun just now, so the rates that it
        charged count from now."""
        cdef uint32_t i
        cdef int64_t tat
        cdef Slot* slot
        cdef Cell* cell
        cdef uint32_t site
        for i in range(self._slot_capacity):
            slot = &self._slots[i]
            if slot.state != IN_FLIGHT:
                continue
            site = self._flows[slot.flow].site
            if self._sites[site].pool != pool or self._pools[pool].seats[slot.source].shard != shard:
                continue
            cell = &self._sites[site].cells[slot.source]
            tat = now_ns + self._sites[site].interval
            if self._sites[site].interval and self._sites[site].tat < tat:
                self._sites[site].tat = tat
            tat = now_ns + <int64_t>cell.burst * cell.interval
            if cell.interval and cell.tat < tat:
                cell.tat = tat
                cell.grants += 1

    def seat_outstanding(self, uint32_t pool, uint32_t source):
        """Messages of a source in flight at a pool."""
        return self._seat(pool, source).outstanding

    def granted(self, uint32_t pool, uint32_t source):
        """Messages ever taken for a source at a pool."""
        return self._seat(pool, source).granted

    def tenant_weight(self, uint32_t tenant, uint32_t weight):
        """Share of a tenant relative to others; 1 by default."""
        if not 1 <= weight <= 1000:
            raise ValueError(f"weight {weight}: allowed are 1 to 1000")
        if tenant >= self._tenant_capacity:
            self._tenant_weight = <uint32_t*>_extended(
                self._tenant_weight, &self._tenant_capacity, tenant, sizeof(uint32_t))
        self._tenant_weight[tenant] = weight

    def flow(self, uint32_t site, int stream, uint32_t tenant, uint32_t campaign):
        """Number of the flow, made if there is none."""
        cdef uint32_t number, share
        key = (site, stream, tenant, campaign)
        found = self._flow_numbers.get(key)
        if found is not None:
            return found
        self._check_site(site)
        if not 0 <= stream < LANES:
            raise ValueError(f"stream {stream}: allowed are 0 to 2")
        share_key = (site, stream, tenant)
        known = self._share_numbers.get(share_key)
        if known is None:
            share = self._free_share
            if share != NONE:
                self._free_share = self._shares[share].next
            else:
                share = self._share_count
                if share >= self._share_capacity:
                    self._shares = <Share*>_extended(
                        self._shares, &self._share_capacity, share, sizeof(Share))
                self._share_count += 1
            memset(&self._shares[share], 0, sizeof(Share))
            self._shares[share].site = site
            self._shares[share].stream = <uint8_t>stream
            self._shares[share].tenant = tenant
            self._shares[share].head = self._shares[share].tail = NONE
            self._share_numbers[share_key] = share
        else:
            share = known
        number = self._free_flow
        if number != NONE:
            self._free_flow = self._flows[number].next
        else:
            number = self._flow_count
            if number >= self._flow_capacity:
                self._flows = <Flow*>_extended(self._flows, &self._flow_capacity, number, sizeof(Flow))
            self._flow_count += 1
        memset(&self._flows[number], 0, sizeof(Flow))
        self._shares[share].flows += 1
        self._sites[site].flows += 1
        self._flows[number].campaign = campaign
        self._flows[number].site = site
        self._flows[number].share = share
        self._flows[number].head = self._flows[number].tail = NONE
        self._flows[number].used = 1
        self._flow_numbers[key] = number
        return number

    def drop_flow(self, uint32_t flow):
        """Forget a flow that holds nothing, and its number: True. False while it holds messages (also removed
        ones that stand in its line)."""
        self._check_flow(flow)
        cdef Flow* at = &self._flows[flow]
        cdef Share* share = &self._shares[at.share]
        if at.head != NONE or at.listed or at.in_flight:
            return False
        del self._flow_numbers[at.site, share.stream, share.tenant, at.campaign]
        at.used = 0
        at.next = self._free_flow
        self._free_flow = flow
        share.flows -= 1
        self._sites[at.site].flows -= 1
        if share.flows == 0:
            del self._share_numbers[share.site, share.stream, share.tenant]
            share.next = self._free_share
            self._free_share = at.share
        return True

    cdef int _check_flow(self, uint32_t flow) except -1:
        if flow >= self._flow_count or not self._flows[flow].used:
            raise KeyError(f"flow {flow} is not known")
        return 0

    def site_of(self, uint32_t flow):
        self._check_flow(flow)
        return self._flows[flow].site

    # -- messages by id

    cdef uint32_t _lookup(self, uint64_t id_) noexcept nogil:
        cdef uint32_t at = _hash(id_) & self._mask
        while self._table[at] != NONE:
            if self._slots[self._table[at]].id == id_:
                return self._table[at]
            at = (at + 1) & self._mask
        return NONE

    cdef void _insert(self, uint32_t slot) noexcept nogil:
        cdef uint32_t at = _hash(self._slots[slot].id) & self._mask
        while self._table[at] != NONE:
            at = (at + 1) & self._mask
        self._table[at] = slot

    cdef void _erase(self, uint64_t id_) noexcept nogil:
        """Remove from the table and close the gap, so that no tombstones gather."""
        cdef uint32_t at = _hash(id_) & self._mask
        cdef uint32_t after, home
        while self._table[at] != NONE and self._slots[self._table[at]].id != id_:
            at = (at + 1) & self._mask
        if self._table[at] == NONE:
            return
        self._table[at] = NONE
        after = (at + 1) & self._mask
        while self._table[after] != NONE:
            home = _hash(self._slots[self._table[after]].id) & self._mask
            if ((after - home) & self._mask) >= ((after - at) & self._mask):
                self._table[at] = self._table[after]
                self._table[after] = NONE
                at = after
            after = (after + 1) & self._mask

    cdef int _rehash(self, uint32_t size) except -1:
        cdef uint32_t* old = self._table
        cdef uint32_t old_size = self._mask + 1 if old != NULL else 0
        cdef uint32_t i, at
        cdef uint32_t* table = <uint32_t*>allocate(size * sizeof(uint32_t))
        if table == NULL:
            raise MemoryError
        memset(table, 0xFF, size * sizeof(uint32_t))
        self._table = table
        self._mask = size - 1
        for i in range(old_size):
            if old[i] != NONE:
                at = _hash(self._slots[old[i]].id) & self._mask
                while table[at] != NONE:
                    at = (at + 1) & self._mask
                table[at] = old[i]
        release(old)
        return 0

    cdef int _grow_slots(self) except -1:
        cdef uint32_t old = self._slot_capacity
        cdef uint32_t i
        cdef uint32_t wanted = old if old > 1024 else 1024
        self._slots = <Slot*>_extended(self._slots, &self._slot_capacity, wanted, sizeof(Slot))
        for i in range(old, self._slot_capacity):
            self._slots[i].next = i + 1 if i + 1 < self._slot_capacity else self._free
        self._free = old
        return 0

    cdef void _free_slot(self, uint32_t index) noexcept nogil:
        self._slots[index].state = FREE
        self._slots[index].next = self._free
        self._free = index

    def add(self, uint32_t flow, const unsigned char[::1] due_keys):
        """Ready messages for a flow: 18 bytes each (queue u32, due_ms u48, id u64, big endian). Returns how
        many were new; ids that are held already are passed over."""
        cdef Py_ssize_t count, i
        cdef const unsigned char* key
        cdef uint32_t index
        cdef uint64_t id_
        cdef Slot* slot
        cdef Flow* into
        cdef uint32_t added = 0
        self._check_flow(flow)
        if due_keys.shape[0] % KEY_SIZE:
            raise ValueError(f"{due_keys.shape[0]} bytes of due keys: expected a multiple of {KEY_SIZE}")
        count = due_keys.shape[0] // KEY_SIZE
        into = &self._flows[flow]
        for i in range(count):
            key = &due_keys[i * KEY_SIZE]
            id_ = _big_endian(key + 10, 8)
            if self._lookup(id_) != NONE:
                continue
            if self._free == NONE:
                self._grow_slots()
            if (self._held + 1) * <uint64_t>2 > self._mask:
                self._rehash((self._mask + 1) * 2)
            index = self._free
            slot = &self._slots[index]
            self._free = slot.next
            slot.id = id_
            slot.queue = <uint32_t>_big_endian(key, 4)
            slot.due_ms = _big_endian(key + 4, 6)
            slot.flow = flow
            slot.state = READY
            slot.next = NONE
            self._insert(index)
            self._held += 1
            if into.tail == NONE:
                into.head = index
            else:
                self._slots[into.tail].next = index
            into.tail = index
            into.ready += 1
            added += 1
        if added:
            self._list_flow(flow)
        return added

    # -- rings

    cdef void _list_flow(self, uint32_t flow) noexcept nogil:
        """The flow has ready messages: into its share's ring, the share into its lane's, the site into its
        pool's."""
        cdef Flow* listed = &self._flows[flow]
        cdef Share* share = &self._shares[listed.share]
        if not listed.listed:
            listed.listed = 1
            listed.served = 0
            listed.next = NONE
            if share.tail == NONE:
                share.head = flow
            else:
                self._flows[share.tail].next = flow
            share.tail = flow
        if share.state == IDLE:
            if self._sites[share.site].busy[share.stream] == 0:
                self._sites[share.site].waits_since[share.stream] = self._now
            self._sites[share.site].busy[share.stream] += 1
            self._list_share(listed.share)

    cdef void _list_share(self, uint32_t number) noexcept nogil:
        """Into its lane's ring: at the head if it has a turn to finish, else at the tail."""
        cdef Share* share = &self._shares[number]
        cdef Site* site = &self._sites[share.site]
        cdef Pool* pool = &self._pools[site.pool]
        share.state = LISTED
        share.next = NONE
        if site.tail[share.stream] == NONE:
            site.head[share.stream] = site.tail[share.stream] = number
        elif share.served:
            share.next = site.head[share.stream]
            site.head[share.stream] = number
        else:
            self._shares[site.tail[share.stream]].next = number
            site.tail[share.stream] = number
        if not site.listed:
            site.listed = 1
            site.next = NONE
            if pool.tail == NONE:
                pool.head = share.site
            else:
                self._sites[pool.tail].next = share.site
            pool.tail = share.site

    cdef int _park(self, uint32_t number, int64_t wake) except -1:
        """Set a share (already out of its lane) aside until `wake`, or until something changes at the
        site."""
        cdef Share* share = &self._shares[number]
        cdef Site* site = &self._sites[share.site]
        cdef Wheel wheel
        share.state = PARKED
        share.next = NONE
        if site.parked_tail == NONE:
            site.parked = number
        else:
            self._shares[site.parked_tail].next = number
        site.parked_tail = number
        self._parkings += 1
        self._waits[0] += (self._why & WAITS_RATE) != 0
        self._waits[1] += (self._why & WAITS_WINDOW) != 0
        self._waits[2] += (self._why & WAITS_DAILY) != 0
        self._waits[3] += (self._why & WAITS_SUSPENDED) != 0
        if wake == NEVER or (site.timer >= 0 and site.wake <= wake):
            return 0
        wheel = <Wheel>self._wheels[site.pool]
        if site.timer >= 0:
            wheel.cancel_c(site.timer)
            site.timer = -1
        site.timer = wheel.add_c(wake, share.site)
        site.wake = wake
        return 0

    cdef void _unpark_site(self, uint32_t number) noexcept:
        """Back into their lanes, in the order in which they were parked. Whatever gives a source room at the
        site comes by here while a share is parked, so what was found about spent sources holds until then."""
        cdef Site* site = &self._sites[number]
        cdef uint32_t share = site.parked
        cdef uint32_t following
        memset(site.spent_until, 0, sizeof(site.spent_until))
        if site.timer >= 0:
            (<Wheel>self._wheels[site.pool]).cancel_c(site.timer)
            site.timer = -1
        site.parked = site.parked_tail = NONE
        while share != NONE:
            following = self._shares[share].next
            self._list_share(share)
            share = following

    # -- the choice of a source

    cdef uint32_t _next_random(self) noexcept nogil:
        cdef uint64_t x = self._random
        x ^= x << 13
        x ^= x >> 7
        x ^= x << 17
        self._random = x
        return <uint32_t>(x >> 32)

    cdef int _find_roster(self, Share* share) except -1:
        """The roster of the share's tenant and lane, made if the topology has changed. Tenants of a class
        without a source of their own have one in common: it stays in the processor's cache however many they
        are."""
        cdef uint32_t owner = self._owner[share.tenant] if share.tenant < self._owner_capacity else 0
        cdef uint32_t slot = CLASSES * share.stream
        cdef uint32_t number
        if share.tenant < self._class_capacity:
            slot += self._tenant_class[share.tenant]
        number = owner * LANES * CLASSES + slot
        if number >= self._roster_capacity:
            self._rosters = <Roster*>_extended(self._rosters, &self._roster_capacity, number, sizeof(Roster))
        if self._rosters[number].generation != self._generation:
            self._rosters[number].slot = slot
            self._make_roster(&self._rosters[number], share.stream, share.tenant)
        share.roster = number
        share.generation = self._generation
        return 0

    cdef int _make_roster(self, Roster* roster, int lane, uint32_t tenant) except -1:
        """Sources that may ever carry the tenant's messages of the lane, by kind: dedicated, hybrid of its
        own, shared. Who has none borrows."""
        cdef uint32_t place = 0
        cdef uint32_t before
        cdef int kind
        cdef size_t size = (self._source_capacity + 1) * sizeof(uint32_t)
        cdef uint32_t* grown = <uint32_t*>reallocate(roster.list, size)
        if grown == NULL:
            raise MemoryError
        roster.list = grown
        for kind in range(3):
            before = place
            place = self._add_kind(roster, lane, tenant, kind, place, False)
            roster.count[kind] = place - before
        if place == 0:
            roster.count[2] = self._add_kind(roster, lane, tenant, 2, 0, True)
        roster.generation = self._generation
        return 0

    cdef uint32_t _add_kind(self, Roster* roster, int lane, uint32_t tenant, int wanted, uint32_t place,
                            bint lent) noexcept nogil:
        """Put the sources of one kind behind the first `place`; returns how many there are then."""
        cdef uint32_t bit = <uint32_t>1 << roster.slot
        cdef uint32_t source
        cdef Source* at
        cdef int kind
        for source in range(self._source_capacity):
            at = &self._sources[source]
            if not (at.streams >> lane) & 1:
                continue
            if at.tenancy == 1:
                if at.tenant != tenant:
                    continue
                kind = 0
            elif at.tenancy == 2 and at.tenant == tenant:
                kind = 1
            elif (at.lends if lent else at.serves) & bit:
                kind = 2
            else:
                continue
            if kind == wanted:
                roster.list[place] = source
                place += 1
        return place

    cdef bint _is_eligible(self, uint32_t number, Site* site, int64_t now, int64_t* wake,
                           int64_t* send_at) noexcept nogil:
        """Whether a source may carry a message now; if time alone will change that, `wake` is lowered to
        it."""
        cdef Source* source = &self._sources[number]
        cdef Pool* pool = &self._pools[site.pool]
        cdef Cell* cell
        cdef int64_t at
        if number >= site.cell_count:
            return False
        cell = &site.cells[number]
        if cell.window == 0:
            return False
        if not source.up or cell.weight == 0:
            self._why |= WAITS_SUSPENDED
            return False
        if cell.daily_left <= 0:
            self._why |= WAITS_DAILY
            return False
        if cell.outstanding >= cell.window:
            self._why |= WAITS_WINDOW
            return False
        if pool.seats[number].held or (pool.closed >> pool.seats[number].shard) & 1:
            return False
        at = source.suspended_until if source.suspended_until > cell.suspended_until else cell.suspended_until
        if at > now:
            self._why |= WAITS_SUSPENDED
            if at < wake[0]:
                wake[0] = at
            return False
        at = now
        if cell.interval:
            at = cell.tat - <int64_t>(cell.burst - 1) * cell.interval
            if at < now:
                at = now
            elif at > now + self._horizon:
                self._why |= WAITS_RATE
                if at - self._horizon < wake[0]:
                    wake[0] = at - self._horizon
                return False
            elif at > self._latest:
                if at < self._first:
                    self._first = at
                return False
        send_at[0] = at
        return True

    cdef int32_t _choose(self, Share* share, int64_t now, int64_t* wake, int64_t* send_at) noexcept nogil:
        """The source for the share's next message, or -1 with the earliest time at which there may be one.

        Where all sources have a rate together, one is taken that may send by the time at which the site may
        be sent to; if there is none, the one that may send first. So the site's grants are in the order of
        their times, and no time is lost."""
        cdef Site* site = &self._sites[share.site]
        cdef int64_t at = now
        cdef int32_t source
        wake[0] = NEVER
        self._why = 0
        self._latest = NEVER
        if site.suspended_until > now:
            self._why = WAITS_SUSPENDED
            wake[0] = site.suspended_until
            return -1
        if site.daily_left <= 0:
            self._why = WAITS_DAILY
            return -1
        if site.interval == 0:
            return self._choose_source(share, now, wake, send_at)
        if site.tat > now:
            at = site.tat
            if at > now + self._horizon:
                self._why = WAITS_RATE
                wake[0] = at - self._horizon
                return -1
        self._latest = at
        self._first = NEVER
        source = self._choose_source(share, now, wake, send_at)
        if source < 0 and self._first != NEVER:
            self._latest = self._first
            memset(site.spent_until, 0, sizeof(site.spent_until))
            source = self._choose_source(share, now, wake, send_at)
        if source >= 0 and send_at[0] < at:
            send_at[0] = at
        return source

    cdef int32_t _choose_source(self, Share* share, int64_t now, int64_t* wake,
                                int64_t* send_at) noexcept nogil:
        """Of the share's roster: dedicated ones first, then hybrid, then shared."""
        cdef Site* site = &self._sites[share.site]
        cdef Roster* roster = &self._rosters[share.roster]
        cdef uint32_t* list_ = roster.list
        cdef uint32_t slot = roster.slot
        cdef int32_t source
        cdef int64_t own_wake
        cdef uint32_t own_why
        cdef int kind
        for kind in range(2):
            if roster.count[kind]:
                source = self._choose_among(list_, roster.count[kind], site, now, wake, send_at)
                if source >= 0:
                    return source
                list_ += roster.count[kind]
        if roster.count[2] == 0:
            return -1
        if site.spent_generation == self._generation and site.spent_until[slot] > now:
            if site.spent_until[slot] < wake[0]:
                wake[0] = site.spent_until[slot]
            self._why |= site.spent_why[slot]
            return -1
        own_wake = wake[0]
        own_why = self._why
        wake[0] = NEVER
        self._why = 0
        source = self._choose_among(list_, roster.count[2], site, now, wake, send_at)
        if source >= 0:
            return source
        if roster.count[1] == 0:  # so these were all that any tenant of the class may use besides its own
            if site.spent_generation != self._generation:
                site.spent_generation = self._generation
                memset(site.spent_until, 0, sizeof(site.spent_until))
            site.spent_until[slot] = wake[0]
            site.spent_why[slot] = self._why
        if own_wake < wake[0]:
            wake[0] = own_wake
        self._why |= own_why
        return -1

    cdef int32_t _choose_among(self, uint32_t* list_, uint32_t count, Site* site, int64_t now, int64_t* wake,
                               int64_t* send_at) noexcept nogil:
        """One of these sources that may carry a message now: the less loaded of two picked at random, else
        any; -1 if there is none, and `wake` is lowered to the time at which there may be one."""
        cdef uint32_t i, start, first, second
        cdef int64_t first_at, second_at
        cdef bint is_first, is_second
        if count == 1:
            return <int32_t>list_[0] if self._is_eligible(list_[0], site, now, wake, send_at) else -1
        first = list_[self._next_random() % count]
        second = list_[self._next_random() % count]
        is_first = self._is_eligible(first, site, now, wake, &first_at)
        is_second = second != first and self._is_eligible(second, site, now, wake, &second_at)
        if is_first and is_second:
            # (outstanding + 1) / weight, compared without division
            if (<uint64_t>(site.cells[second].outstanding + 1) * site.cells[first].weight
                    < <uint64_t>(site.cells[first].outstanding + 1) * site.cells[second].weight):
                send_at[0] = second_at
                return <int32_t>second
        if is_first:
            send_at[0] = first_at
            return <int32_t>first
        if is_second:
            send_at[0] = second_at
            return <int32_t>second
        start = self._next_random() % count
        for i in range(count):
            first = list_[(start + i) % count]
            if self._is_eligible(first, site, now, wake, &first_at):
                send_at[0] = first_at
                return <int32_t>first
        return -1

    # -- taking

    cdef int _next_lane(self, Site* site, int64_t now) noexcept nogil:
        """The lane whose turn it is, -1 if none has work. Turns are messages granted, not tries, so that the
        lower lanes' turns come up however often the site runs dry. Where messages are hours apart, that would
        be days: a lower lane that has waited for the patience goes first, at most one time in four."""
        cdef int lane
        cdef int low = 0
        if site.turn - site.low_turn >= PATIENT_TURN:
            for lane in range(1, LANES):
                if site.head[lane] != NONE and now - site.waits_since[lane] >= self._patience:
                    if low == 0 or site.waits_since[lane] < site.waits_since[low]:
                        low = lane
            if low:
                return low
        if site.turn % LOW_TURN == LOW_TURN - 1:
            low = 2 if (site.turn // LOW_TURN) % 2 == 0 else 1
            if site.head[low] != NONE:
                return low
            low = 3 - low
            if site.head[low] != NONE:
                return low
        for lane in range(LANES):
            if site.head[lane] != NONE:
                return lane
        return -1

    cdef int _take_one(self, uint32_t site_no, int64_t now, char* out) except -1:
        """One message of a site into `out`: 1; 0 if the site has nothing that may go now."""
        cdef Site* site = &self._sites[site_no]
        cdef Share* share
        cdef Flow* flow
        cdef Slot* slot
        cdef Cell* cell
        cdef Entry entry
        cdef uint32_t number, flow_no, index, quantum
        cdef int32_t source
        cdef int64_t wake, send_at
        cdef int lane
        while True:
            lane = self._next_lane(site, now)
            if lane < 0:
                return 0
            number = site.head[lane]
            share = &self._shares[number]
            flow_no = share.head
            flow = &self._flows[flow_no]
            while flow.head != NONE and self._slots[flow.head].state == REMOVED:
                index = flow.head
                flow.head = self._slots[index].next
                self._free_slot(index)
            if flow.head == NONE:
                flow.tail = NONE
                self._pop_flow(share)
                if share.head == NONE:
                    self._pop_share(site, lane)
                    share.state = IDLE
                    share.served = 0
                    site.busy[lane] -= 1
                continue
            if share.generation != self._generation:
                self._find_roster(share)
            source = self._choose(share, now, &wake, &send_at)
            if source < 0:
                self._pop_share(site, lane)
                self._park(number, wake)
                continue
            break
        index = flow.head
        slot = &self._slots[index]
        flow.head = slot.next
        if flow.head == NONE:
            flow.tail = NONE
        flow.ready -= 1
        flow.in_flight += 1
        slot.state = IN_FLIGHT
        slot.source = <uint16_t>source
        slot.next = NONE
        cell = &site.cells[source]
        cell.outstanding += 1
        site.outstanding += 1
        self._pools[site.pool].seats[source].outstanding += 1
        self._pools[site.pool].seats[source].granted += 1
        if cell.daily_left <= UNCAPPED:
            cell.daily_left -= 1
        if site.daily_left <= UNCAPPED:
            site.daily_left -= 1
        if site.interval:
            site.tat = send_at + site.interval
        cell.grants += 1
        slot.grant = cell.grants
        slot.tat_before = cell.tat
        cell.tat = (cell.tat if cell.tat > send_at and cell.interval else send_at) + cell.interval
        site.turn += 1
        site.waits_since[lane] = now
        if lane:
            site.low_turn = site.turn
        entry.id = slot.id
        entry.send_at = send_at
        entry.site = site_no
        entry.source = <uint16_t>source
        entry.flags = 0
        entry.flow = flow_no
        entry.queue = slot.queue
        entry.due_ms = slot.due_ms
        memcpy(out, &entry, ENTRY_SIZE)
        flow.served += 1
        share.served += 1
        quantum = self._quantum
        if share.tenant < self._tenant_capacity and self._tenant_weight[share.tenant]:
            quantum *= self._tenant_weight[share.tenant]
        if flow.head == NONE:
            self._pop_flow(share)
        elif flow.served >= self._quantum:
            self._pop_flow(share)
            flow.listed = 1
            flow.served = 0
            if share.tail == NONE:
                share.head = flow_no
            else:
                self._flows[share.tail].next = flow_no
            share.tail = flow_no
        if share.head == NONE:
            self._pop_share(site, lane)
            share.state = IDLE
            share.served = 0
            site.busy[lane] -= 1
        elif share.served >= quantum:
            self._pop_share(site, lane)
            share.served = 0
            self._list_share(number)
        self._decisions += 1
        return 1

    cdef void _pop_flow(self, Share* share) noexcept nogil:
        cdef Flow* flow = &self._flows[share.head]
        share.head = flow.next
        if share.head == NONE:
            share.tail = NONE
        flow.next = NONE
        flow.listed = 0
        flow.served = 0

    cdef void _pop_share(self, Site* site, int lane) noexcept nogil:
        cdef Share* share = &self._shares[site.head[lane]]
        site.head[lane] = share.next
        if site.head[lane] == NONE:
            site.tail[lane] = NONE
        share.next = NONE

    def take(self, uint32_t pool, int64_t now_ns, int limit):
        """Up to `limit` decisions for a pool, 40 bytes each, little endian: id u64, send_at_ns i64, site u32,
        source u16, flags u16, flow u32, queue u32, due_ms u64."""
        cdef uint64_t woken
        cdef uint32_t site_no, served
        cdef Pool* at
        cdef Site* site
        cdef int count = 0
        cdef char* out
        cdef bytes packed
        cdef Wheel wheel
        if pool >= self._pool_capacity or limit <= 0:
            return b""
        if now_ns < self._now:
            now_ns = self._now
        self._now = now_ns
        wheel = <Wheel>self._wheels[pool]
        while wheel.pop_c(now_ns, &woken):
            self._sites[woken].timer = -1
            self._unpark_site(<uint32_t>woken)
        if self._pools[pool].head == NONE:
            return b""
        out = <char*>allocate(<size_t>limit * ENTRY_SIZE)
        if out == NULL:
            raise MemoryError
        try:
            at = &self._pools[pool]
            while count < limit and at.head != NONE:
                site_no = at.head
                site = &self._sites[site_no]
                served = 0
                while count < limit and served < self._quantum:
                    if not self._take_one(site_no, now_ns, out + count * ENTRY_SIZE):
                        break
                    count += 1
                    served += 1
                # to the end of the ring, or out of it
                at.head = site.next
                if at.head == NONE:
                    at.tail = NONE
                site.next = NONE
                site.listed = 0
                if site.head[0] != NONE or site.head[1] != NONE or site.head[2] != NONE:
                    site.listed = 1
                    if at.tail == NONE:
                        at.head = site_no
                    else:
                        self._sites[at.tail].next = site_no
                    at.tail = site_no
            packed = out[:count * ENTRY_SIZE]
        finally:
            release(out)
        return packed

    # -- settling

    cdef void _release(self, Slot* slot) noexcept:
        cdef Flow* flow = &self._flows[slot.flow]
        flow.in_flight -= 1
        self._sites[flow.site].cells[slot.source].outstanding -= 1
        self._sites[flow.site].outstanding -= 1
        self._pools[self._sites[flow.site].pool].seats[slot.source].outstanding -= 1
        if self._sites[flow.site].parked != NONE:
            self._unpark_site(flow.site)

    def settle(self, const unsigned char[::1] ids):
        """In-flight ids (8 bytes little endian each) are finished or deferred: forget them. What they charged
        stays charged; the window has room again. Unknown ids are passed over."""
        cdef Py_ssize_t i
        cdef uint64_t id_
        cdef uint32_t index
        for i in range(ids.shape[0] // 8):
            memcpy(&id_, &ids[i * 8], 8)
            index = self._lookup(id_)
            if index == NONE or self._slots[index].state != IN_FLIGHT:
                continue
            self._erase(id_)
            self._held -= 1
            self._release(&self._slots[index])
            self._free_slot(index)

    def give_back(self, const unsigned char[::1] ids):
        """In-flight ids were not sent: their charges are refunded and they are ready again, in this order at
        the head of their flows. The rate is refunded as far as no later grant stands on it."""
        cdef Py_ssize_t count = ids.shape[0] // 8
        cdef Py_ssize_t i
        cdef Py_ssize_t known = 0
        cdef uint64_t id_
        cdef uint32_t index
        cdef Slot* slot
        cdef Flow* flow
        cdef Returned* found = <Returned*>allocate((count + 1) * sizeof(Returned))
        if found == NULL:
            raise MemoryError
        for i in range(count - 1, -1, -1):
            memcpy(&id_, &ids[i * 8], 8)
            index = self._lookup(id_)
            if index == NONE or self._slots[index].state != IN_FLIGHT:
                continue
            slot = &self._slots[index]
            flow = &self._flows[slot.flow]
            slot.state = READY
            flow.ready += 1
            slot.next = flow.head
            flow.head = index
            if flow.tail == NONE:
                flow.tail = index
            self._list_flow(slot.flow)
            found[known].slot = index
            found[known].grant = slot.grant
            known += 1
        if known:
            self._refund(found, known)
        release(found)

    cdef void _refund(self, Returned* found, Py_ssize_t count) noexcept:
        """Undo the charges of these slots; the rate from the latest grant back, so that a run of latest
        grants is undone whatever the order of the ids."""
        cdef Py_ssize_t i
        cdef Slot* slot
        cdef Cell* cell
        qsort(found, count, sizeof(Returned), _later_first)
        for i in range(count):
            slot = &self._slots[found[i].slot]
            cell = &self._sites[self._flows[slot.flow].site].cells[slot.source]
            if cell.daily_left <= UNCAPPED:
                cell.daily_left += 1
            if self._sites[self._flows[slot.flow].site].daily_left <= UNCAPPED:
                self._sites[self._flows[slot.flow].site].daily_left += 1
            if slot.grant == cell.grants:
                cell.grants -= 1
                cell.tat = slot.tat_before
            self._release(slot)

    def remove(self, const unsigned char[::1] ids):
        """Forget ready ids (not those in flight); returns how many there were."""
        cdef Py_ssize_t i
        cdef uint64_t id_
        cdef uint32_t index
        cdef Flow* flow
        cdef int removed = 0
        for i in range(ids.shape[0] // 8):
            memcpy(&id_, &ids[i * 8], 8)
            index = self._lookup(id_)
            if index == NONE or self._slots[index].state != READY:
                continue
            self._erase(id_)
            self._held -= 1
            self._slots[index].state = REMOVED
            flow = &self._flows[self._slots[index].flow]
            flow.ready -= 1
            if flow.ready == 0 and self._sites[flow.site].parked != NONE:
                self._unpark_site(flow.site)  # the next take empties its line, so that it can be dropped
            removed += 1
        return removed

    # -- looking in

    def contains(self, uint64_t id_):
        return self._lookup(id_) != NONE

    def key_of(self, uint64_t id_):
        """The due key of an id that is held, or None."""
        cdef uint32_t index = self._lookup(id_)
        cdef unsigned char[18] key
        cdef int i
        if index == NONE:
            return None
        for i in range(4):
            key[i] = <unsigned char>(self._slots[index].queue >> (8 * (3 - i)))
        for i in range(6):
            key[4 + i] = <unsigned char>(self._slots[index].due_ms >> (8 * (5 - i)))
        for i in range(8):
            key[10 + i] = <unsigned char>(id_ >> (8 * (7 - i)))
        return (<char*>key)[:18]

    def ready(self, uint32_t flow):
        self._check_flow(flow)
        return self._flows[flow].ready

    def held(self):
        """Messages in memory, ready and in flight."""
        return self._held

    def in_flight_of(self, uint32_t pool, int shard=-1):
        """Ids in flight at a pool, or at one shard of it, 8 bytes little endian each."""
        cdef uint32_t i
        cdef uint64_t id_
        cdef bytearray ids = bytearray()
        cdef Slot* slot
        for i in range(self._slot_capacity):
            slot = &self._slots[i]
            if slot.state != IN_FLIGHT or self._sites[self._flows[slot.flow].site].pool != pool:
                continue
            if shard < 0 or self._pools[pool].seats[slot.source].shard == shard:
                id_ = slot.id
                ids += (<char*>&id_)[:8]
        return bytes(ids)

    def outstanding(self, uint32_t source, uint32_t site):
        self._check_cell(source, site)
        return self._sites[site].cells[source].outstanding

    def next_wake_ns(self, uint32_t pool):
        """A time before which a take for the pool yields nothing unless something else happens; 0 for now, -1
        if no time will do."""
        if pool < self._pool_capacity and self._pools[pool].head != NONE:
            return 0
        if pool >= self._pool_capacity:
            return -1
        return (<Wheel>self._wheels[pool]).next_due_c()

    def _known_sites(self):
        cdef uint32_t i
        cdef uint32_t count = 0
        for i in range(self._site_capacity):
            count += self._sites[i].known
        return count

    def stats(self):
        """Counts for metrics. `waits_*` say why shares were parked; one parking may have several reasons."""
        return {
            "held": self._held,
            "flows": len(self._flow_numbers),
            "shares": len(self._share_numbers),
            "sites": self._known_sites(),
            "decisions": self._decisions,
            "parkings": self._parkings,
            "waits_rate": self._waits[0],
            "waits_window": self._waits[1],
            "waits_daily": self._waits[2],
            "waits_suspended": self._waits[3],
            "sleeping": sum(len(wheel) for wheel in self._wheels),
        }
