"""The choice of a source for a message: among those that may carry it now, the less loaded of two picked at
random.

A tenant's dedicated sources come first, then hybrid ones of its own, then the shared ones. A source may carry
it if it is up, has weight, is not suspended, has room in its window, its daily count and its rate (up to
`horizon` ahead), and its pool's process takes something. What was found about the shared sources of a lane
and class when none had room is kept for the site until a time, so nothing is scanned in vain; whatever gives
a source room must forget it. """

cimport cython
from libc.string cimport memset

from native.limits cimport Cell
from native.marks cimport NEVER
from native.sources cimport Source


@cython.final
cdef class Choice:
    """See the module docstring."""

    def __cinit__(self, Limits limits, Sources sources, Seats seats, uint64_t seed, int64_t horizon_ns):
        self._limits = limits
        self._sources = sources
        self._seats = seats
        self.horizon = horizon_ns
        self._random = seed ^ <uint64_t>0x9E3779B97F4A7C15
        if self._random == 0:
            self._random = 1

    cdef int32_t choose(self, uint32_t site, uint32_t pool, uint32_t roster, int64_t now, int64_t* wake,
                        int64_t* send_at) noexcept nogil:
        """The source for the next message of a site, of those on a roster, and when it may go; or -1, with
        the earliest time at which there may be one, and why.

        Where all sources have a rate together, one is taken that may send by the time at which the site may
        be sent to; if there is none, the one that may send first. So the site's grants are in the order of
        their times, and no time is lost."""
        cdef Place* place = &self._limits.places[site]
        cdef Bench* bench = &self._seats.pools[pool]
        cdef Roster* list_ = &self._sources.rosters[roster]
        cdef int64_t at = now
        cdef int32_t source
        wake[0] = NEVER
        self.why = 0
        self._latest = NEVER
        if place.suspended_until > now:
            self.why = WAITS_SUSPENDED
            wake[0] = place.suspended_until
            return -1
        if place.daily_left <= 0:
            self.why = WAITS_DAILY
            return -1
        if place.interval == 0:
            return self._choose_source(place, bench, list_, now, wake, send_at)
        if place.tat > now:
            at = place.tat
            if at > now + self.horizon:
                self.why = WAITS_RATE
                wake[0] = at - self.horizon
                return -1
        self._latest = at
        self._first = NEVER
        source = self._choose_source(place, bench, list_, now, wake, send_at)
        if source < 0 and self._first != NEVER:
            self._latest = self._first
            memset(place.spent_until, 0, sizeof(place.spent_until))
            source = self._choose_source(place, bench, list_, now, wake, send_at)
        if source >= 0 and send_at[0] < at:
            send_at[0] = at
        return source

    cdef int32_t _choose_source(self, Place* place, Bench* bench, Roster* roster, int64_t now, int64_t* wake,
                                int64_t* send_at) noexcept nogil:
        """By kind: dedicated ones first, then hybrid, then shared."""
        cdef uint32_t* list_ = roster.list
        cdef uint32_t slot = roster.slot
        cdef uint32_t generation = self._sources.generation
        cdef int32_t source
        cdef int64_t own_wake
        cdef uint32_t own_why
        cdef int kind
        for kind in range(2):
            if roster.count[kind]:
                source = self._choose_among(list_, roster.count[kind], place, bench, now, wake, send_at)
                if source >= 0:
                    return source
                list_ += roster.count[kind]
        if roster.count[2] == 0:
            return -1
        if place.spent_generation == generation and place.spent_until[slot] > now:
            if place.spent_until[slot] < wake[0]:
                wake[0] = place.spent_until[slot]
            self.why |= place.spent_why[slot]
            return -1
        own_wake = wake[0]
        own_why = self.why
        wake[0] = NEVER
        self.why = 0
        source = self._choose_among(list_, roster.count[2], place, bench, now, wake, send_at)
        if source >= 0:
            return source
        if roster.count[1] == 0:  # so these were all that any tenant of the class may use besides its own
            if place.spent_generation != generation:
                place.spent_generation = generation
                memset(place.spent_until, 0, sizeof(place.spent_until))
            place.spent_until[slot] = wake[0]
            place.spent_why[slot] = self.why
        if own_wake < wake[0]:
            wake[0] = own_wake
        self.why |= own_why
        return -1

    cdef int32_t _choose_among(self, uint32_t* list_, uint32_t count, Place* place, Bench* bench, int64_t now,
                               int64_t* wake, int64_t* send_at) noexcept nogil:
        """One of these sources that may carry a message now: the less loaded of two picked at random, else
        any; -1 if there is none, and `wake` is lowered to the time at which there may be one."""
        cdef uint32_t i, start, first, second
        cdef int64_t first_at, second_at
        cdef bint is_first, is_second
        if count == 1:
            return <int32_t>list_[0] if self._is_eligible(list_[0], place, bench, now, wake, send_at) else -1
        first = list_[self._next_random() % count]
        second = list_[self._next_random() % count]
        is_first = self._is_eligible(first, place, bench, now, wake, &first_at)
        is_second = second != first and self._is_eligible(second, place, bench, now, wake, &second_at)
        if is_first and is_second:
            # (outstanding + 1) / weight, compared without division
            if (<uint64_t>(place.cells[second].outstanding + 1) * place.cells[first].weight
                    < <uint64_t>(place.cells[first].outstanding + 1) * place.cells[second].weight):
                send_at[0] = second_at
                return <int32_t>second
        if is_first:
            send_at[0] = first_at
            return <int32_t>first
        if is_second:
            send_at[0] = second_at
            return <int32_t>second
        start = self._next_random() % count
        for i in range(count):
            first = list_[(start + i) % count]
            if self._is_eligible(first, place, bench, now, wake, &first_at):
                send_at[0] = first_at
                return <int32_t>first
        return -1

    cdef bint _is_eligible(self, uint32_t number, Place* place, Bench* bench, int64_t now, int64_t* wake,
                           int64_t* send_at) noexcept nogil:
        """Whether a source may carry a message now; if time alone will change that, `wake` is lowered to
        it."""
        cdef Source* source = &self._sources.sources[number]
        cdef Cell* cell
        cdef int64_t at
        if number >= place.cell_count:
            return False
        cell = &place.cells[number]
        if cell.window == 0:
            return False
        if not source.up or cell.weight == 0:
            self.why |= WAITS_SUSPENDED
            return False
        if cell.daily_left <= 0:
            self.why |= WAITS_DAILY
            return False
        if cell.outstanding >= cell.window:
            self.why |= WAITS_WINDOW
            return False
        if bench.seats[number].held or (bench.closed >> bench.seats[number].shard) & 1:
            return False
        at = source.suspended_until if source.suspended_until > cell.suspended_until else cell.suspended_until
        if at > now:
            self.why |= WAITS_SUSPENDED
            if at < wake[0]:
                wake[0] = at
            return False
        at = now
        if cell.interval:
            at = cell.tat - <int64_t>(cell.burst - 1) * cell.interval
            if at < now:
                at = now
            elif at > now + self.horizon:
                self.why |= WAITS_RATE
                if at - self.horizon < wake[0]:
                    wake[0] = at - self.horizon
                return False
            elif at > self._latest:
                if at < self._first:
                    self._first = at
                return False
        send_at[0] = at
        return True

    cdef uint32_t _next_random(self) noexcept nogil:
        cdef uint64_t x = self._random
        x ^= x << 13
        x ^= x >> 7
        x ^= x << 17
        self._random = x
        return <uint32_t>(x >> 32)
