from libc.stdint cimport uint32_t

from native.choice cimport Choice
from native.flows cimport Flows
from native.lanes cimport Lanes
from native.limits cimport Cell, Limits
from native.seats cimport Seats
from native.sources cimport Sources

cdef class Topology:
    cdef Flows _flows
    cdef Lanes _lanes
    cdef Limits _limits
    cdef Sources _sources
    cdef Seats _seats
    cdef Choice _choice

    cdef void _changed(self, uint32_t site) noexcept
    cdef void _changed_everywhere(self) noexcept
    cdef void _changed_at_pool(self, uint32_t pool) noexcept
