cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t

cdef enum ShareState:
    IDLE
    LISTED
    PARKED

cdef struct Flow:
    uint32_t site
    uint32_t campaign
    uint32_t share               # the tenant's share it belongs to
    uint32_t head                # its line of messages
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


@cython.final
cdef class Flows:
    cdef Flow* flows
    cdef Share* shares
    cdef dict _flow_numbers
    cdef dict _share_numbers
    cdef uint32_t _free_flow
    cdef uint32_t _flow_count
    cdef uint32_t _flow_capacity
    cdef uint32_t _free_share
    cdef uint32_t _share_count
    cdef uint32_t _share_capacity

    cdef uint32_t known(self, uint32_t site, int stream, uint32_t tenant, uint32_t campaign) except? 0
    cdef uint32_t add(self, uint32_t site, int stream, uint32_t tenant, uint32_t campaign) except? 0
    cdef uint32_t _share(self, uint32_t site, int stream, uint32_t tenant) except? 0
    cdef bint drop(self, uint32_t flow) except -1
    cdef int check(self, uint32_t flow) except -1
    cdef void append(self, uint32_t flow) noexcept nogil
    cdef void pop(self, Share* share) noexcept nogil
    cdef Py_ssize_t count(self)
    cdef Py_ssize_t count_shares(self)
    cdef int64_t blocks(self) noexcept
