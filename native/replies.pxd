"""C face of the reply parser, for the transaction machine."""

cdef class ReplyParser:
    cdef char *_data          # bytes received and not yet consumed
    cdef Py_ssize_t _capacity
    cdef Py_ssize_t _start    # first byte of the reply being read
    cdef Py_ssize_t _scan     # first byte of the line being read
    cdef Py_ssize_t _end      # end of the received bytes
    cdef Py_ssize_t _reply_start   # range of the last complete reply, valid until the next append()
    cdef Py_ssize_t _reply_end
    cdef int _code            # code of the lines of the reply being read, 0 before its first line

    cdef int append(self, const char *data, Py_ssize_t size) except -1
    cdef int next_code(self) noexcept
    cdef bint has_input(self) noexcept
    cdef tuple last(self)
