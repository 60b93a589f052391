"""C face of the transaction machine: what its fields mean."""

from native.replies cimport ReplyParser

cdef class Transaction:
    cdef readonly bytes mail           # the MAIL command with its CRLF
    cdef readonly list rcpts           # the RCPT commands with their CRLF
    cdef readonly bytes body           # canonical, dot-stuffed unless the machine sends it by BDAT
    cdef readonly object jobs          # whatever the owner attached
    cdef readonly list answers         # per recipient: None, or (phase, code, enhanced, text)
    cdef readonly bint unbegun         # the peer answered nothing of it: it may be sent again at once
    cdef readonly bint possible_duplicate   # the peer may have accepted it although no answer came

cdef class TransactionMachine:
    cdef readonly object owner         # gets the events, gives the transactions
    cdef readonly object transport     # None when the session has ended
    cdef object _wire                  # what a TLS transport writes to, None without TLS
    cdef ReplyParser _replies
    cdef Transaction _current          # the one whose replies are awaited
    cdef Transaction _following        # its commands stand behind the dot of the current one
    cdef int _stage                    # Phase of the awaited reply
    cdef Py_ssize_t _recipient         # index of the awaited RCPT reply
    cdef Py_ssize_t _accepted          # recipients of the current transaction that were accepted
    cdef bint _mail_accepted
    cdef bint _answered                # the current transaction has had a reply
    cdef bint _body_sent               # the peer may have all of the current transaction
    cdef bint _lone_dot                # 354 although no recipient was accepted
    cdef bint _needs_reset             # the peer still holds a transaction that came to nothing
    cdef bint _pipelining
    cdef bint _chunking
    cdef bint _busy                    # inside one of our own calls: the owner's calls must not recurse
    cdef bint _quit_sent
    cdef bint _want_quit
    cdef int _descriptor               # of the plain TCP socket, -1 for TLS
    cdef Py_ssize_t _tail              # bytes written behind the final dot
    cdef readonly long started         # transactions begun in this session
    cdef long _serial                  # changes whenever the session makes progress
    cdef long _seen_serial             # at the last tick that saw progress: its value,
    cdef Py_ssize_t _seen_buffered     # the size of the write buffer,
    cdef long long _seen_ns            # and the time
    cdef long _finished                # transactions answered in this session
    cdef long _timed                   # its value at the last tick, -1 before the first
    cdef long long _begun_ns           # the first tick that saw the current transaction,
    cdef long long _leaving_ns         # and the first that saw its body leaving; 0: it does not
    cdef Py_ssize_t _leaving           # what had still to leave then

    cdef int _handle(self, int code) except -1
    cdef int _advance(self) except -1
    cdef int _begin(self, Transaction transaction) except -1
    cdef int _send_body(self) except -1
    cdef int _finish(self) except -1
    cdef int _fill(self, int phase, int code) except -1
    cdef int _end(self, str reason, int code, bint abort) except -1
    cdef Py_ssize_t _unsent(self) except -1
    cdef bint _has_early_input(self) noexcept
    cdef bint _is_overdue(
        self, long long now_ns, Py_ssize_t buffered, tuple timeouts_ns, long long least_rate
    ) except -1
