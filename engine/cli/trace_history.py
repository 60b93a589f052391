"""What the events logs say of a message's way: its attempts, and which sources could have carried it at each.

Recorded is every change of what a source may do at a site (`allowance`, `suspension`), of a tenant's class (`tenant`),
and of the sources' numbers (`sources`). A region judges tenants for itself, so its own events count.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from engine.cli.events import read_events
from engine.cli.shaping import time_text
from engine.config.schema import FleetConfig, SourceConfig
from engine.reputation.serving import Serving, bit_of, find_serving
from engine.values.outcome import OutcomeKind
from engine.values.quality import Quality
from engine.values.stream import Stream

NO_SOURCE = 0xFFFF
OUTCOMES = frozenset(str(kind) for kind in OutcomeKind)
CHANGES = frozenset({"allowance", "suspension", "tenant", "sources"})
MARKS = tuple(b'"event":"' + kind.encode() + b'"' for kind in sorted(CHANGES))
OWN = ("dedicated", "hybrid")  # a tenant's own sources are asked first, in this order


class Other(NamedTuple):
    """A source that did not carry the message: why it could not; if it could, why it was not asked."""

    source: str
    reasons: list[str]
    passed_over: str


class History:
    """See the module docstring. `attempts`: those of one message, each once and by time; `later`: what came back about
    it."""

    def __init__(self, config: FleetConfig, id_: str) -> None:
        self._config = config
        self.attempts: list[dict[str, Any]] = []
        self.later: list[dict[str, Any]] = []
        self._changes: list[dict[str, Any]] = []
        self._read(Path(config.events.directory), id_)

    def _read(self, directory: Path, id_: str) -> None:
        wanted = b'"' + id_.encode() + b'"'
        attempts: dict[tuple[int, int, str], dict[str, Any]] = {}
        changes: dict[tuple[str, bytes], dict[str, Any]] = {}
        for region, line in _lines(directory):
            # most lines are about other messages: they are not parsed
            if wanted in line:
                event = orjson.loads(line)
                if event.get("id") == id_:
                    attempts[event["seq"], event["at_ms"], event["event"]] = {**event, "region": region}
            elif any(mark in line for mark in MARKS):
                event = orjson.loads(line)
                if event.get("event") in CHANGES:
                    changes[region, line] = {**event, "region": region}
        found = sorted(attempts.values(), key=_time)
        self.attempts = [event for event in found if event["event"] in OUTCOMES]
        self.later = [event for event in found if event["event"] not in OUTCOMES]
        self._changes = sorted(changes.values(), key=_time)

    # -- what was in force

    def _before(self, at_ms: int, kind: str) -> Iterator[dict[str, Any]]:
        for change in self._changes:
            if change["at_ms"] > at_ms:
                return
            if change["event"] == kind:
                yield change

    def carrier_of(self, attempt: dict[str, Any]) -> str:
        """The name of the source of an attempt, "" if none carried it: its number is its place in the fleet.yaml of
        that time."""
        names = [source.name for source in self._config.sources]
        later = [change for change in self._changes if change["event"] == "sources"]
        if later:
            names = later[0]["before"]
        for change in self._before(attempt["at_ms"], "sources"):
            names = change["names"]
        number = attempt.get("source", NO_SOURCE)
        return str(names[number]) if 0 <= number < len(names) else ""

    def _quality_of(self, tenant: str, region: str, at_ms: int) -> Quality:
        pinned = self._config.tenants.get(tenant)
        if pinned is not None and pinned.quality != "auto":
            return Quality.parse(pinned.quality)
        found = Quality.NEW
        for change in self._before(at_ms, "tenant"):
            if change["tenant"] == tenant and change["region"] == region:
                found = Quality.parse(change["state"])
        return found

    # -- the other sources

    def others(self, attempt: dict[str, Any], site: str, region: str) -> list[Other]:
        """Every source of the region but the one that carried the message."""
        sources = {n: s for n, s in enumerate(self._config.sources) if s.region == region}
        at_ms, tenant = attempt["at_ms"], attempt["tenant"]
        serving = find_serving(sources, lambda owner: self._quality_of(owner, region, at_ms))
        carrier = self.carrier_of(attempt)
        rank = {source.name: _rank(source, tenant) for source in sources.values()}
        found = []
        for number, source in sources.items():
            if source.name == carrier:
                continue
            reasons = self._static(number, sources, serving, attempt, region)
            reasons += self._dynamic(source, site, at_ms)
            passed_over = ""
            if not reasons and carrier in rank and rank[source.name] != rank[carrier]:
                passed_over = "the tenant's own sources come first"
                if rank[source.name] < rank[carrier]:
                    passed_over = "it comes first, so its rate, window or cap of the day was used up"
            found.append(Other(source.name, reasons, passed_over))
        return found

    def _static(
        self,
        number: int,
        sources: dict[int, SourceConfig],
        serving: dict[int, Serving],
        attempt: dict[str, Any],
        region: str,
    ) -> list[str]:
        source, stream, tenant = sources[number], attempt["stream"], attempt["tenant"]
        reasons = []
        if stream not in {str(one) for one in source.streams}:
            reasons.append(f"does not serve the stream {stream}")
        kind, owner = source.tenancy_of()
        if kind == "dedicated" and owner != tenant:
            reasons.append(f"dedicated to the tenant {owner}")
        elif owner != tenant and not reasons:
            quality = self._quality_of(tenant, region, attempt["at_ms"])
            bit = bit_of(int(Stream.parse(stream)), int(quality))
            has_other = any(
                serving[n].serves & bit or one.tenancy_of()[1] == tenant
                for n, one in sources.items()
                if stream in {str(s) for s in one.streams}
            )
            if not serving[number].serves & bit and (has_other or not serving[number].lends & bit):
                reasons.append(f"did not serve tenants of the class {quality}, as {tenant} was")
        return reasons

    def _dynamic(self, source: SourceConfig, site: str, at_ms: int) -> list[str]:
        held: dict[str, dict[str, Any]] = {}
        for change in self._before(at_ms, "allowance"):
            if change["source"] == source.name and change["site"] in ("", site):
                held[change["site"]] = change
        suspended: dict[str, dict[str, Any]] = {}
        for change in self._before(at_ms, "suspension"):
            if change["source"] in ("", source.name) and change["site"] == site:
                suspended[change["source"]] = change
        # what holds everywhere holds here, too
        out = [held[name] for name in (site, "") if name in held and held[name]["weight"] == 0]
        reasons = [f"out of the rotation ({out[0]['state']}): {out[0]['reason']}"] if out else []
        for change in suspended.values():
            if change["until_ms"] > at_ms:
                reasons.append(f"suspended until {time_text(change['until_ms'])}: {change['reason']}")
        return reasons


def _rank(source: SourceConfig, tenant: str) -> int:
    kind, owner = source.tenancy_of()
    return OWN.index(kind) if owner == tenant and kind in OWN else len(OWN)


def _time(event: dict[str, Any]) -> tuple[int, int]:
    return event["at_ms"], event["seq"]


def _lines(directory: Path) -> Iterator[tuple[str, bytes]]:
    """Of every log below a directory, with the name of its region."""
    for folder in sorted(path for path in directory.glob("*") if path.is_dir()):
        for line in read_events(directory, pattern=f"{folder.name}/events-*.jsonl"):
            yield folder.name, line
