"""A hierarchical timer wheel: five levels of 256 slots, ticks of 2^20 ns (about a millisecond).

Adding and cancelling take constant time, whatever the number of timers; a timer never fires before its due
time and at most one tick after it, given that somebody advances the wheel. Time is an argument. Memory: 32
bytes per timer.
"""

from libc.string cimport memset

from native.memory cimport live_blocks_c, reallocate, release

cdef extern from *:
    """
    #define WHEEL_NONE 0xFFFFFFFFu
    static inline int first_bit(uint64_t word) { return __builtin_ctzll(word); }
    """
    const uint32_t NONE "WHEEL_NONE"
    int first_bit(uint64_t word) noexcept nogil

cdef enum:
    TICK_BITS = 20
    LEVEL_BITS = 8
    LEVELS = 5
    SIZE = 256                   # slots of a level
    MAX_TIMERS = 1 << 30

cdef int64_t MAX_AHEAD = (<int64_t>1 << 38) - 1


def live_blocks():
    """Blocks of memory that are not freed; -1 in a release build."""
    return live_blocks_c


cdef class Wheel:
    """See the module docstring. `now_ns` is where time starts; any clock, as long as it is always one."""

    def __cinit__(self, int64_t now_ns):
        cdef int i
        self._timers = NULL
        self._capacity = 0
        self._free = NONE
        self._count = 0
        self._now = now_ns >> TICK_BITS
        for i in range(LEVELS * SIZE):
            self._slots[i] = NONE
        memset(self._occupied, 0, sizeof(self._occupied))

    def __dealloc__(self):
        release(self._timers)

    def __len__(self):
        return self._count

    def add(self, int64_t due_ns, uint64_t payload):
        """Returns a handle for `cancel`."""
        return self.add_c(due_ns, payload)

    def cancel(self, int64_t handle):
        """False if the timer has fired or was cancelled before."""
        return self.cancel_c(handle)

    def advance(self, int64_t now_ns, int limit):
        """Payloads of timers that are due, at most `limit`, earlier ticks first."""
        cdef uint64_t payload
        fired = []
        while len(fired) < limit and self.pop_c(now_ns, &payload):
            fired.append(payload)
        return fired

    def next_due_ns(self):
        """A time at or before which no timer fires; the exact tick when it is near. -1 if there is none."""
        return self.next_due_c()

    cdef int _grow(self) except -1:
        cdef uint32_t capacity = 1024 if self._capacity == 0 else self._capacity * 2
        cdef Timer* timers
        cdef uint32_t i
        if capacity > MAX_TIMERS:
            raise MemoryError
        timers = <Timer*>reallocate(self._timers, capacity * sizeof(Timer))
        if timers == NULL:
            raise MemoryError
        self._timers = timers
        for i in range(self._capacity, capacity):
            timers[i].tick = -1
            timers[i].generation = 0
            timers[i].next = i + 1 if i + 1 < capacity else self._free
        self._free = self._capacity
        self._capacity = capacity
        return 0

    cdef int64_t add_c(self, int64_t due_ns, uint64_t payload) except -1:
        cdef uint32_t index
        cdef Timer* timer
        cdef int64_t tick = due_ns >> TICK_BITS
        if due_ns & ((1 << TICK_BITS) - 1):
            tick += 1
        if self._free == NONE:
            self._grow()
        index = self._free
        timer = &self._timers[index]
        self._free = timer.next
        if tick <= self._now:
            tick = self._now + 1
        if tick - self._now > MAX_AHEAD:
            tick = self._now + MAX_AHEAD
        timer.tick = tick
        timer.payload = payload
        self._place(index)
        self._count += 1
        return (<int64_t>(timer.generation & 0x7FFFFFFF) << 32) | index

    cdef bint cancel_c(self, int64_t handle) noexcept nogil:
        cdef uint32_t index = <uint32_t>(handle & <int64_t>0xFFFFFFFF)
        cdef Timer* timer
        if index >= self._capacity:
            return False
        timer = &self._timers[index]
        if timer.tick < 0 or (timer.generation & 0x7FFFFFFF) != <uint32_t>(handle >> 32):
            return False
        self._unlink(index)
        timer.tick = -1
        timer.generation += 1
        timer.next = self._free
        self._free = index
        self._count -= 1
        return True

    cdef void _place(self, uint32_t index) noexcept nogil:
        """Hang a timer into the slot of the lowest level at which its tick differs from now."""
        cdef Timer* timer = &self._timers[index]
        cdef int64_t differs = timer.tick ^ self._now
        cdef int level = 0
        cdef uint32_t slot
        while level < LEVELS - 1 and differs >> (LEVEL_BITS * (level + 1)):
            level += 1
        slot = <uint32_t>(level * SIZE + ((timer.tick >> (LEVEL_BITS * level)) & (SIZE - 1)))
        timer.slot = slot
        timer.previous = NONE
        timer.next = self._slots[slot]
        if timer.next != NONE:
            self._timers[timer.next].previous = index
        self._slots[slot] = index
        self._occupied[slot >> 6] |= <uint64_t>1 << (slot & 63)

    cdef void _unlink(self, uint32_t index) noexcept nogil:
        cdef Timer* timer = &self._timers[index]
        if timer.next != NONE:
            self._timers[timer.next].previous = timer.previous
        if timer.previous != NONE:
            self._timers[timer.previous].next = timer.next
        else:
            self._slots[timer.slot] = timer.next
            if timer.next == NONE:
                self._occupied[timer.slot >> 6] &= ~(<uint64_t>1 << (timer.slot & 63))

    cdef int _next_occupied(self, int level, int first) noexcept nogil:
        """The first slot of a level from `first` on that holds timers, -1 if there is none."""
        cdef int word = (level * SIZE + first) >> 6
        cdef int end = ((level + 1) * SIZE) >> 6
        cdef uint64_t bits
        if first >= SIZE:
            return -1
        bits = self._occupied[word] & (~<uint64_t>0 << (first & 63))
        while bits == 0:
            word += 1
            if word == end:
                return -1
            bits = self._occupied[word]
        return word * 64 + first_bit(bits) - level * SIZE

    cdef int64_t _next_tick(self) noexcept nogil:
        """The next tick at which a timer fires or a higher slot has to be spread out; -1 if there is none."""
        cdef int level, place
        cdef int64_t base
        for level in range(LEVELS):
            base = (self._now >> (LEVEL_BITS * (level + 1))) << (LEVEL_BITS * (level + 1))
            place = self._next_occupied(level, <int>((self._now >> (LEVEL_BITS * level)) & (SIZE - 1)) + 1)
            if place >= 0:
                return base + (<int64_t>place << (LEVEL_BITS * level))
        # the highest level goes round
        place = self._next_occupied(LEVELS - 1, 0)
        if place < 0:
            return -1
        return base + ((<int64_t>SIZE + place) << (LEVEL_BITS * (LEVELS - 1)))

    cdef void _cascade(self, int64_t tick) noexcept nogil:
        """Time has come to `tick`: spread the higher slots that begin here over the lower levels."""
        cdef int level
        cdef uint32_t slot, index, following
        for level in range(LEVELS - 1, 0, -1):
            if tick & ((<int64_t>1 << (LEVEL_BITS * level)) - 1):
                continue
            slot = <uint32_t>(level * SIZE + ((tick >> (LEVEL_BITS * level)) & (SIZE - 1)))
            index = self._slots[slot]
            self._slots[slot] = NONE
            self._occupied[slot >> 6] &= ~(<uint64_t>1 << (slot & 63))
            while index != NONE:
                following = self._timers[index].next
                self._place(index)
                index = following

    cdef int pop_c(self, int64_t now_ns, uint64_t* payload) except -1:
        """Take one timer that is due; 0 if there is none."""
        cdef int64_t now_tick = now_ns >> TICK_BITS
        cdef int64_t tick
        cdef uint32_t index
        while True:
            index = self._slots[self._now & (SIZE - 1)]
            if index != NONE:
                payload[0] = self._timers[index].payload
                self.cancel_c((<int64_t>(self._timers[index].generation & 0x7FFFFFFF) << 32) | index)
                return 1
            if self._now >= now_tick:
                return 0
            tick = self._next_tick()
            if tick < 0 or tick > now_tick:
                self._now = now_tick
                return 0
            self._now = tick
            self._cascade(tick)

    cdef int64_t next_due_c(self) noexcept nogil:
        cdef int64_t tick
        if self._count == 0:
            return -1
        if self._slots[self._now & (SIZE - 1)] != NONE:
            return self._now << TICK_BITS
        tick = self._next_tick()
        return -1 if tick < 0 else tick << TICK_BITS
