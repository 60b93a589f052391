cimport cython
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

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

cdef struct Place:               # one site: what holds for all sources together, and their cells
    int64_t suspended_until
    int64_t interval             # between messages of all sources, 0: no rate
    int64_t tat
    int64_t daily_left           # for all sources, above UNCAPPED: no cap
    uint32_t outstanding
    uint32_t cell_count
    Cell* cells                  # one per source
    int64_t[9] spent_until       # by lane and class: before that time no source that they share has room
    uint32_t[9] spent_why        # and what it waits for
    uint32_t spent_generation    # of the topology at which that was found
    uint8_t known


@cython.final
cdef class Limits:
    cdef Place* places           # by site
    cdef uint32_t capacity

    cdef int add(self, uint32_t site) except -1
    cdef void drop(self, uint32_t site) noexcept
    cdef int check(self, uint32_t site) except -1
    cdef Cell* cell(self, uint32_t source, uint32_t site) except NULL
    cdef Cell* new_cell(self, uint32_t source, uint32_t site) except NULL
    cdef bint serves(self, uint32_t source, uint32_t site) noexcept nogil
    cdef uint32_t count(self) noexcept nogil
    cdef int64_t blocks(self) noexcept

cdef void begin_cell(Cell* cell, int64_t interval, uint32_t burst, int64_t daily_left, uint32_t window,
                     uint16_t weight, int64_t used_until) noexcept nogil
cdef void reshape_cell(Cell* cell, int64_t interval, uint32_t window, uint16_t weight) noexcept nogil
cdef void delay_cell(Cell* cell, int64_t at) noexcept nogil
cdef void delay_all(Place* place, int64_t at) noexcept nogil
cdef int64_t charge(Place* place, uint32_t source, int64_t send_at) noexcept nogil
cdef void refund(Place* place, uint32_t source, uint32_t grant, int64_t tat_before) noexcept nogil
