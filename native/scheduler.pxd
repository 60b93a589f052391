cimport cython
from libc.stdint cimport int64_t, uint32_t, uint64_t

from native.flows cimport Flow
from native.messages cimport Messages, Slot
from native.topology cimport Topology

cdef struct Returned:            # a slot that is given back
    uint32_t slot
    uint32_t grant


@cython.final
cdef class Scheduler(Topology):
    cdef Messages _messages
    cdef uint64_t _decisions

    cdef int _take_one(self, uint32_t site, int64_t now, char* out) except -1
    cdef void _skip_removed(self, Flow* flow) noexcept
    cdef bint _is_at(self, Slot* slot, uint32_t pool, int shard) noexcept
    cdef void _release(self, Slot* slot) noexcept
    cdef void _refund(self, Returned* found, Py_ssize_t count) noexcept
