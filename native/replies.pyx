"""SMTP replies from a byte stream (RFC 5321 section 4.2): incremental, bounded, suspicious.

A reply is one or more lines `ddd-text` and a last line `ddd text`; the codes of all lines must be equal and
begin with 2 to 5. A line may end with a bare LF, which harms nobody in this direction. Anything else is
malformed, and so is a line over `MAX_LINE` or a reply over `MAX_REPLY` bytes: after that the stream has no
meaning and the session ends.

`Reply` texts are for people and logs: lines joined by a space, the repeated enhanced status stripped, control
characters replaced by a space, invalid UTF-8 by U+FFFD, cut at 1,024 characters.

Does no I/O. The transaction machine uses the C face (replies.pxd) and makes a text only where somebody will
read it.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcpy, memmove

cdef enum:
    LINE_LIMIT = 8 * 1024
    REPLY_LIMIT = 32 * 1024
    TEXT_LIMIT = 1024
    INITIAL_CAPACITY = 4096

cdef enum:
    NEED_MORE = 0
    MALFORMED = -1

MAX_LINE = LINE_LIMIT
MAX_REPLY = REPLY_LIMIT
MAX_TEXT = TEXT_LIMIT


class MalformedReply(ValueError):
    """The peer does not speak SMTP, or speaks without end."""


cdef inline bint _is_digit(char c) noexcept:
    return c'0' <= c <= c'9'


cdef Py_ssize_t _enhanced_size(const char *text, Py_ssize_t size) noexcept:
    """Length of an enhanced status (RFC 3463: class 2, 4 or 5, two numbers) at `text`, or 0."""
    cdef Py_ssize_t i
    cdef int _part
    cdef int digits
    if size < 5 or (text[0] != c'2' and text[0] != c'4' and text[0] != c'5'):
        return 0
    i = 1
    for _part in range(2):
        if i >= size or text[i] != c'.':
            return 0
        i += 1
        digits = 0
        while i < size and digits < 3 and _is_digit(text[i]):
            i += 1
            digits += 1
        if digits == 0:
            return 0
    if i < size and text[i] != c' ':
        return 0
    return i


cdef class ReplyParser:
    """Feed bytes, get replies. After a malformed reply every further call says malformed."""

    def __cinit__(self):
        self._capacity = INITIAL_CAPACITY
        self._data = <char *> malloc(self._capacity)
        if self._data == NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self._data)

    cdef int append(self, const char *data, Py_ssize_t size) except -1:
        """Take bytes over; what was consumed before is overwritten."""
        cdef Py_ssize_t held = self._end - self._start
        cdef Py_ssize_t capacity = self._capacity
        cdef char *grown
        if self._start:
            if held:
                memmove(self._data, self._data + self._start, held)
            self._scan -= self._start
            self._end = held
            self._start = 0
        if held + size > capacity:
            while capacity < held + size:
                capacity *= 2
            grown = <char *> malloc(capacity)
            if grown == NULL:
                raise MemoryError
            memcpy(grown, self._data, held)
            free(self._data)
            self._data = grown
            self._capacity = capacity
        memcpy(self._data + held, data, size)
        self._end = held + size
        return 0

    cdef int next_code(self) noexcept:
        """Consume one reply and return its code; NEED_MORE (0) or MALFORMED (-1) otherwise."""
        cdef const char *line
        cdef const char *newline
        cdef Py_ssize_t size
        cdef int code
        if self._code < 0:
            return MALFORMED
        while True:
            line = self._data + self._scan
            newline = <const char *> memchr(line, c'\n', self._end - self._scan)
            if newline == NULL:
                if self._end - self._scan > LINE_LIMIT or self._end - self._start > REPLY_LIMIT:
                    self._code = MALFORMED
                    return MALFORMED
                return NEED_MORE
            size = newline - line
            if size + 1 > LINE_LIMIT or newline + 1 - (self._data + self._start) > REPLY_LIMIT:
                self._code = MALFORMED
                return MALFORMED
            if size and line[size - 1] == c'\r':
                size -= 1
            if (
                size < 3
                or not c'2' <= line[0] <= c'5'
                or not _is_digit(line[1])
                or not _is_digit(line[2])
                or (size > 3 and line[3] != c' ' and line[3] != c'-')
            ):
                self._code = MALFORMED
                return MALFORMED
            code = (line[0] - c'0') * 100 + (line[1] - c'0') * 10 + (line[2] - c'0')
            if self._code and code != self._code:
                self._code = MALFORMED
                return MALFORMED
            self._scan = newline + 1 - self._data
            if size > 3 and line[3] == c'-':
                self._code = code
                continue
            self._reply_start = self._start
            self._reply_end = self._scan
            self._start = self._scan
            self._code = 0
            return code

    cdef bint has_input(self) noexcept:
        """Whether bytes behind the last reply have been received."""
        return self._end > self._start

    cdef tuple last(self):
        """(enhanced, text) of the reply that next_code() consumed."""
        cdef char text[TEXT_LIMIT * 4]
        cdef Py_ssize_t used = 0
        cdef Py_ssize_t position = self._reply_start
        cdef Py_ssize_t size
        cdef Py_ssize_t skip
        cdef Py_ssize_t i
        cdef const char *line
        cdef const char *newline
        cdef const char *enhanced = NULL
        cdef Py_ssize_t enhanced_size = 0
        cdef bint first = True
        cdef unsigned char c
        while position < self._reply_end:
            line = self._data + position
            newline = <const char *> memchr(line, c'\n', self._reply_end - position)
            size = newline - line
            position += size + 1
            if size and line[size - 1] == c'\r':
                size -= 1
            line += 4
            size -= 4
            if size > 0:
                skip = _enhanced_size(line, size)
                if skip and first:
                    enhanced = line
                    enhanced_size = skip
                elif skip != enhanced_size or (skip and line[:skip] != enhanced[:enhanced_size]):
                    skip = 0
                line += skip
                size -= skip
                while size > 0 and line[0] == c' ':
                    line += 1
                    size -= 1
                while size > 0 and (line[size - 1] == c' ' or line[size - 1] == c'\t'):
                    size -= 1
                if size > 0 and used and used < <Py_ssize_t> sizeof(text):
                    text[used] = c' '
                    used += 1
                for i in range(size):
                    if used >= <Py_ssize_t> sizeof(text):
                        break
                    c = <unsigned char> line[i]
                    text[used] = c' ' if c < 32 or c == 127 else <char> c
                    used += 1
            first = False
        return (
            enhanced[:enhanced_size].decode("ascii") if enhanced_size else "",
            text[:used].decode("utf-8", "replace")[:TEXT_LIMIT],
        )

    def feed(self, bytes data not None):
        """Take bytes, return the replies they complete as (code, enhanced, text); raises MalformedReply."""
        cdef list replies = []
        cdef int code
        self.append(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        while True:
            code = self.next_code()
            if code == NEED_MORE:
                return replies
            if code == MALFORMED:
                raise MalformedReply("malformed or oversized reply")
            replies.append((code, *self.last()))
