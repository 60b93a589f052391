"""Events about messages as JSON lines, from the msgpack in which the spool's outbox keeps them.

One pass over a chunk's bytes into one buffer, without an object per field: there is a line for every message,
and made of objects it took a fifth of a region's time. A chunk in which anything is not laid out exactly as
expected (an event about something else, one of the first release) is left to the caller:
engine/region/outbox.py, whose event_line is also the reference of the tests.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from native.memory cimport allocate, live_blocks_c, release

cdef enum:
    FIELDS = 17
    KINDS = 16
    NAME = 32        # octets of a name
    FIXED = 1024     # room for a line without the event's texts: names, punctuation, numbers


cdef struct Value:   # a number, or a text within the chunk
    const uint8_t* text
    uint32_t size
    uint64_t number
    bint is_text


# positions in an event, in the order in which the spool writes them
cdef enum:
    AT
    KIND
    ID
    CODE
    ENHANCED
    TEXT
    HOST
    SOURCE
    FLAGS
    ATTEMPTS
    RECIPIENT
    STREAM
    TENANT
    CAMPAIGN
    CATEGORY
    HARD
    SCOPE

cdef uint32_t TEXTS = (1 << ENHANCED | 1 << TEXT | 1 << HOST | 1 << RECIPIENT | 1 << TENANT | 1 << CAMPAIGN
                       | 1 << CATEGORY | 1 << SCOPE)
cdef const char* DIGITS = b"0123456789abcdef"


def live_blocks():
    """Blocks of memory that are not freed; -1 in a release build."""
    return live_blocks_c


cdef uint64_t _big_endian(const uint8_t* data, int size) noexcept nogil:
    cdef uint64_t value = 0
    cdef int i
    for i in range(size):
        value = value << 8 | data[i]
    return value


cdef const uint8_t* _read(const uint8_t* at, const uint8_t* end, Value* value) noexcept nogil:
    """The value at `at`; returns what is behind it, NULL for any but texts, booleans, numbers from 0 on."""
    cdef uint8_t head
    cdef uint64_t size
    if at >= end:
        return NULL
    head = at[0]
    at += 1
    value.is_text = False
    if head < 0x80:
        value.number = head
        return at
    if head == 0xc2 or head == 0xc3:
        value.number = head - 0xc2
        return at
    if 0xcc <= head <= 0xcf:
        size = 1 << (head - 0xcc)
        if <uint64_t>(end - at) < size:
            return NULL
        value.number = _big_endian(at, <int>size)
        return at + size
    if 0xa0 <= head <= 0xbf:
        size = head - 0xa0
    elif 0xd9 <= head <= 0xdb:
        size = 1 << (head - 0xd9)
        if <uint64_t>(end - at) < size:
            return NULL
        at += size
        size = _big_endian(at - size, <int>size)
    else:
        return NULL
    if <uint64_t>(end - at) < size:
        return NULL
    value.is_text = True
    value.text = at
    value.size = <uint32_t>size
    return at + size


cdef char* _put(char* out, const char* text, size_t size) noexcept nogil:
    memcpy(out, text, size)
    return out + size


cdef char* _put_number(char* out, uint64_t number) noexcept nogil:
    cdef char[20] digits
    cdef int count = 0
    while True:
        digits[count] = <char>(c'0' + number % 10)
        count += 1
        number //= 10
        if number == 0:
            break
    while count:
        count -= 1
        out[0] = digits[count]
        out += 1
    return out


cdef char _short_form(uint8_t octet) noexcept nogil:
    """What stands behind the backslash instead of a number; 0 if nothing does."""
    if octet == c'"' or octet == c'\\':
        return <char>octet
    if octet == 8:
        return c'b'
    if octet == 9:
        return c't'
    if octet == 10:
        return c'n'
    if octet == 12:
        return c'f'
    if octet == 13:
        return c'r'
    return 0


cdef char* _put_text(char* out, Value* value) noexcept nogil:
    """In double quotes, escaped as RFC 8259 section 7 asks for: at most six octets for one."""
    cdef uint32_t i
    cdef uint8_t octet
    cdef char short_form
    out[0] = c'"'
    out += 1
    for i in range(value.size):
        octet = value.text[i]
        if octet >= 0x20 and octet != c'"' and octet != c'\\':
            out[0] = <char>octet
            out += 1
            continue
        out[0] = c'\\'
        short_form = _short_form(octet)
        if short_form:
            out[1] = short_form
            out += 2
            continue
        out[1] = c'u'
        out[2] = out[3] = c'0'
        out[4] = DIGITS[octet >> 4]
        out[5] = DIGITS[octet & 15]
        out += 6
    out[0] = c'"'
    return out + 1


cdef char* _put_bool(char* out, bint value) noexcept nogil:
    return _put(out, b"true", 4) if value else _put(out, b"false", 5)


cdef char* _line(char* out, uint64_t sequence, Value* event, Value* kind, Value* stream) noexcept nogil:
    cdef int i
    out = _put(out, b'{"seq":', 7)
    out = _put_number(out, sequence)
    out = _put(out, b',"at_ms":', 9)
    out = _put_number(out, event[AT].number)
    out = _put(out, b',"event":', 9)
    out = _put_text(out, kind)
    out = _put(out, b',"id":"', 7)
    for i in range(16):
        out[i] = DIGITS[event[ID].number >> (60 - 4 * i) & 15]
    out = _put(out + 16, b'","recipient":', 14)
    out = _put_text(out, &event[RECIPIENT])
    out = _put(out, b',"stream":', 10)
    out = _put_text(out, stream)
    out = _put(out, b',"tenant":', 10)
    out = _put_text(out, &event[TENANT])
    out = _put(out, b',"campaign":', 12)
    out = _put_text(out, &event[CAMPAIGN])
    out = _put(out, b',"code":', 8)
    out = _put_number(out, event[CODE].number)
    out = _put(out, b',"enhanced":', 12)
    out = _put_text(out, &event[ENHANCED])
    out = _put(out, b',"text":', 8)
    out = _put_text(out, &event[TEXT])
    out = _put(out, b',"host":', 8)
    out = _put_text(out, &event[HOST])
    out = _put(out, b',"source":', 10)
    out = _put_number(out, event[SOURCE].number)
    out = _put(out, b',"attempt":', 11)
    out = _put_number(out, event[ATTEMPTS].number)
    out = _put(out, b',"possible_duplicate":', 22)
    out = _put_bool(out, event[FLAGS].number & 1)
    out = _put(out, b',"category":', 12)
    out = _put_text(out, &event[CATEGORY])
    out = _put(out, b',"hard":', 8)
    out = _put_bool(out, event[HARD].number)
    out = _put(out, b',"scope":', 9)
    out = _put_text(out, &event[SCOPE])
    return _put(out, b'}\n', 2)


cdef int _names(tuple names, Value* values) except -1:
    """How many there are; the values point into the bytes of `names`."""
    cdef bytes name
    cdef int count = 0
    for name in names:
        if count == KINDS or len(name) > NAME:
            raise ValueError(f"names {names}: allowed are {KINDS} of at most {NAME} octets")
        values[count].text = name
        values[count].size = <uint32_t>len(name)
        values[count].is_text = True
        count += 1
    return count


def message_lines(uint64_t sequence, bytes chunk not None, tuple kinds not None, tuple streams not None):
    """The events of a chunk (a msgpack list) as JSON lines; None if one of them is not laid out as expected.

    `kinds` and `streams` are the names by number, at most 16; b"" for a number that means nothing.
    """
    cdef Value[KINDS] kind_names
    cdef Value[KINDS] stream_names
    cdef Value[FIELDS] event
    cdef int kind_count = _names(kinds, kind_names)
    cdef int stream_count = _names(streams, stream_names)
    cdef const uint8_t* at = chunk
    cdef const uint8_t* end = at + len(chunk)
    cdef int events, field
    cdef char* buffer
    cdef char* out
    cdef bytes lines
    if at == end or at[0] & 0xf0 != 0x90:
        return None
    events = at[0] & 0x0f
    at += 1
    # an octet of the chunk becomes at most six, and the rest of a line has a bound
    buffer = <char*>allocate(6 * <size_t>len(chunk) + <size_t>events * FIXED + 1)
    if buffer == NULL:
        raise MemoryError
    try:
        out = buffer
        for _ in range(events):
            if end - at < 3 or at[0] != 0xdc or at[1] != 0 or at[2] != FIELDS:
                return None
            at += 3
            for field in range(FIELDS):
                at = _read(at, end, &event[field])
                if at == NULL or event[field].is_text != ((TEXTS >> field & 1) != 0):
                    return None
            if event[KIND].number >= <uint64_t>kind_count or kind_names[event[KIND].number].size == 0:
                return None
            if event[STREAM].number >= <uint64_t>stream_count or stream_names[event[STREAM].number].size == 0:
                return None
            out = _line(out, sequence, event, &kind_names[event[KIND].number],
                        &stream_names[event[STREAM].number])
        if at != end:
            return None
        lines = buffer[:out - buffer]
    finally:
        release(buffer)
    return lines
