"""The order in which messages go: a pool's sites, a site's lanes, a lane's shares, a share's flows, each by
turns.

A pool's sites take turns. At a site the streams have strict priority, except that one message in sixteen goes
to a lower stream that has work (the two lower ones in turn), and one in four where that would take longer
than `patience_ns`, so bulk never starves. In a stream tenants share by deficit round robin with their
weights, and a tenant's campaigns by turns.

A share that no source may carry now is parked until the earliest time at which one may, or until something
changes at the site. It comes back in its order and goes on with the turn that it had begun. So nothing is
scanned in vain, and nobody blocks another. """

cimport cython
from libc.string cimport memset

from native.flows cimport IDLE, LISTED, PARKED, Flow
from native.marks cimport NEVER, NONE
from native.memory cimport extended, live_blocks_c, release
from native.sources cimport LANES
from native.wheel cimport Wheel

cdef uint32_t LOW_TURN = 16
cdef uint32_t PATIENT_TURN = 4


@cython.final
cdef class Lanes:
    """See the module docstring."""

    def __cinit__(self, Flows flows, uint32_t quantum, int64_t patience_ns):
        self._flows = flows
        self.wheels = []
        self.quantum = quantum
        self._patience = patience_ns

    def __dealloc__(self):
        release(self.lines)
        release(self.rings)
        release(self._tenant_weight)

    cdef int64_t blocks(self) noexcept:
        """Blocks of memory that this kernel has not freed; -1 in a release build."""
        return live_blocks_c

    cdef int add(self, uint32_t site, uint32_t pool) except -1:
        """A site that is new, of a pool that may be."""
        cdef uint32_t old = self.ring_capacity
        cdef uint32_t i
        if site >= self._line_capacity:
            self.lines = <Line*>extended(self.lines, &self._line_capacity, site, sizeof(Line))
        if pool >= old:
            self.rings = <Ring*>extended(self.rings, &self.ring_capacity, pool, sizeof(Ring))
            for i in range(old, self.ring_capacity):
                self.rings[i].head = self.rings[i].tail = NONE
                self.wheels.append(Wheel(0))
        self.lines[site].pool = pool
        self.lines[site].parked = self.lines[site].parked_tail = NONE
        self.lines[site].timer = -1
        for i in range(3):
            self.lines[site].head[i] = self.lines[site].tail[i] = NONE
        return 0

    cdef void drop(self, uint32_t site) noexcept:
        """Forget a site that has no flows and is not in its pool's ring."""
        cdef Line* line = &self.lines[site]
        if line.timer >= 0:
            (<Wheel>self.wheels[line.pool]).cancel_c(line.timer)
        memset(line, 0, sizeof(Line))

    cdef int set_weight(self, uint32_t tenant, uint32_t weight) except -1:
        """See `Scheduler.tenant_weight`."""
        if not 1 <= weight <= 1000:
            raise ValueError(f"weight {weight}: allowed are 1 to 1000")
        if tenant >= self._tenant_capacity:
            self._tenant_weight = <uint32_t*>extended(
                self._tenant_weight, &self._tenant_capacity, tenant, sizeof(uint32_t))
        self._tenant_weight[tenant] = weight
        return 0

    # -- whose turn it is

    cdef int next_lane(self, Line* line) noexcept nogil:
        """The lane whose turn it is, -1 if none has work. Turns are messages granted, not tries, so that the
        lower lanes' turns come up however often the site runs dry. Where messages are hours apart, that would
        be days: a lower lane that has waited for the patience goes first, at most one time in four."""
        cdef int lane
        cdef int low = 0
        if line.turn - line.low_turn >= PATIENT_TURN:
            for lane in range(1, LANES):
                if line.head[lane] != NONE and self.now - line.waits_since[lane] >= self._patience:
                    if low == 0 or line.waits_since[lane] < line.waits_since[low]:
                        low = lane
            if low:
                return low
        if line.turn % LOW_TURN == LOW_TURN - 1:
            low = 2 if (line.turn // LOW_TURN) % 2 == 0 else 1
            if line.head[low] != NONE:
                return low
            low = 3 - low
            if line.head[low] != NONE:
                return low
        for lane in range(LANES):
            if line.head[lane] != NONE:
                return lane
        return -1

    cdef void end_flow(self, uint32_t site, int lane) noexcept nogil:
        """The first flow of a lane's first share has no messages: out of its ring, and the share out of its
        lane if it was the last."""
        cdef Line* line = &self.lines[site]
        cdef Share* share = &self._flows.shares[line.head[lane]]
        self._flows.pop(share)
        if share.head == NONE:
            self._end_share(line, lane)

    cdef void granted(self, uint32_t site, int lane) noexcept nogil:
        """A message of the first flow of a lane's first share was taken: turns go on."""
        cdef Line* line = &self.lines[site]
        cdef uint32_t number = line.head[lane]
        cdef Share* share = &self._flows.shares[number]
        cdef uint32_t flow_no = share.head
        cdef Flow* flow = &self._flows.flows[flow_no]
        cdef uint32_t quantum = self.quantum
        line.turn += 1
        line.waits_since[lane] = self.now
        if lane:
            line.low_turn = line.turn
        flow.served += 1
        share.served += 1
        if share.tenant < self._tenant_capacity and self._tenant_weight[share.tenant]:
            quantum *= self._tenant_weight[share.tenant]
        if flow.head == NONE:
            self._flows.pop(share)
        elif flow.served >= self.quantum:
            self._flows.pop(share)
            self._flows.append(flow_no)
        if share.head == NONE:
            self._end_share(line, lane)
        elif share.served >= quantum:
            self._pop_share(line, lane)
            share.served = 0
            self.list_share(number)

    cdef void rotate(self, uint32_t pool) noexcept nogil:
        """The first site of a pool has had its turn: to the end of the ring, or out of it."""
        cdef Ring* ring = &self.rings[pool]
        cdef uint32_t site = ring.head
        cdef Line* line = &self.lines[site]
        ring.head = line.next
        if ring.head == NONE:
            ring.tail = NONE
        line.next = NONE
        line.listed = 0
        if line.head[0] != NONE or line.head[1] != NONE or line.head[2] != NONE:
            line.listed = 1
            if ring.tail == NONE:
                ring.head = site
            else:
                self.lines[ring.tail].next = site
            ring.tail = site

    # -- in and out of the rings

    cdef void list_flow(self, uint32_t flow) noexcept nogil:
        """The flow has ready messages: into its share's ring, the share into its lane's, the site into its
        pool's."""
        cdef Flow* listed = &self._flows.flows[flow]
        cdef Share* share = &self._flows.shares[listed.share]
        cdef Line* line = &self.lines[share.site]
        if not listed.listed:
            self._flows.append(flow)
        if share.state == IDLE:
            if line.busy[share.stream] == 0:
                line.waits_since[share.stream] = self.now
            line.busy[share.stream] += 1
            self.list_share(listed.share)

    cdef void list_share(self, uint32_t number) noexcept nogil:
        """Into its lane's ring: at the head if it has a turn to finish, else at the tail."""
        cdef Share* share = &self._flows.shares[number]
        cdef Line* line = &self.lines[share.site]
        cdef Ring* ring = &self.rings[line.pool]
        share.state = LISTED
        share.next = NONE
        if line.tail[share.stream] == NONE:
            line.head[share.stream] = line.tail[share.stream] = number
        elif share.served:
            share.next = line.head[share.stream]
            line.head[share.stream] = number
        else:
            self._flows.shares[line.tail[share.stream]].next = number
            line.tail[share.stream] = number
        if not line.listed:
            line.listed = 1
            line.next = NONE
            if ring.tail == NONE:
                ring.head = share.site
            else:
                self.lines[ring.tail].next = share.site
            ring.tail = share.site

    cdef uint32_t _pop_share(self, Line* line, int lane) noexcept nogil:
        """The first share out of its lane; returns its number."""
        cdef uint32_t number = line.head[lane]
        cdef Share* share = &self._flows.shares[number]
        line.head[lane] = share.next
        if line.head[lane] == NONE:
            line.tail[lane] = NONE
        share.next = NONE
        return number

    cdef void _end_share(self, Line* line, int lane) noexcept nogil:
        """The first share of a lane has nothing more."""
        cdef Share* share = &self._flows.shares[self._pop_share(line, lane)]
        share.state = IDLE
        share.served = 0
        line.busy[lane] -= 1

    # -- waiting

    cdef int park(self, uint32_t site, int lane, int64_t wake, uint32_t why) except -1:
        """Set the first share of a lane aside until `wake`, or until something changes at the site. `why`:
        the bits of native/choice.pxd."""
        cdef Line* line = &self.lines[site]
        cdef uint32_t number = self._pop_share(line, lane)
        cdef Wheel wheel
        cdef int bit
        self._flows.shares[number].state = PARKED
        if line.parked_tail == NONE:
            line.parked = number
        else:
            self._flows.shares[line.parked_tail].next = number
        line.parked_tail = number
        self.parkings += 1
        for bit in range(4):
            self.waits[bit] += (why >> bit) & 1
        if wake == NEVER or (line.timer >= 0 and line.wake <= wake):
            return 0
        wheel = <Wheel>self.wheels[line.pool]
        if line.timer >= 0:
            wheel.cancel_c(line.timer)
            line.timer = -1
        line.timer = wheel.add_c(wake, site)
        line.wake = wake
        return 0

    cdef void unpark(self, uint32_t site) noexcept:
        """All parked shares of a site back into their lanes, in the order in which they were parked."""
        cdef Line* line = &self.lines[site]
        cdef uint32_t share = line.parked
        cdef uint32_t following
        if line.timer >= 0:
            (<Wheel>self.wheels[line.pool]).cancel_c(line.timer)
            line.timer = -1
        line.parked = line.parked_tail = NONE
        while share != NONE:
            following = self._flows.shares[share].next
            self.list_share(share)
            share = following
