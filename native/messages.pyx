"""The messages that the scheduler holds: slots in one array, found by id.

The table of ids is open addressing with linear probing, at most half full; a removal closes its gap, so no
tombstones gather. A slot is held from `add` to `forget`, and is used again after `free`: a message that is
removed while it stands in its flow's line is forgotten at once and freed when the line comes to it. 48 bytes
a message, and 8 to 16 in the table; neither shrinks. """

cimport cython
from libc.string cimport memset

from native.marks cimport NONE
from native.memory cimport allocate, extended, live_blocks_c, release


@cython.final
cdef class Messages:
    """See the module docstring."""

    def __cinit__(self):
        self._free = NONE
        self._rehash(4096)

    def __dealloc__(self):
        release(self.slots)
        release(self._table)

    cdef int64_t blocks(self) noexcept:
        """Blocks of memory that this kernel has not freed; -1 in a release build."""
        return live_blocks_c

    cdef uint32_t add(self, uint64_t id_) except? 0:
        """A slot for a new id, ready and in no line; NONE if the id is held already."""
        cdef uint32_t index, at
        if self.find(id_) != NONE:
            return NONE
        if self._free == NONE:
            self._grow()
        if (self.held + 1) * <uint64_t>2 > self._mask:
            self._rehash((self._mask + 1) * 2)
        index = self._free
        self._free = self.slots[index].next
        self.slots[index].id = id_
        self.slots[index].state = READY
        self.slots[index].next = NONE
        at = place_of(id_) & self._mask
        while self._table[at] != NONE:
            at = (at + 1) & self._mask
        self._table[at] = index
        self.held += 1
        return index

    cdef void forget(self, uint32_t index) noexcept nogil:
        """The id of a held slot is held no longer; the slot stays its caller's until `free`."""
        cdef uint32_t at = place_of(self.slots[index].id) & self._mask
        cdef uint32_t after, home
        while self._table[at] != index:
            at = (at + 1) & self._mask
        self.held -= 1
        self._table[at] = NONE
        after = (at + 1) & self._mask
        while self._table[after] != NONE:
            home = place_of(self.slots[self._table[after]].id) & self._mask
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
                at = place_of(self.slots[old[i]].id) & self._mask
                while table[at] != NONE:
                    at = (at + 1) & self._mask
                table[at] = old[i]
        release(old)
        return 0

    cdef int _grow(self) except -1:
        cdef uint32_t old = self.capacity
        cdef uint32_t i
        cdef uint32_t wanted = old if old > 1024 else 1024
        self.slots = <Slot*>extended(self.slots, &self.capacity, wanted, sizeof(Slot))
        for i in range(old, self.capacity):
            self.slots[i].next = i + 1 if i + 1 < self.capacity else self._free
        self._free = old
        return 0
