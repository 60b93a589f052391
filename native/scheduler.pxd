from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from native.wheel cimport Wheel

cdef struct Slot:                # one message in memory
    uint64_t id
    uint64_t due_ms
    int64_t tat_before           # of its cell, before the take
    uint32_t grant               # number of the take in its cell
    uint32_t queue               # spool queue, part of the due key
    uint32_t flow
    uint32_t next                # in its flow's line, or in the free list
    uint16_t source              # while in flight
    uint8_t state

cdef struct Flow:
    uint32_t site
    uint32_t campaign
    uint32_t share               # the tenant's share it belongs to
    uint32_t head
    uint32_t tail
    uint32_t ready
    uint32_t in_flight
    uint32_t next                # in its share's ring, or in the free list
    uint32_t served              # since it came to the front
    uint8_t listed
    uint8_t used

cdef struct Share:               # one tenant in one lane of one site
    uint32_t site
    uint32_t tenant
    uint8_t stream
    uint8_t state                # idle, listed in its lane, parked
    uint32_t head                # ring of flows with ready messages
    uint32_t tail
    uint32_t next                # in its lane's ring, in the site's parked list, or in the free list
    uint32_t served              # in its present turn, which goes on after it was parked
    uint32_t flows               # how many belong to it
    uint32_t generation          # of the topology at which `roster` was looked up
    uint32_t roster

cdef struct Roster:              # sources that may ever carry a stream's mail of some tenants
    uint32_t generation          # of the topology at which it was made
    uint32_t slot                # 3 * lane + class of the tenants
    uint32_t* list               # by kind
    uint32_t[3] count            # of dedicated, hybrid, shared ones

cdef struct Cell:                # one source at one site
    int64_t tat                  # GCRA: theoretical arrival time of the next message
    int64_t interval             # 0: no rate
    int64_t suspended_until
    int64_t daily_left           # above UNCAPPED: no cap
    uint32_t burst
    uint32_t window              # 0: the source does not serve the site
    uint32_t outstanding
    uint32_t grants              # takes less refunds: who holds the last grant
    uint16_t weight

cdef struct Site:
    uint32_t pool
    uint8_t known
    uint8_t listed
    uint32_t next                # in its pool's ring
    uint32_t parked              # its parked shares, first come first
    uint32_t parked_tail
    uint32_t turn                # messages granted
    uint32_t low_turn            # the turn at which a lower lane was granted one last
    uint32_t[3] busy             # lanes: shares with ready messages, parked ones too
    int64_t[3] waits_since       # lanes: when the last message was granted, or when they got work
    uint32_t flows               # how many it has
    int64_t timer                # handle of the parked shares' timer, -1
    int64_t wake                 # and its time
    uint32_t[3] head             # lanes: ring of shares
    uint32_t[3] tail
    int64_t suspended_until
    int64_t interval             # between messages of all sources, 0: no rate
    int64_t tat
    int64_t daily_left           # for all sources, above UNCAPPED: no cap
    uint32_t outstanding
    int64_t[9] spent_until       # by lane and class: before that time no source that they share has room
    uint32_t[9] spent_why        # and what it waits for
    uint32_t spent_generation    # of the topology at which that was found
    Cell* cells                  # one per source
    uint32_t cell_count

cdef struct Source:
    uint32_t netblock
    uint32_t tenant
    uint16_t serves              # classes of tenants it serves in each stream, one bit each
    uint16_t lends               # the same, for tenants that no other source serves
    uint8_t streams
    uint8_t tenancy
    uint8_t up
    int64_t suspended_until

cdef struct Seat:                # one source at one pool
    uint64_t granted             # messages taken for it, ever
    uint32_t outstanding
    uint8_t shard                # the pool's process that carries its messages
    uint8_t held                 # it carries none now

cdef struct Pool:
    uint32_t head                # ring of sites with work
    uint32_t tail
    uint32_t closed              # bit mask of the shards that take nothing now
    Seat* seats                  # one per source
    uint32_t seat_count

cdef struct Returned:            # a slot that is given back
    uint32_t slot
    uint32_t grant

