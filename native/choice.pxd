cimport cython
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from native.limits cimport Limits, Place
from native.seats cimport Bench, Seats
from native.sources cimport Roster, Sources

cdef enum:                       # why a source could not take a message: bits of `why`
    WAITS_RATE = 1
    WAITS_WINDOW = 2
    WAITS_DAILY = 4
    WAITS_SUSPENDED = 8


@cython.final
cdef class Choice:
    cdef uint32_t why                # what the last choice has met
    cdef int64_t horizon
    cdef Limits _limits
    cdef Sources _sources
    cdef Seats _seats
    cdef uint64_t _random
    cdef int64_t _latest             # the choice looks for a source that may send until then
    cdef int64_t _first              # and the earliest time after it at which one may, to the horizon

    cdef int32_t choose(self, uint32_t site, uint32_t pool, uint32_t roster, int64_t now, int64_t* wake,
                        int64_t* send_at) noexcept nogil
    cdef int32_t _choose_source(self, Place* place, Bench* bench, Roster* roster, int64_t now, int64_t* wake,
                                int64_t* send_at) noexcept nogil
    cdef int32_t _choose_among(self, uint32_t* list_, uint32_t count, Place* place, Bench* bench, int64_t now,
                               int64_t* wake, int64_t* send_at) noexcept nogil
    cdef bint _is_eligible(self, uint32_t source, Place* place, Bench* bench, int64_t now, int64_t* wake,
                           int64_t* send_at) noexcept nogil
    cdef uint32_t _next_random(self) noexcept nogil
