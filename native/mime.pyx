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
from libc.string cimport memchr, memcpy

cdef extern from "<strings.h>" nogil:
    int strncasecmp(const char *one, const char *other, size_t size)

cdef enum:
    MAX_LINE = 998    # octets before the CRLF (RFC 5321 section 4.5.3.1.6)
    FLAG_DATE = 1
    FLAG_MESSAGE_ID = 2
    FLAG_HEAD_8BIT = 4
    FLAG_BODY_8BIT = 8
    FLAG_LONG_LINE = 16
    FLAG_NAME_SPACE = 32

HAS_DATE = FLAG_DATE
HAS_MESSAGE_ID = FLAG_MESSAGE_ID
HEAD_8BIT = FLAG_HEAD_8BIT
BODY_8BIT = FLAG_BODY_8BIT
LONG_LINE = FLAG_LONG_LINE
NAME_SPACE = FLAG_NAME_SPACE


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


cdef bint _is_field_start(const char *line, const char *end, Py_ssize_t *name_size) noexcept nogil:
    """Whether a line begins a header field (RFC 5322 section 2.2); gives the size of its name."""
    cdef const char *at = line
    while at < end and 33 <= <unsigned char> at[0] <= 126 and at[0] != c':':
        at += 1
    name_size[0] = at - line
    while at < end and (at[0] == c' ' or at[0] == c'\t'):
        at += 1
    return name_size[0] > 0 and at < end and at[0] == c':'


cdef bint _is_ascii(const char *data, Py_ssize_t size) noexcept nogil:
    cdef Py_ssize_t i = 0
    cdef unsigned long long word
    while size - i >= 8:
        memcpy(&word, data + i, 8)
        if word & <unsigned long long> 0x8080808080808080:
            return False
        i += 8
    while i < size:
        if <unsigned char> data[i] > 127:
            return False
        i += 1
    return True


def survey(bytes message not None):
    """(size of the header, start of the body, flags) of a canonical message.

    The header is all lines up to the empty one (part of neither), or to the first line that is no field.
    NAME_SPACE: a name has spaces before its colon (RFC 5322 section 4.5).
    """
    cdef const char *data = PyBytes_AS_STRING(message)
    cdef const char *end = data + PyBytes_GET_SIZE(message)
    cdef const char *line = data
    cdef const char *newline
    cdef const char *head_end = NULL
    cdef const char *body = NULL
    cdef Py_ssize_t name_size = 0
    cdef int flags = 0
    while line < end:
        newline = <const char *> memchr(line, c'\n', end - line)
        if newline == NULL:
            raise ValueError("the message is not canonical: its last line does not end")
        if newline - line > MAX_LINE + 1:
            flags |= FLAG_LONG_LINE
        if head_end == NULL:
            if newline - line <= 1:
                head_end = line
                body = newline + 1
            elif line > data and (line[0] == c' ' or line[0] == c'\t'):
                pass
            elif not _is_field_start(line, newline, &name_size):
                head_end = line
                body = line
            else:
                if line[name_size] != c':':
                    flags |= FLAG_NAME_SPACE
                if name_size == 4 and strncasecmp(line, b"date", 4) == 0:
                    flags |= FLAG_DATE
                elif name_size == 10 and strncasecmp(line, b"message-id", 10) == 0:
                    flags |= FLAG_MESSAGE_ID
        line = newline + 1
    if head_end == NULL:
        head_end = body = end
    if not _is_ascii(data, head_end - data):
        flags |= FLAG_HEAD_8BIT
    if not _is_ascii(body, end - body):
        flags |= FLAG_BODY_8BIT
    return head_end - data, body - data, flags
