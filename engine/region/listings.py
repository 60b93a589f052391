"""Asks the blocklists about the region's own sources, and tells the sources' owners by the next report.

Once in `blocklists.interval`, at most `blocklists.parallel` questions at once. What was found is on disk: a restart
neither forgets a listing nor asks again before its time. A list is asked for its test entries first; one that does not
know them, or lists everything, or refuses, says nothing about us, and an alert says so once.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import msgpack

from engine.config.blocklists import BlocklistsConfig, BlocklistZone
from engine.region.ports import AddressQuestions
from engine.region.sites import Sites
from engine.region.suspensions import StateStore
from engine.region.tenants import EventStore
from engine.reputation.listing import (
    TEST_CLEAR,
    TEST_LISTED,
    Listed,
    Meaning,
    Reading,
    query_name,
    read_answer,
)
from engine.routing.answers import Status
from engine.values.clock import Clock

log = logging.getLogger(__name__)

VERSION = 1
STATE_KEY = "blocklists"
LOOK_S = 5.0  # how often it is looked whether it is time; a wall clock that jumps is noticed so soon


class Listings:
    """See the module docstring. `tell`: (number of a source, what lists it or "") for its owner."""

    def __init__(
        self,
        *,
        config: BlocklistsConfig,
        sites: Sites,
        resolver: AddressQuestions,
        store: StateStore,
        events: EventStore,
        clock: Clock,
        tell: Callable[[int, str], None],
    ) -> None:
        self._config = config
        self._sites = sites
        self._resolver = resolver
        self._store = store
        self._events = events
        self._clock = clock
        self._tell = tell
        self._listed = {number: Listed() for number in sites.sources}
        self._problems: dict[str, str] = {}
        self._asked_ms = 0
        self._room = asyncio.Semaphore(config.parallel)

    def restore(self) -> None:
        """Load what was known and tell it; a state of another version begins anew."""
        data = self._store.get_state(STATE_KEY)
        state = msgpack.unpackb(data) if data is not None else {}
        if state.get("version") == VERSION:
            self._asked_ms = state["asked_ms"]
            for number, source in self._sites.sources.items():
                self._listed[number].by_zone = dict(state["listed"].get(source.name, {}))
        zones = [zone.zone for zone in self._config.zones]
        for number, listed in self._listed.items():
            listed.keep(zones)
            self._tell(number, listed.text)

    async def run(self) -> None:
        """Look for ever; without zones there is nothing to do."""
        while self._config.zones:
            if not 0 <= self._clock.wall_ms() - self._asked_ms < self._config.interval * 1000:
                await self.look()
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Ask every list about every source, once."""
        await asyncio.gather(*(self._look_at(zone) for zone in self._config.zones))
        self._asked_ms = self._clock.wall_ms()
        self._save()

    async def _look_at(self, zone: BlocklistZone) -> None:
        problem = await self._problem_of(zone)
        if problem != self._problems.get(zone.zone, ""):
            if problem:
                self._alert(
                    {"subject": zone.zone, "reason": f"the blocklist says nothing about us: {problem}"}
                )
                self._problems[zone.zone] = problem
            else:
                del self._problems[zone.zone]
        if not problem:
            await asyncio.gather(*(self._look_for(number, zone) for number in self._listed))

    async def _problem_of(self, zone: BlocklistZone) -> str:
        """Why the list cannot be believed, "" if it can."""
        any_code = zone.model_copy(update={"codes": {}})
        known = await self._ask(any_code, f"{TEST_LISTED}.{zone.zone}")
        if known.meaning is not Meaning.LISTED:
            return known.text or "it does not know its test entry 127.0.0.2"
        unknown = await self._ask(any_code, f"{TEST_CLEAR}.{zone.zone}")
        return "" if unknown.meaning is Meaning.CLEAR else unknown.text or "it lists 127.0.0.1, so everything"

    async def _ask(self, zone: BlocklistZone, name: str) -> Reading:
        async with self._room:
            answer = await self._resolver.addresses(name, ipv6=False)
        if answer.status is Status.FAILED:
            return Reading(Meaning.SILENT, answer.reason)
        return read_answer(zone, answer.addresses)

    async def _look_for(self, number: int, zone: BlocklistZone) -> None:
        source = self._sites.sources[number]
        reading = await self._ask(zone, query_name(source.ip, zone.zone))
        listed = self._listed[number]
        if not listed.note(zone.zone, reading):
            return
        self._tell(number, listed.text)
        now_ms = self._clock.wall_ms()
        is_listed = reading.meaning is Meaning.LISTED
        fields = {"source": source.name, "zone": zone.zone, "listed": is_listed, "reason": reading.text}
        self._events.note_events([(now_ms, "listing", fields)])
        if is_listed:
            self._alert({"source": source.name, "site": "", "reason": f"listed: {reading.text}"})
        else:
            log.info("source %s is not on %s any more", source.name, zone.zone)

    def _alert(self, fields: dict[str, Any]) -> None:
        log.error("%s", fields)
        self._events.note_events([(self._clock.wall_ms(), "alert", fields)])

    def _save(self) -> None:
        listed = {self._sites.sources[n].name: one.by_zone for n, one in self._listed.items() if one.by_zone}
        state = {"version": VERSION, "asked_ms": self._asked_ms, "listed": listed}
        self._store.put_state(STATE_KEY, msgpack.packb(state))

    def listing(self) -> dict[str, object]:
        """For status pages: what lists each source, which lists say nothing, and when they were asked last."""
        return {
            "asked_ms": self._asked_ms,
            "sources": {
                self._sites.sources[n].name: listed.text for n, listed in self._listed.items() if listed.text
            },
            "problems": dict(self._problems),
        }
