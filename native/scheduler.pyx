"""The scheduler: which message goes next, over which source, and when.

Owns the ready messages in memory, the limits of every (source, site), and who waits for what. Knows numbers
only: time and the seed are arguments, there is no clock, no randomness and no configuration in here.

Its parts, each a kernel of its own:

  topology   the face for sources, sites and limits; this module has that for messages
  messages   the messages held, by id
  flows      campaigns' messages (flows) and tenants' shares, by number
  lanes      the order: sites, streams, tenants and campaigns by turns; what no source may carry now is parked
  limits     rates, daily counts and windows; what is charged at a take, and refunded
  sources    the sources, and who may carry whose mail
  seats      which process of a pool carries which source
  choice     the source for a message

A take may grant a time up to `horizon_ns` ahead. What is given back unsent is refunded exactly, the rate only
if no later grant stands on it. Time never goes back: a take at an earlier time than the last one counts as
one at that time.

Memory: 48 bytes per message that the scheduler has held at once, 56 per (source, site), and a little per
flow; a flow or a site that is dropped gives its place to the next.
"""

cimport cython
from libc.stdint cimport int32_t, uint16_t
from libc.stdlib cimport qsort
from libc.string cimport memcpy

from native.flows cimport Flow, Share
from native.lanes cimport Line
from native.limits cimport Place, charge, delay_all, delay_cell, refund
from native.marks cimport NONE
from native.memory cimport allocate, live_blocks_c, release
from native.messages cimport IN_FLIGHT, READY, REMOVED
from native.seats cimport Seat
from native.sources cimport LANES
from native.wheel cimport Wheel

cdef enum:
    KEY_SIZE = 18
    ENTRY_SIZE = 40


def live_blocks():
    """Blocks of memory that neither the scheduler nor its parts have freed; -1 in a release build."""
    cdef Scheduler made
    if live_blocks_c < 0:
        return -1
    made = Scheduler(seed=1)
    counts = [
        live_blocks_c, made._messages.blocks(), made._flows.blocks(), made._lanes.blocks(),
        made._limits.blocks(), made._sources.blocks(), made._seats.blocks(),
    ]
    return sum(counts) - 1  # the table of ids of the one that was asked


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


