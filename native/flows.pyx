"""Flows and shares, by number: a flow is one campaign's messages in a stream of a site, a share the tenant's
there.

A share has the ring of its flows that have ready messages. Numbers of what is dropped are used again.
"""

cimport cython
from libc.string cimport memset

from native.marks cimport NONE
from native.memory cimport extended, live_blocks_c, release


@cython.final
cdef class Flows:
    """See the module docstring."""

    def __cinit__(self):
        self._flow_numbers = {}
        self._share_numbers = {}
        self._free_flow = self._free_share = NONE

    def __dealloc__(self):
        release(self.flows)
        release(self.shares)

    cdef int64_t blocks(self) noexcept:
        """Blocks of memory that this kernel has not freed; -1 in a release build."""
        return live_blocks_c

    cdef uint32_t known(self, uint32_t site, int stream, uint32_t tenant, uint32_t campaign) except? 0:
        """Number of the flow, or NONE."""
        found = self._flow_numbers.get((site, stream, tenant, campaign))
        return NONE if found is None else <uint32_t>found

    cdef uint32_t add(self, uint32_t site, int stream, uint32_t tenant, uint32_t campaign) except? 0:
        """A flow that is not known yet; returns its number."""
        cdef uint32_t share = self._share(site, stream, tenant)
        cdef uint32_t number = self._free_flow
        if number != NONE:
            self._free_flow = self.flows[number].next
        else:
            number = self._flow_count
            if number >= self._flow_capacity:
                self.flows = <Flow*>extended(self.flows, &self._flow_capacity, number, sizeof(Flow))
            self._flow_count += 1
        memset(&self.flows[number], 0, sizeof(Flow))
        self.shares[share].flows += 1
        self.flows[number].campaign = campaign
        self.flows[number].site = site
        self.flows[number].share = share
        self.flows[number].head = self.flows[number].tail = NONE
        self.flows[number].used = 1
        self._flow_numbers[site, stream, tenant, campaign] = number
        return number

    cdef uint32_t _share(self, uint32_t site, int stream, uint32_t tenant) except? 0:
        """Number of the share, made if there is none."""
        cdef uint32_t share
        key = (site, stream, tenant)
        found = self._share_numbers.get(key)
        if found is not None:
            return found
        share = self._free_share
        if share != NONE:
            self._free_share = self.shares[share].next
        else:
            share = self._share_count
            if share >= self._share_capacity:
                self.shares = <Share*>extended(self.shares, &self._share_capacity, share, sizeof(Share))
            self._share_count += 1
        memset(&self.shares[share], 0, sizeof(Share))
        self.shares[share].site = site
        self.shares[share].stream = <uint8_t>stream
        self.shares[share].tenant = tenant
        self.shares[share].head = self.shares[share].tail = NONE
        self._share_numbers[key] = share
        return share

    cdef bint drop(self, uint32_t flow) except -1:
        """Forget a flow that holds nothing, and its number: True. False while it holds messages (also removed
        ones that stand in its line)."""
        cdef Flow* at = &self.flows[flow]
        cdef Share* share = &self.shares[at.share]
        if at.head != NONE or at.listed or at.in_flight:
            return False
        del self._flow_numbers[at.site, share.stream, share.tenant, at.campaign]
        at.used = 0
        at.next = self._free_flow
        self._free_flow = flow
        share.flows -= 1
        if share.flows == 0:
            del self._share_numbers[share.site, share.stream, share.tenant]
            share.next = self._free_share
            self._free_share = at.share
        return True

    cdef int check(self, uint32_t flow) except -1:
        if flow >= self._flow_count or not self.flows[flow].used:
            raise KeyError(f"flow {flow} is not known")
        return 0

    # -- a share's ring

    cdef void append(self, uint32_t flow) noexcept nogil:
        """To the end of its share's ring, for a turn of its own."""
        cdef Flow* listed = &self.flows[flow]
        cdef Share* share = &self.shares[listed.share]
        listed.listed = 1
        listed.served = 0
        listed.next = NONE
        if share.tail == NONE:
            share.head = flow
        else:
            self.flows[share.tail].next = flow
        share.tail = flow

    cdef void pop(self, Share* share) noexcept nogil:
        """The first flow out of its ring."""
        cdef Flow* flow = &self.flows[share.head]
        share.head = flow.next
        if share.head == NONE:
            share.tail = NONE
        flow.next = NONE
        flow.listed = 0
        flow.served = 0

    # -- how many there are

    cdef Py_ssize_t count(self):
        return len(self._flow_numbers)

    cdef Py_ssize_t count_shares(self):
        return len(self._share_numbers)
