"""Messages in the form in which they go over the wire.

`canonicalise` makes every line end CRLF (a bare CR or LF becomes one), drops NULs, ends the message with
CRLF, and for DATA doubles the dot at the start of a line (RFC 5321 section 4.5.2). Stuffing works on the
normalised lines, so nothing that any server takes for an end of data can stand inside a message: outbound
SMTP smuggling (CVE-2023-51764 and its family) has no sequence to use. For BDAT (RFC 3030) there is no
stuffing.

A message that needs no change, the usual case, is returned as it is, after two memchr per line. Idempotent
without stuffing. Signing must see the unstuffed canonical form.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr


cdef bint _is_canonical(const char *data, Py_ssize_t size, bint stuff) noexcept nogil:
    cdef const char *line = data
    cdef const char *end = data + size
    cdef const char *newline
    if size < 2 or data[size - 1] != c'\n' or memchr(data, 0, size) != NULL:
        return False
    while line < end:
        if stuff and line[0] == c'.':
            return False
        newline = <const char *> memchr(line, c'\n', end - line)
        # the first CR of the line must be the one before its LF
        if newline == line or memchr(line, c'\r', newline - line) != newline - 1:
            return False
        line = newline + 1
    return True


cdef Py_ssize_t _convert(const char *data, Py_ssize_t size, bint stuff, char *out) noexcept nogil:
    """Write the canonical form to `out`, or only count it where `out` is NULL; returns its size."""
    cdef Py_ssize_t used = 0
    cdef Py_ssize_t i = 0
    cdef bint at_line_start = True
    cdef char c
    while i < size:
        c = data[i]
        i += 1
        if c == 0:
            continue
        if c == c'\r' or c == c'\n':
            # NULs between CR and LF are gone before the pair is looked at
            if c == c'\r':
                while i < size and data[i] == 0:
                    i += 1
                if i < size and data[i] == c'\n':
                    i += 1
            if out != NULL:
                out[used] = c'\r'
                out[used + 1] = c'\n'
            used += 2
            at_line_start = True
            continue
        if at_line_start and stuff and c == c'.':
            if out != NULL:
                out[used] = c'.'
            used += 1
        if out != NULL:
            out[used] = c
        used += 1
        at_line_start = False
    if not at_line_start or used == 0:
        if out != NULL:
            out[used] = c'\r'
            out[used + 1] = c'\n'
        used += 2
    return used


cpdef bytes canonicalise(bytes message, bint stuff):
    """The message as it goes over the wire, without the final dot; the same object if nothing changes."""
    if message is None:
        raise TypeError("message: expected bytes")
    cdef const char *data = PyBytes_AS_STRING(message)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(message)
    cdef bytes result
    if _is_canonical(data, size, stuff):
        return message
    result = PyBytes_FromStringAndSize(NULL, _convert(data, size, stuff, NULL))
    _convert(data, size, stuff, PyBytes_AS_STRING(result))
    return result
