"""The limits of every source at every site (cells), and of all sources together there: what is charged and
refunded.

A rate is a GCRA cell in integer nanoseconds: `tat` is the time at which its next message would come if all
kept to the interval; with a burst of n a message may come n - 1 intervals before it. A daily count and a
window of outstanding messages are charged at the take. A refund is exact, of the rate only if no later grant
stands on it; the rate of all sources together is not refunded. 56 bytes per (source, site). """

cimport cython
from libc.string cimport memset

from native.marks cimport NEVER, UNCAPPED
from native.memory cimport extended, live_blocks_c, release


@cython.final
cdef class Limits:
    """The cells, by site and source."""

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self.capacity):
            release(self.places[i].cells)
        release(self.places)

    cdef int64_t blocks(self) noexcept:
        """Blocks of memory that this kernel has not freed; -1 in a release build."""
        return live_blocks_c

    cdef int add(self, uint32_t site) except -1:
        if site >= self.capacity:
            self.places = <Place*>extended(self.places, &self.capacity, site, sizeof(Place))
        if self.places[site].known:
            raise ValueError(f"site {site} is known")
        self.places[site].known = 1
        self.places[site].daily_left = NEVER
        return 0

    cdef void drop(self, uint32_t site) noexcept:
        """Forget a site that is known, with all of its limits."""
        release(self.places[site].cells)
        memset(&self.places[site], 0, sizeof(Place))

    cdef int check(self, uint32_t site) except -1:
        if site >= self.capacity or not self.places[site].known:
            raise KeyError(f"site {site} is not known")
        return 0

    cdef bint serves(self, uint32_t source, uint32_t site) noexcept nogil:
        """Whether the source has limits at a site that is known."""
        return source < self.places[site].cell_count and self.places[site].cells[source].window > 0

    cdef Cell* cell(self, uint32_t source, uint32_t site) except NULL:
        """The cell of a source that has limits at the site; good until the next `new_cell`."""
        self.check(site)
        if not self.serves(source, site):
            raise KeyError(f"source {source} has no limits at site {site}")
        return &self.places[site].cells[source]

    cdef Cell* new_cell(self, uint32_t source, uint32_t site) except NULL:
        """The cell of any source at a site that is known."""
        cdef Place* place = &self.places[site]
        if source >= place.cell_count:
            place.cells = <Cell*>extended(place.cells, &place.cell_count, source, sizeof(Cell))
        return &place.cells[source]

    cdef uint32_t count(self) noexcept nogil:
        """How many sites are known."""
        cdef uint32_t i
        cdef uint32_t found = 0
        for i in range(self.capacity):
            found += self.places[i].known
        return found


# -- what holds

cdef void begin_cell(Cell* cell, int64_t interval, uint32_t burst, int64_t daily_left, uint32_t window,
                     uint16_t weight, int64_t used_until) noexcept nogil:
    """`used_until`: the rate is taken to be used up until then, burst and all; -1: it is fresh."""
    cell.interval = interval
    cell.burst = burst
    cell.daily_left = NEVER if daily_left < 0 else daily_left
    cell.window = window
    cell.weight = weight
    cell.grants += 1
    if used_until >= 0 and cell.tat < used_until + burst * interval:
        cell.tat = used_until + burst * interval


cdef void reshape_cell(Cell* cell, int64_t interval, uint32_t window, uint16_t weight) noexcept nogil:
    """The next message keeps the new distance from the last one, in both directions: what is used up stays
    used up, nothing saved up grows, and a rate that goes down and up again leaves no debt behind."""
    cell.tat += cell.burst * (interval - cell.interval)
    cell.interval = interval
    cell.window = window
    cell.weight = weight
    cell.grants += 1


cdef void delay_cell(Cell* cell, int64_t at) noexcept nogil:
    """If it has a rate, its next message goes at that time at the earliest."""
    cdef int64_t tat = at + <int64_t>(cell.burst - 1) * cell.interval
    if cell.interval and cell.tat < tat:
        cell.tat = tat
        cell.grants += 1


cdef void delay_all(Place* place, int64_t at) noexcept nogil:
    """If all sources together have a rate, their next message goes at that time at the earliest."""
    if place.interval and place.tat < at:
        place.tat = at


# -- what is used

cdef int64_t charge(Place* place, uint32_t source, int64_t send_at) noexcept nogil:
    """One message of the source goes at that time; returns what `refund` needs: the rate's state before
    it."""
    cdef Cell* cell = &place.cells[source]
    cdef int64_t before = cell.tat
    cell.outstanding += 1
    place.outstanding += 1
    if cell.daily_left <= UNCAPPED:
        cell.daily_left -= 1
    if place.daily_left <= UNCAPPED:
        place.daily_left -= 1
    if place.interval:
        place.tat = send_at + place.interval
    cell.grants += 1
    cell.tat = (before if before > send_at and cell.interval else send_at) + cell.interval
    return before


cdef void refund(Place* place, uint32_t source, uint32_t grant, int64_t tat_before) noexcept nogil:
    """A message was not sent. Its place in the window is given back by who releases it."""
    cdef Cell* cell = &place.cells[source]
    if cell.daily_left <= UNCAPPED:
        cell.daily_left += 1
    if place.daily_left <= UNCAPPED:
        place.daily_left += 1
    if grant == cell.grants:
        cell.grants -= 1
        cell.tat = tat_before
