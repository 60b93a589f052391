"""The canonical forms that a DKIM signature covers (RFC 6376 section 3.4, relaxed/relaxed).

Input is the message as it goes over the wire, not dot-stuffed: native.mime.canonicalise has made every line
end CRLF. Nothing here hashes or signs; engine/dkim does.

`relaxed_body` makes runs of spaces and tabs one space, drops them at line ends, and drops empty lines at
the end of the body. Most text has little of that: BLOCK octets without any are copied at once. One body at a
time, so that its copy is still in the cache when it is hashed, and its memory serves the next.
`relaxed_headers` selects fields by name, the last one first, as a verifier does (section 5.4.2), and writes
each unfolded, its name in lower case; a batch at a time.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdlib cimport free, malloc
from libc.string cimport memchr, memcmp, memcpy

cdef enum:
    MAX_BATCH = 1024
    MAX_FIELDS = 1000    # header fields of one message
    MAX_NAMES = 64       # names to sign
    MAX_NAME = 76
    BLOCK = 64           # octets that are looked at together
    LONG = 32768         # a body of so many octets is worth giving the GIL away

cdef struct Span:
    const char *data
    Py_ssize_t size

cdef struct Field:
    const char *name
    Py_ssize_t name_size
    const char *value    # behind the colon
    Py_ssize_t value_size    # without the CRLF at its end


cdef inline bint _is_space(char c) noexcept nogil:
    return c == c' ' or c == c'\t'


cdef inline bint _is_clean(const char *block) noexcept nogil:
    """Whether the canonical form of these BLOCK octets, with one more behind them, is what they are."""
    cdef const unsigned char *c = <const unsigned char *> block
    cdef unsigned char found = 0
    cdef int i
    for i in range(BLOCK):
        found |= <unsigned char> (
            (c[i] == 9) | ((c[i] == 32) & ((c[i + 1] == 32) | (c[i + 1] == 9) | (c[i + 1] == 13)))
        )
    return found == 0


cdef Py_ssize_t _relax_body(const char *data, Py_ssize_t size, char *out) noexcept nogil:
    """Write the canonical body; never longer than `size` + 2. Returns its size."""
    cdef Py_ssize_t used = 0
    cdef Py_ssize_t i = 0
    cdef Py_ssize_t stop
    cdef char c
    while i < size:
        if i + BLOCK < size:
            if _is_clean(data + i):
                memcpy(out + used, data + i, BLOCK)
                used += BLOCK
                i += BLOCK
                continue
            stop = i + BLOCK
        else:
            stop = size
        while i < stop:
            c = data[i]
            if not _is_space(c):
                out[used] = c
                used += 1
                i += 1
                continue
            while i < size and _is_space(data[i]):
                i += 1
            if i < size and not (data[i] == c'\r' and i + 1 < size and data[i + 1] == c'\n'):
                out[used] = c' '
                used += 1
    while used >= 2 and out[used - 2] == c'\r' and out[used - 1] == c'\n':
        used -= 2
    if used:
        out[used] = c'\r'
        out[used + 1] = c'\n'
        used += 2
    return used


def relaxed_body(bytes body not None):
    """The canonical form; an empty body stays empty. The very same object if it is canonical already."""
    cdef const char *data = PyBytes_AS_STRING(body)
    cdef Py_ssize_t size = PyBytes_GET_SIZE(body)
    cdef char *out = <char *> malloc(size + 2)
    cdef Py_ssize_t used
    cdef bytes result
    if out == NULL:
        raise MemoryError
    try:
        if size < LONG:
            used = _relax_body(data, size, out)
        else:
            with nogil:
                used = _relax_body(data, size, out)
        if used == size and memcmp(out, data, size) == 0:
            result = body
        else:
            result = PyBytes_FromStringAndSize(out, used)
    finally:
        free(out)
    return result


cdef Py_ssize_t _split(const char *data, Py_ssize_t size, Field *fields) noexcept nogil:
    """Cut a header section into fields; returns their number, -1 if there are too many.

    A line that is no field and continues none ends up as a field without a name, which nothing selects.
    """
    cdef const char *end = data + size
    cdef const char *line = data
    cdef const char *newline
    cdef const char *colon
    cdef Py_ssize_t count = 0
    cdef Field *field
    while line < end:
        if count == MAX_FIELDS:
            return -1
        field = &fields[count]
        count += 1
        newline = line
        while True:
            newline = <const char *> memchr(newline, c'\n', end - newline)
            if newline == NULL:
                newline = end
                break
            newline += 1
            if newline == end or not _is_space(newline[0]):
                break
        colon = <const char *> memchr(line, c':', newline - line)
        if colon == NULL:
            field.name_size = 0
        else:
            field.name = line
            field.name_size = colon - line
            while field.name_size > 0 and _is_space(line[field.name_size - 1]):
                field.name_size -= 1
            field.value = colon + 1
            field.value_size = newline - colon - 1
            while field.value_size > 0 and (
                field.value[field.value_size - 1] == c'\n' or field.value[field.value_size - 1] == c'\r'
            ):
                field.value_size -= 1
        line = newline
    return count


cdef inline bint _same_name(const Field *field, const char *name, Py_ssize_t size) noexcept nogil:
    """`name` is in lower case."""
    cdef Py_ssize_t i
    cdef char c
    if field.name_size != size:
        return False
    for i in range(size):
        c = field.name[i]
        if c'A' <= c <= c'Z':
            c += 32
        if c != name[i]:
            return False
    return True


cdef Py_ssize_t _relax_field(const Field *field, const char *name, char *out) noexcept nogil:
    """`name:value` CRLF; never longer than name + 3 + value."""
    cdef Py_ssize_t used = field.name_size
    cdef Py_ssize_t start
    cdef Py_ssize_t i
    cdef bint gap = False
    cdef char c
    memcpy(out, name, field.name_size)
    out[used] = c':'
    used += 1
    start = used
    for i in range(field.value_size):
        c = field.value[i]
        if c == c'\r' or c == c'\n':
            continue
        if _is_space(c):
            gap = True
            continue
        if gap and used > start:
            out[used] = c' '
            used += 1
        gap = False
        out[used] = c
        used += 1
    out[used] = c'\r'
    out[used + 1] = c'\n'
    return used + 2


cdef Py_ssize_t _relax_headers(
    const char *data, Py_ssize_t size, const Span *names, const bint *oversigned, Py_ssize_t name_count,
    Field *fields, int *counts, char *out
) noexcept nogil:
    """Write what is signed, and how often each name stands in h=. Returns the size, -1: too many fields."""
    cdef Py_ssize_t count = _split(data, size, fields)
    cdef Py_ssize_t used = 0
    cdef Py_ssize_t i, n
    if count < 0:
        return -1
    for n in range(name_count):
        counts[n] = 1 if oversigned[n] else 0
        i = count
        while i > 0:
            i -= 1
            if _same_name(&fields[i], names[n].data, names[n].size):
                counts[n] += 1
                used += _relax_field(&fields[i], names[n].data, out + used)
    return used


def relaxed_headers(list heads not None, tuple names not None):
    """For each header section (bytes, with the CRLF of its last line): (names for h=, canonical fields).

    `names` are (lower-case name, oversigned) pairs: all fields of that name are taken, and if oversigned
    the name is listed once more, so that no field of it can be added afterwards. ValueError: more than 1,000
    fields.
    """
    cdef Py_ssize_t count = len(heads)
    cdef Py_ssize_t name_count = len(names)
    cdef Py_ssize_t i, n, size
    cdef Span spans[MAX_NAMES]
    cdef bint oversigned[MAX_NAMES]
    cdef bytes head
    cdef bytes name
    cdef bytes buffer
    cdef list buffers = []
    cdef list listed
    cdef list result = []
    cdef Span *inputs = NULL
    cdef char **outs = NULL
    cdef Py_ssize_t *sizes = NULL
    cdef int *counts = NULL
    cdef Field *fields = NULL
    if count > MAX_BATCH or name_count > MAX_NAMES:
        raise ValueError(f"{count} headers, {name_count} names: at most {MAX_BATCH} and {MAX_NAMES}")
    if len({pair[0] for pair in names}) != name_count:
        raise ValueError("names: each one once")
    for n in range(name_count):
        name = names[n][0]
        if not 0 < len(name) <= MAX_NAME or name != name.lower():
            raise ValueError(f"name: {name!r}: expected 1 to {MAX_NAME} octets in lower case")
        spans[n].data = PyBytes_AS_STRING(name)
        spans[n].size = PyBytes_GET_SIZE(name)
        oversigned[n] = bool(names[n][1])
    inputs = <Span *> malloc((count + 1) * sizeof(Span))
    outs = <char **> malloc((count + 1) * sizeof(char *))
    sizes = <Py_ssize_t *> malloc((count + 1) * sizeof(Py_ssize_t))
    counts = <int *> malloc((count * name_count + 1) * sizeof(int))
    fields = <Field *> malloc(MAX_FIELDS * sizeof(Field))
    try:
        if inputs == NULL or outs == NULL or sizes == NULL or counts == NULL or fields == NULL:
            raise MemoryError
        for i in range(count):
            head = heads[i]
            if head is None:
                raise TypeError("head: expected bytes")
            # a field is written once; one that ends with a bare LF, or with nothing, gets a whole CRLF
            buffer = PyBytes_FromStringAndSize(NULL, 2 * PyBytes_GET_SIZE(head) + 2)
            buffers.append(buffer)
            inputs[i].data = PyBytes_AS_STRING(head)
            inputs[i].size = PyBytes_GET_SIZE(head)
            outs[i] = PyBytes_AS_STRING(buffer)
        with nogil:
            for i in range(count):
                sizes[i] = _relax_headers(
                    inputs[i].data, inputs[i].size, spans, oversigned, name_count, fields,
                    counts + i * name_count, outs[i]
                )
        for i in range(count):
            size = sizes[i]
            if size < 0:
                raise ValueError(f"more than {MAX_FIELDS} header fields")
            listed = []
            for n in range(name_count):
                listed.extend([names[n][0]] * counts[i * name_count + n])
            result.append((listed, PyBytes_FromStringAndSize(outs[i], size)))
    finally:
        free(inputs)
        free(outs)
        free(sizes)
        free(counts)
        free(fields)
    return result
