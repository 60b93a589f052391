cimport cython
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    MAX_SHARDS = 32

cdef struct Seat:                # one source at one pool
    uint64_t granted             # messages taken for it, ever
    uint32_t outstanding
    uint8_t shard                # the pool's process that carries its messages
    uint8_t held                 # it carries none now

cdef struct Bench:               # one pool's seats
    Seat* seats                  # one per source
    uint32_t count
    uint32_t closed              # bit mask of the shards that take nothing now


@cython.final
cdef class Seats:
    cdef Bench* pools
    cdef uint32_t _capacity

    cdef Bench* bench(self, uint32_t pool) except NULL
    cdef Seat* seat(self, uint32_t pool, uint32_t source) except NULL
    cdef int set_shard(self, uint32_t pool, uint32_t source, uint32_t shard) except -1
    cdef uint32_t close(self, uint32_t pool, uint32_t closed) except? 0
    cdef uint32_t outstanding_at(self, uint32_t pool, uint32_t shard) except? 0
    cdef int64_t blocks(self) noexcept
