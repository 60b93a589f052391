cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from native.marks cimport NONE

cdef enum SlotState:
    FREE
    READY
    IN_FLIGHT
    REMOVED                      # still in its flow's line

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

cdef inline uint32_t place_of(uint64_t id_) noexcept nogil:
    return <uint32_t>((id_ * <uint64_t>0x9E3779B97F4A7C15) >> 32)


@cython.final
cdef class Messages:
    cdef Slot* slots
    cdef uint32_t capacity
    cdef uint32_t held           # ready and in flight
    cdef uint32_t _free
    cdef uint32_t* _table
    cdef uint32_t _mask

    cdef uint32_t add(self, uint64_t id_) except? 0
    cdef void forget(self, uint32_t index) noexcept nogil
    cdef int64_t blocks(self) noexcept
    cdef int _rehash(self, uint32_t size) except -1
    cdef int _grow(self) except -1

    # for every message of every batch, so in line

    cdef inline uint32_t find(self, uint64_t id_) noexcept nogil:
        """The slot of an id that is held, or NONE."""
        cdef uint32_t at = place_of(id_) & self._mask
        while self._table[at] != NONE:
            if self.slots[self._table[at]].id == id_:
                return self._table[at]
            at = (at + 1) & self._mask
        return NONE

    cdef inline void free(self, uint32_t index) noexcept nogil:
        """A forgotten slot may be another message's."""
        self.slots[index].state = FREE
        self.slots[index].next = self._free
        self._free = index
