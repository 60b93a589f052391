"""Numbers of the scheduler's kernels that stand for something else."""

from libc.stdint cimport int64_t, uint32_t

cdef extern from *:
    """
    #define SCHEDULER_NONE 0xFFFFFFFFu
    #define SCHEDULER_NEVER INT64_MAX
    #define SCHEDULER_UNCAPPED (INT64_MAX / 2)
    """
    const uint32_t NONE "SCHEDULER_NONE"               # no index: the end of a list
    const int64_t NEVER "SCHEDULER_NEVER"
    const int64_t UNCAPPED "SCHEDULER_UNCAPPED"        # a daily count above it stands for no cap