cdef class Scheduler:
    cdef list _wheels            # one per pool, of its sites
    cdef int64_t _now            # of the last take
    cdef object _flow_numbers
    cdef object _share_numbers
    cdef Slot* _slots
    cdef uint32_t _slot_capacity
    cdef uint32_t _free
    cdef uint32_t _held
    cdef uint32_t* _table
    cdef uint32_t _mask
    cdef Flow* _flows
    cdef uint32_t _free_flow
    cdef uint32_t _free_share
    cdef uint32_t _flow_count
    cdef uint32_t _flow_capacity
    cdef Share* _shares
    cdef uint32_t _share_count
    cdef uint32_t _share_capacity
    cdef Site* _sites
    cdef uint32_t _site_capacity
    cdef Source* _sources
    cdef uint32_t _source_capacity
    cdef Pool* _pools
    cdef uint32_t _pool_capacity
    cdef uint32_t* _tenant_weight
    cdef uint32_t _tenant_capacity
    cdef uint8_t* _tenant_class
    cdef uint32_t _class_capacity
    cdef uint32_t* _owner            # by tenant: 0, or its number among those with sources of their own
    cdef uint32_t _owner_capacity
    cdef uint32_t _owner_count
    cdef Roster* _rosters            # nine per owner, by lane and class; the first nine for all others
    cdef uint32_t _roster_capacity
    cdef uint32_t _generation        # of the topology: sources, and whose they are
    cdef uint64_t _random
    cdef int64_t _horizon
    cdef int64_t _patience           # a lower lane that has waited so long goes before the higher ones
    cdef uint32_t _quantum
    cdef uint64_t _decisions
    cdef uint64_t _parkings
    cdef uint64_t[4] _waits          # parkings by what was met: rate, window, daily cap, suspension
    cdef int64_t _latest             # the choice looks for a source that may send until then
    cdef int64_t _first              # and the earliest time after it at which one may, to the horizon
    cdef uint32_t _why               # what the present choice has met

    cdef uint32_t _lookup(self, uint64_t id_) noexcept nogil
    cdef void _insert(self, uint32_t slot) noexcept nogil
    cdef void _erase(self, uint64_t id_) noexcept nogil
    cdef int _rehash(self, uint32_t size) except -1
    cdef int _grow_slots(self) except -1
    cdef void _free_slot(self, uint32_t index) noexcept nogil
    cdef void _list_flow(self, uint32_t flow) noexcept nogil
    cdef void _list_share(self, uint32_t share) noexcept nogil
    cdef void _unpark_site(self, uint32_t number) noexcept
    cdef void _unpark_pool(self, uint32_t pool) noexcept
    cdef Pool* _pool(self, uint32_t pool) except NULL
    cdef Seat* _seat(self, uint32_t pool, uint32_t source) except NULL
    cdef int _park(self, uint32_t share, int64_t wake) except -1
    cdef int _find_roster(self, Share* share) except -1
    cdef int _make_roster(self, Roster* roster, int lane, uint32_t tenant) except -1
    cdef uint32_t _add_kind(self, Roster* roster, int lane, uint32_t tenant, int wanted, uint32_t place,
                            bint lent) noexcept nogil
    cdef int _renew_rosters(self) except -1
    cdef int32_t _choose(self, Share* share, int64_t now, int64_t* wake, int64_t* send_at) noexcept nogil
    cdef int32_t _choose_source(self, Share* share, int64_t now, int64_t* wake,
                                int64_t* send_at) noexcept nogil
    cdef int32_t _choose_among(self, uint32_t* list_, uint32_t count, Site* site, int64_t now, int64_t* wake,
                               int64_t* send_at) noexcept nogil
    cdef bint _is_eligible(self, uint32_t source, Site* site, int64_t now, int64_t* wake,
                           int64_t* send_at) noexcept nogil
    cdef uint32_t _next_random(self) noexcept nogil
    cdef int _check_flow(self, uint32_t flow) except -1
    cdef int _check_site(self, uint32_t site) except -1
    cdef int _check_cell(self, uint32_t source, uint32_t site) except -1
    cdef int _next_lane(self, Site* site, int64_t now) noexcept nogil
    cdef int _take_one(self, uint32_t site_no, int64_t now, char* out) except -1
    cdef void _release(self, Slot* slot) noexcept
    cdef void _refund(self, Returned* found, Py_ssize_t count) noexcept
    cdef void _pop_flow(self, Share* share) noexcept nogil
    cdef void _pop_share(self, Site* site, int lane) noexcept nogil
