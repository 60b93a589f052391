"""Which process of a pool carries which source's messages.

A pool may be several processes (shards). Each source's messages for the pool are carried by one of them, so
what the process keeps for the source (connections, pace) holds; a shard without room is closed, and a source
that moves from one to another is held until nothing of it is outstanding. """

cimport cython
from native.memory cimport extended, live_blocks_c, release


@cython.final
cdef class Seats:
    """See the module docstring."""

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self._capacity):
            release(self.pools[i].seats)
        release(self.pools)

    cdef int64_t blocks(self) noexcept:
        """Blocks of memory that this kernel has not freed; -1 in a release build."""
        return live_blocks_c

    cdef Bench* bench(self, uint32_t pool) except NULL:
        """A pool's seats, made if it is new; the pointer is good until the next new one."""
        if pool >= self._capacity:
            self.pools = <Bench*>extended(self.pools, &self._capacity, pool, sizeof(Bench))
        return &self.pools[pool]

    cdef Seat* seat(self, uint32_t pool, uint32_t source) except NULL:
        cdef Bench* at
        if source >= 0xFFFF:
            raise ValueError(f"source {source}: allowed are 0 to 65534")
        at = self.bench(pool)
        if source >= at.count:
            at.seats = <Seat*>extended(at.seats, &at.count, source, sizeof(Seat))
        return &at.seats[source]

    cdef int set_shard(self, uint32_t pool, uint32_t source, uint32_t shard) except -1:
        """ValueError: the source has messages outstanding at another."""
        cdef Seat* seat = self.seat(pool, source)
        if shard >= MAX_SHARDS:
            raise ValueError(f"shard {shard}: allowed are 0 to {MAX_SHARDS - 1}")
        if seat.outstanding and seat.shard != shard:
            raise ValueError(f"source {source} has {seat.outstanding} messages at shard {seat.shard}")
        seat.shard = <uint8_t>shard
        return 0

    cdef uint32_t close(self, uint32_t pool, uint32_t closed) except? 0:
        """Bit n of `closed`: shard n takes nothing now. Returns those that are open again."""
        cdef Bench* at = self.bench(pool)
        cdef uint32_t opened = at.closed & ~closed
        at.closed = closed
        return opened

    cdef uint32_t outstanding_at(self, uint32_t pool, uint32_t shard) except? 0:
        """Messages in flight at a shard."""
        cdef Bench* at = self.bench(pool)
        cdef uint32_t i
        cdef uint32_t count = 0
        for i in range(at.count):
            if at.seats[i].shard == shard:
                count += at.seats[i].outstanding
        return count
