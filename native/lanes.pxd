cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from native.flows cimport Flows, Share

cdef struct Line:                # one site: its lanes, and what is parked
    uint32_t pool
    uint32_t next                # in its pool's ring
    uint8_t listed
    uint32_t parked              # its parked shares, first come first
    uint32_t parked_tail
    uint32_t turn                # messages granted
    uint32_t low_turn            # the turn at which a lower lane was granted one last
    uint32_t[3] head             # lanes: ring of shares
    uint32_t[3] tail
    uint32_t[3] busy             # lanes: shares with ready messages, parked ones too
    int64_t[3] waits_since       # lanes: when the last message was granted, or when they got work
    uint32_t flows               # how many it has
    int64_t timer                # handle of the parked shares' timer, -1
    int64_t wake                 # and its time

cdef struct Ring:                # one pool: its sites with work
    uint32_t head
    uint32_t tail


@cython.final
cdef class Lanes:
    cdef Line* lines             # by site
    cdef Ring* rings             # by pool
    cdef uint32_t ring_capacity
    cdef list wheels             # one per pool, of its sites
    cdef int64_t now             # of the last take
    cdef uint32_t quantum
    cdef uint64_t parkings
    cdef uint64_t[4] waits       # parkings by what was met: rate, window, daily cap, suspension
    cdef Flows _flows
    cdef uint32_t _line_capacity
    cdef int64_t _patience       # a lower lane that has waited so long goes before the higher ones
    cdef uint32_t* _tenant_weight
    cdef uint32_t _tenant_capacity

    cdef int add(self, uint32_t site, uint32_t pool) except -1
    cdef void drop(self, uint32_t site) noexcept
    cdef int set_weight(self, uint32_t tenant, uint32_t weight) except -1
    cdef int next_lane(self, Line* line) noexcept nogil
    cdef void list_flow(self, uint32_t flow) noexcept nogil
    cdef void list_share(self, uint32_t share) noexcept nogil
    cdef void end_flow(self, uint32_t site, int lane) noexcept nogil
    cdef void granted(self, uint32_t site, int lane) noexcept nogil
    cdef int park(self, uint32_t site, int lane, int64_t wake, uint32_t why) except -1
    cdef void unpark(self, uint32_t site) noexcept
    cdef void rotate(self, uint32_t pool) noexcept nogil
    cdef uint32_t _pop_share(self, Line* line, int lane) noexcept nogil
    cdef void _end_share(self, Line* line, int lane) noexcept nogil
    cdef int64_t blocks(self) noexcept
