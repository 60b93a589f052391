cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

cdef enum:
    LANES = 3                    # streams
    CLASSES = 3                  # of tenants

cdef struct Source:
    uint32_t netblock
    uint32_t tenant
    uint16_t serves              # classes of tenants it serves in each stream, one bit each
    uint16_t lends               # the same, for tenants that no other source serves
    uint8_t streams
    uint8_t tenancy
    uint8_t up
    int64_t suspended_until

cdef struct Roster:              # sources that may ever carry a stream's mail of some tenants
    uint32_t generation          # of the topology at which it was made
    uint32_t slot                # 3 * lane + class of the tenants
    uint32_t* list               # by kind
    uint32_t[3] count            # of dedicated, hybrid, shared ones


@cython.final
cdef class Sources:
    cdef Source* sources
    cdef uint32_t capacity
    cdef Roster* rosters         # nine per owner, by lane and class; the first nine for all others
    cdef uint32_t generation     # of the topology: sources, and whose they are
    cdef uint32_t _roster_capacity
    cdef uint8_t* _tenant_class
    cdef uint32_t _class_capacity
    cdef uint32_t* _owner        # by tenant: 0, or its number among those with sources of their own
    cdef uint32_t _owner_capacity
    cdef uint32_t _owner_count

    cdef int set(self, uint32_t source, uint32_t netblock, int streams, int tenancy,
                 uint32_t tenant) except -1
    cdef bint set_serves(self, uint32_t source, uint32_t serves, uint32_t lends) except -1
    cdef bint set_class(self, uint32_t tenant, uint32_t number) except -1
    cdef Source* source(self, uint32_t source) except NULL
    cdef uint32_t find_roster(self, int lane, uint32_t tenant) except? 0
    cdef int _make_roster(self, Roster* roster, int lane, uint32_t tenant) except -1
    cdef uint32_t _add_kind(self, Roster* roster, int lane, uint32_t tenant, int wanted, uint32_t place,
                            bint lent) noexcept nogil
    cdef int64_t blocks(self) noexcept
