"""The sources, and who may ever carry whose mail: rosters, by the streams, tenancies and classes of tenants.

A roster lists the sources of a tenant in a lane by kind: dedicated ones, hybrid ones of its own, shared ones
and others' hybrid ones that serve its class; if there is none at all, those that lend. Tenants of a class
without a source of their own have one roster in common, so it stays in the processor's cache however many
they are. Rosters are made when they are looked up after a change of the topology (`generation`). """

cimport cython
from native.memory cimport extended, live_blocks_c, reallocate, release


@cython.final
cdef class Sources:
    """See the module docstring."""

    def __cinit__(self):
        self.generation = 1

    def __dealloc__(self):
        cdef uint32_t i
        for i in range(self._roster_capacity):
            release(self.rosters[i].list)
        release(self.rosters)
        release(self.sources)
        release(self._tenant_class)
        release(self._owner)

    cdef int64_t blocks(self) noexcept:
        """Blocks of memory that this kernel has not freed; -1 in a release build."""
        return live_blocks_c

    # -- topology

    cdef int set(self, uint32_t source, uint32_t netblock, int streams, int tenancy,
                 uint32_t tenant) except -1:
        """See `Scheduler.set_source`."""
        if source >= 0xFFFF:
            raise ValueError(f"source {source}: allowed are 0 to 65534")
        if not 0 <= tenancy <= 2:
            raise ValueError(f"tenancy {tenancy}: allowed are 0, 1 and 2")
        if tenancy and tenant >= self._owner_capacity:
            self._owner = <uint32_t*>extended(self._owner, &self._owner_capacity, tenant, sizeof(uint32_t))
        if source >= self.capacity:
            self.sources = <Source*>extended(self.sources, &self.capacity, source, sizeof(Source))
        if tenancy and not self._owner[tenant]:
            self._owner_count += 1
            self._owner[tenant] = self._owner_count
        self.sources[source].netblock = netblock
        self.sources[source].streams = <uint8_t>streams
        self.sources[source].tenancy = <uint8_t>tenancy
        self.sources[source].tenant = tenant
        self.sources[source].serves = 0x1FF
        self.sources[source].lends = 0
        self.sources[source].up = 1
        self.generation += 1
        return 0

    cdef bint set_serves(self, uint32_t source, uint32_t serves, uint32_t lends) except -1:
        """See `Scheduler.set_serves`; whether that changes anything."""
        if source >= self.capacity or not self.sources[source].streams:
            raise KeyError(f"source {source} is not known")
        if serves > 0x1FF or lends > 0x1FF:
            raise ValueError(f"serves {serves}, lends {lends}: allowed are 9 bits")
        if self.sources[source].serves == serves and self.sources[source].lends == lends:
            return False
        self.sources[source].serves = <uint16_t>serves
        self.sources[source].lends = <uint16_t>lends
        self.generation += 1
        return True

    cdef bint set_class(self, uint32_t tenant, uint32_t number) except -1:
        """See `Scheduler.set_class`; whether that changes anything."""
        if number >= CLASSES:
            raise ValueError(f"class {number}: allowed are 0 to {CLASSES - 1}")
        if tenant >= self._class_capacity:
            self._tenant_class = <uint8_t*>extended(
                self._tenant_class, &self._class_capacity, tenant, sizeof(uint8_t))
        if self._tenant_class[tenant] == number:
            return False
        self._tenant_class[tenant] = <uint8_t>number
        self.generation += 1
        return True

    cdef Source* source(self, uint32_t source) except NULL:
        if source >= self.capacity:
            raise KeyError(f"source {source} is not known")
        return &self.sources[source]

    # -- rosters

    cdef uint32_t find_roster(self, int lane, uint32_t tenant) except? 0:
        """Number of the roster of a tenant in a lane, made if the topology has changed."""
        cdef uint32_t owner = self._owner[tenant] if tenant < self._owner_capacity else 0
        cdef uint32_t slot = CLASSES * lane
        cdef uint32_t number
        if tenant < self._class_capacity:
            slot += self._tenant_class[tenant]
        number = owner * LANES * CLASSES + slot
        if number >= self._roster_capacity:
            self.rosters = <Roster*>extended(self.rosters, &self._roster_capacity, number, sizeof(Roster))
        if self.rosters[number].generation != self.generation:
            self.rosters[number].slot = slot
            self._make_roster(&self.rosters[number], lane, tenant)
        return number

    cdef int _make_roster(self, Roster* roster, int lane, uint32_t tenant) except -1:
        cdef uint32_t place = 0
        cdef uint32_t before
        cdef int kind
        cdef size_t size = (self.capacity + 1) * sizeof(uint32_t)
        cdef uint32_t* grown = <uint32_t*>reallocate(roster.list, size)
        if grown == NULL:
            raise MemoryError
        roster.list = grown
        for kind in range(3):
            before = place
            place = self._add_kind(roster, lane, tenant, kind, place, False)
            roster.count[kind] = place - before
        if place == 0:
            roster.count[2] = self._add_kind(roster, lane, tenant, 2, 0, True)
        roster.generation = self.generation
        return 0

    cdef uint32_t _add_kind(self, Roster* roster, int lane, uint32_t tenant, int wanted, uint32_t place,
                            bint lent) noexcept nogil:
        """Put the sources of one kind behind the first `place`; returns how many there are then."""
        cdef uint32_t bit = <uint32_t>1 << roster.slot
        cdef uint32_t source
        cdef Source* at
        cdef int kind
        for source in range(self.capacity):
            at = &self.sources[source]
            if not (at.streams >> lane) & 1:
                continue
            if at.tenancy == 1:
                if at.tenant != tenant:
                    continue
                kind = 0
            elif at.tenancy == 2 and at.tenant == tenant:
                kind = 1
            elif (at.lends if lent else at.serves) & bit:
                kind = 2
            else:
                continue
            if kind == wanted:
                roster.list[place] = source
                place += 1
        return place