@cython.final
cdef class Scheduler(Topology):
    """See the module docstring."""

    def __cinit__(self, *, seed, horizon_ns=50_000_000, quantum=16, patience_ns=900_000_000_000):
        self._messages = Messages()

    # -- flows

    def flow(self, uint32_t site, int stream, uint32_t tenant, uint32_t campaign):
        """Number of the flow, made if there is none."""
        cdef uint32_t number = self._flows.known(site, stream, tenant, campaign)
        if number != NONE:
            return number
        self._limits.check(site)
        if not 0 <= stream < LANES:
            raise ValueError(f"stream {stream}: allowed are 0 to 2")
        number = self._flows.add(site, stream, tenant, campaign)
        self._lanes.lines[site].flows += 1
        return number

    def drop_flow(self, uint32_t flow):
        """Forget a flow that holds nothing, and its number: True. False while it holds messages (also removed
        ones that stand in its line)."""
        self._flows.check(flow)
        if not self._flows.drop(flow):
            return False
        self._lanes.lines[self._flows.flows[flow].site].flows -= 1
        return True

    def site_of(self, uint32_t flow):
        self._flows.check(flow)
        return self._flows.flows[flow].site

    def ready(self, uint32_t flow):
        self._flows.check(flow)
        return self._flows.flows[flow].ready

    cdef void _skip_removed(self, Flow* flow) noexcept:
        """Let a flow's line begin with a message that is ready; without one it is empty."""
        cdef uint32_t index
        while flow.head != NONE and self._messages.slots[flow.head].state == REMOVED:
            index = flow.head
            flow.head = self._messages.slots[index].next
            self._messages.free(index)
        if flow.head == NONE:
            flow.tail = NONE

    def head_due_ms(self, uint32_t flow):
        """Due time of the message of a flow that goes next; -1 if none is ready."""
        self._flows.check(flow)
        self._skip_removed(&self._flows.flows[flow])
        if self._flows.flows[flow].head == NONE:
            return -1
        return self._messages.slots[self._flows.flows[flow].head].due_ms

    def add(self, uint32_t flow, const unsigned char[::1] due_keys):
        """Ready messages for a flow: 18 bytes each (queue u32, due_ms u48, id u64, big endian). Returns how
        many were new; ids that are held already are passed over."""
        cdef Py_ssize_t i
        cdef const unsigned char* key
        cdef uint32_t index
        cdef Slot* slot
        cdef Flow* into
        cdef uint32_t added = 0
        self._flows.check(flow)
        if due_keys.shape[0] % KEY_SIZE:
            raise ValueError(f"{due_keys.shape[0]} bytes of due keys: expected a multiple of {KEY_SIZE}")
        into = &self._flows.flows[flow]
        for i in range(due_keys.shape[0] // KEY_SIZE):
            key = &due_keys[i * KEY_SIZE]
            index = self._messages.add(_big_endian(key + 10, 8))
            if index == NONE:
                continue
            slot = &self._messages.slots[index]
            slot.queue = <uint32_t>_big_endian(key, 4)
            slot.due_ms = _big_endian(key + 4, 6)
            slot.flow = flow
            if into.tail == NONE:
                into.head = index
            else:
                self._messages.slots[into.tail].next = index
            into.tail = index
            into.ready += 1
            added += 1
        if added:
            self._lanes.list_flow(flow)
        return added

    # -- taking

    cdef int _take_one(self, uint32_t site, int64_t now, char* out) except -1:
        """One message of a site into `out`: 1; 0 if the site has nothing that may go now."""
        cdef Line* line = &self._lanes.lines[site]
        cdef Share* share
        cdef Flow* flow
        cdef Slot* slot
        cdef Seat* seat
        cdef Entry entry
        cdef uint32_t index
        cdef int32_t source
        cdef int64_t wake, send_at
        cdef int lane
        while True:
            lane = self._lanes.next_lane(line)
            if lane < 0:
                return 0
            share = &self._flows.shares[line.head[lane]]
            flow = &self._flows.flows[share.head]
            self._skip_removed(flow)
            if flow.head == NONE:
                self._lanes.end_flow(site, lane)
                continue
            if share.generation != self._sources.generation:
                share.roster = self._sources.find_roster(share.stream, share.tenant)
                share.generation = self._sources.generation
            source = self._choice.choose(site, line.pool, share.roster, now, &wake, &send_at)
            if source >= 0:
                break
            self._lanes.park(site, lane, wake, self._choice.why)
        index = flow.head
        slot = &self._messages.slots[index]
        flow.head = slot.next
        if flow.head == NONE:
            flow.tail = NONE
        flow.ready -= 1
        flow.in_flight += 1
        slot.state = IN_FLIGHT
        slot.source = <uint16_t>source
        slot.next = NONE
        slot.tat_before = charge(&self._limits.places[site], source, send_at)
        slot.grant = self._limits.places[site].cells[source].grants
        seat = &self._seats.pools[line.pool].seats[source]
        seat.outstanding += 1
        seat.granted += 1
        entry.id = slot.id
        entry.send_at = send_at
        entry.site = site
        entry.source = <uint16_t>source
        entry.flags = 0
        entry.flow = slot.flow
        entry.queue = slot.queue
        entry.due_ms = slot.due_ms
        memcpy(out, &entry, ENTRY_SIZE)
        self._lanes.granted(site, lane)
        self._decisions += 1
        return 1

    def take(self, uint32_t pool, int64_t now_ns, int limit):
        """Up to `limit` decisions for a pool, 40 bytes each, little endian: id u64, send_at_ns i64, site u32,
        source u16, flags u16, flow u32, queue u32, due_ms u64."""
        cdef uint64_t woken
        cdef uint32_t served
        cdef int count = 0
        cdef char* out
        cdef bytes packed
        cdef Wheel wheel
        if pool >= self._lanes.ring_capacity or limit <= 0:
            return b""
        if now_ns < self._lanes.now:
            now_ns = self._lanes.now
        self._lanes.now = now_ns
        wheel = <Wheel>self._lanes.wheels[pool]
        while wheel.pop_c(now_ns, &woken):
            self._lanes.lines[woken].timer = -1
            self._changed(<uint32_t>woken)
        if self._lanes.rings[pool].head == NONE:
            return b""
        out = <char*>allocate(<size_t>limit * ENTRY_SIZE)
        if out == NULL:
            raise MemoryError
        try:
            while count < limit and self._lanes.rings[pool].head != NONE:
                served = 0
                while count < limit and served < self._lanes.quantum:
                    if not self._take_one(self._lanes.rings[pool].head, now_ns, out + count * ENTRY_SIZE):
                        break
                    count += 1
                    served += 1
                self._lanes.rotate(pool)
            packed = out[:count * ENTRY_SIZE]
        finally:
            release(out)
        return packed

    def next_wake_ns(self, uint32_t pool):
        """A time before which a take for the pool yields nothing unless something else happens; 0 for now, -1
        if no time will do."""
        if pool >= self._lanes.ring_capacity:
            return -1
        if self._lanes.rings[pool].head != NONE:
            return 0
        return (<Wheel>self._lanes.wheels[pool]).next_due_c()

    # -- settling

    cdef void _release(self, Slot* slot) noexcept:
        """A message is in flight no longer: the windows have room again."""
        cdef Flow* flow = &self._flows.flows[slot.flow]
        cdef Place* place = &self._limits.places[flow.site]
        flow.in_flight -= 1
        place.cells[slot.source].outstanding -= 1
        place.outstanding -= 1
        self._seats.pools[self._lanes.lines[flow.site].pool].seats[slot.source].outstanding -= 1
        if self._lanes.lines[flow.site].parked != NONE:
            self._changed(flow.site)

    def settle(self, const unsigned char[::1] ids):
        """In-flight ids (8 bytes little endian each) are finished or deferred: forget them. What they charged
        stays charged; the window has room again. Unknown ids are passed over."""
        cdef Messages messages = self._messages
        cdef Py_ssize_t i
        cdef uint64_t id_
        cdef uint32_t index
        for i in range(ids.shape[0] // 8):
            memcpy(&id_, &ids[i * 8], 8)
            index = messages.find(id_)
            if index == NONE or messages.slots[index].state != IN_FLIGHT:
                continue
            messages.forget(index)
            self._release(&messages.slots[index])
            messages.free(index)

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
            index = self._messages.find(id_)
            if index == NONE or self._messages.slots[index].state != IN_FLIGHT:
                continue
            slot = &self._messages.slots[index]
            flow = &self._flows.flows[slot.flow]
            slot.state = READY
            flow.ready += 1
            slot.next = flow.head
            flow.head = index
            if flow.tail == NONE:
                flow.tail = index
            self._lanes.list_flow(slot.flow)
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
        qsort(found, count, sizeof(Returned), _later_first)
        for i in range(count):
            slot = &self._messages.slots[found[i].slot]
            refund(&self._limits.places[self._flows.flows[slot.flow].site], slot.source, slot.grant,
                   slot.tat_before)
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
            index = self._messages.find(id_)
            if index == NONE or self._messages.slots[index].state != READY:
                continue
            self._messages.forget(index)
            self._messages.slots[index].state = REMOVED
            flow = &self._flows.flows[self._messages.slots[index].flow]
            flow.ready -= 1
            if flow.ready == 0 and self._lanes.lines[flow.site].parked != NONE:
                self._changed(flow.site)  # the next take empties its line, so that it can be dropped
            removed += 1
        return removed

    # -- looking in

    def contains(self, uint64_t id_):
        return self._messages.find(id_) != NONE

    def key_of(self, uint64_t id_):
        """The due key of an id that is held, or None."""
        cdef uint32_t index = self._messages.find(id_)
        cdef Slot* slot
        if index == NONE:
            return None
        slot = &self._messages.slots[index]
        return slot.queue.to_bytes(4, "big") + slot.due_ms.to_bytes(6, "big") + id_.to_bytes(8, "big")

    cdef bint _is_at(self, Slot* slot, uint32_t pool, int shard) noexcept:
        """Whether a message is in flight at a pool, at that shard of it (-1: at any)."""
        if slot.state != IN_FLIGHT or self._lanes.lines[self._flows.flows[slot.flow].site].pool != pool:
            return False
        return shard < 0 or self._seats.pools[pool].seats[slot.source].shard == shard

    def in_flight_of(self, uint32_t pool, int shard=-1):
        """Ids in flight at a pool, or at one shard of it, 8 bytes little endian each."""
        cdef uint32_t i
        cdef uint64_t id_
        cdef bytearray ids = bytearray()
        for i in range(self._messages.capacity):
            if self._is_at(&self._messages.slots[i], pool, shard):
                id_ = self._messages.slots[i].id
                ids += (<char*>&id_)[:8]
        return bytes(ids)

    def presume_sent(self, uint32_t pool, uint32_t shard, int64_t now_ns):
        """A shard ended without a word: what is in flight there may have begun just now, so the rates that it
        charged count from now."""
        cdef uint32_t i
        cdef Slot* slot
        cdef Place* place
        for i in range(self._messages.capacity):
            slot = &self._messages.slots[i]
            if self._is_at(slot, pool, <int>shard):
                place = &self._limits.places[self._flows.flows[slot.flow].site]
                delay_all(place, now_ns + place.interval)
                delay_cell(&place.cells[slot.source], now_ns + place.cells[slot.source].interval)

    def held(self):
        """Messages in memory, ready and in flight."""
        return self._messages.held

    def stats(self):
        """Counts for metrics. `waits_*` say why shares were parked; one parking may have several reasons."""
        return {
            "held": self._messages.held,
            "flows": self._flows.count(),
            "shares": self._flows.count_shares(),
            "sites": self._limits.count(),
            "decisions": self._decisions,
            "parkings": self._lanes.parkings,
            "waits_rate": self._lanes.waits[0],
            "waits_window": self._lanes.waits[1],
            "waits_daily": self._lanes.waits[2],
            "waits_suspended": self._lanes.waits[3],
            "sleeping": sum([len(wheel) for wheel in self._lanes.wheels]),
        }
