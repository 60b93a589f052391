from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef struct Timer:
    int64_t tick          # tick at which it fires; -1 while the cell is free
    uint64_t payload
    uint32_t next         # in its slot's list, or in the free list
    uint32_t previous
    uint32_t slot         # index of the slot it hangs in
    uint32_t generation   # changes at each reuse, so an old handle finds nothing

cdef class Wheel:
    cdef Timer* _timers
    cdef uint32_t _capacity
    cdef uint32_t _free
    cdef uint32_t _count
    cdef int64_t _now                  # last tick that was advanced to
    cdef uint32_t[1280] _slots         # 5 levels of 256 slots: head of each list
    cdef uint64_t[20] _occupied        # a bit per slot

    cdef int64_t add_c(self, int64_t due_ns, uint64_t payload) except -1
    cdef bint cancel_c(self, int64_t handle) noexcept nogil
    cdef int pop_c(self, int64_t now_ns, uint64_t* payload) except -1
    cdef int64_t next_due_c(self) noexcept nogil
    cdef void _place(self, uint32_t index) noexcept nogil
    cdef void _unlink(self, uint32_t index) noexcept nogil
    cdef int _grow(self) except -1
    cdef int _next_occupied(self, int level, int first) noexcept nogil
    cdef int64_t _next_tick(self) noexcept nogil
    cdef void _cascade(self, int64_t tick) noexcept nogil
