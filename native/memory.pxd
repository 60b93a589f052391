"""Memory of the kernels. In debug and sanitised builds each kernel counts its live blocks, so that a test can
see at its end that everything was freed; in a release build these are the C library's functions.
"""

from libc.stdint cimport int64_t, uint32_t
from libc.string cimport memset

cdef extern from *:
    """
    #include <stdint.h>
    #include <stdlib.h>
    #ifdef SENDFLEET_DEBUG
    static int64_t sendfleet_live_blocks = 0;
    static inline void *sendfleet_allocate(size_t size) {
        void *block = malloc(size);
        sendfleet_live_blocks += block != NULL;
        return block;
    }
    static inline void *sendfleet_reallocate(void *old, size_t size) {
        void *block = realloc(old, size);
        sendfleet_live_blocks += old == NULL && block != NULL;
        return block;
    }
    static inline void sendfleet_release(void *block) {
        sendfleet_live_blocks -= block != NULL;
        free(block);
    }
    #else
    #define sendfleet_live_blocks ((int64_t)-1)
    #define sendfleet_allocate malloc
    #define sendfleet_reallocate realloc
    #define sendfleet_release free
    #endif
    """
    void* allocate "sendfleet_allocate"(size_t size) noexcept nogil
    void* reallocate "sendfleet_reallocate"(void* old, size_t size) noexcept nogil
    void release "sendfleet_release"(void* block) noexcept nogil
    int64_t live_blocks_c "sendfleet_live_blocks"      # -1 in a release build


cdef inline void* extended(void* block, uint32_t* capacity, uint32_t wanted, size_t size) except NULL:
    """Grow an array to hold index `wanted`; new elements are zero."""
    cdef uint32_t larger = capacity[0]
    cdef char* grown
    if larger < 16:
        larger = 16
    while larger <= wanted:
        if larger > 1 << 30:
            raise MemoryError
        larger *= 2
    grown = <char*>reallocate(block, larger * size)
    if grown == NULL:
        raise MemoryError
    memset(grown + capacity[0] * size, 0, (larger - capacity[0]) * size)
    capacity[0] = larger
    return grown
