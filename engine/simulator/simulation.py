"""The loop of a simulation: traffic in, decisions of the real scheduler, answers of the modelled providers, reports.

Each step of the clock: what the plan says happens, new mail and retries become ready, the scheduler is asked until it
has nothing more to give, each batch is answered by its provider, and the region's observer counts the answers.
Decisions are accounted per batch: what a message costs is a few operations in C.

Simplified: a connection takes `service` for each message, whatever its size; the region's memory window is `window`
messages per kind and site; the reports to the owners leave every `report` of the plan, and at the end of a step that
has news. How many connections a source has open at a site follows from how many messages it sends there in a step;
where the model says how many it bears, the region hears how fast it answered (engine/delivery/pulse.py). A reply that
stops its source meets what is on the wire of its connections; the rest of the batch is given back.
Reproducible byte for byte: all randomness comes from the seed, and nothing reads a real clock.
"""

import asyncio
import math
import random
from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol

from engine.config.schema import FleetConfig
from engine.delivery.pulse import Pulse
from engine.providers.profiles import load_profiles
from engine.region.retry import RetrySchedule, schedule_of
from engine.region.sites import Site
from engine.simulator.clock import VirtualClock
from engine.simulator.models import BUILT_IN, PLENTY, Listing, Mailboxes, ModelConfig
from engine.simulator.node import Node
from engine.simulator.owners import Owners
from engine.simulator.plan import Happening, Plan
from engine.simulator.record import Record
from engine.simulator.traffic import MINUTE_MS, Arrivals, Flow, Split, attempts_of, minute_of
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply
from engine.values.stream import Stream
from engine.warmup.warmup import provider_of

NS = 1_000_000_000
BATCH = 4_000
SOURCE_SHIFT = 32
SITE_MASK = (1 << 32) - 1
ACCEPTED = Reply(250, "2.0.0", "accepted")
ON_THE_WIRE = 1  # messages of a connection that a stopping reply meets


class Watch(Protocol):
    """Sees what a simulation does, for tests."""

    def taken(self, node: Node, entries: bytes) -> None:
        """A batch of decisions (40 bytes each, native/scheduler.pyi), before it is answered."""

    def returned(self, node: Node, rows: list[tuple[int, int]]) -> None:
        """(site number, source) of each message of the batch that is given back unsent."""

    def stepped(self, now_ns: int) -> None:
        """A step of the clock is over."""


class Simulation:
    """One run of a plan. `watch` sees every batch of decisions, for tests."""

    def __init__(self, plan: Plan, *, watch: Watch | None = None) -> None:
        self.plan = plan
        self.config = self._config_of(plan)
        self.clock = VirtualClock(plan.start_ms)
        self._watch = watch
        self._start_ms = plan.start_ms
        self._rng = random.Random(plan.seed)
        self._loop = asyncio.new_event_loop()
        self._tick_ns = round(plan.tick * NS)
        profiles = load_profiles(self.config.providers)
        self.nodes = [
            Node(
                config=self.config,
                region=region.name,
                profiles=profiles,
                clock=self.clock,
                loop=self._loop,
                seed=plan.seed * 1000 + number,
                horizon_ns=self._tick_ns,
            )
            for number, region in enumerate(self.config.regions)
        ]
        self._history = _history(plan)
        self.mailboxes: dict[str, Mailboxes] = {}
        ends = plan.duration
        self._arrivals = [
            Arrivals(t.per_day, t.weights(), t.begins, ends if t.ends is None else t.ends)
            for t in plan.traffic
        ]
        self._arrived = [0] * len(plan.traffic)
        self._sites = sorted({site for traffic in plan.traffic for site in traffic.shares})
        self._by_site = [Split([t.shares.get(site, 0.0) for site in self._sites]) for t in plan.traffic]
        self._by_node = {
            (number, site): Split(self._weights_of_nodes(number))
            for number in range(len(plan.traffic))
            for site in self._sites
        }
        self.flows: list[dict[tuple[int, str], Flow]] = [{} for _ in self.nodes]
        self._at: list[dict[int, Flow]] = [{} for _ in self.nodes]  # by the scheduler's number
        self._serial = 1
        self._events = sorted(plan.events, key=lambda event: event.at)
        self._ends: list[tuple[float, int]] = []  # when a region that is down comes back
        self._delistings: list[tuple[float, tuple[str, ...]]] = []
        self._dying: set[int] = set()  # regions that die in this step
        self._next_report_ns = [0 for _ in self.nodes]
        # messages of this step, by site and source, where answers are timed
        self._sent: Counter[tuple[int, int]] = Counter()
        self._retry: dict[int, RetrySchedule] = {
            int(stream): schedule_of(self.config, stream) for stream in Stream
        }
        self.record = Record(plan, self.config, self._sites)

    @staticmethod
    def _config_of(plan: Plan) -> FleetConfig:
        """The plan's fleet; a connection may have so much under way as it finishes in a step of the clock."""
        config = plan.fleet_config()
        service_s = min((m.service for m in plan.models.values()), default=ModelConfig().service)
        window = max(1, round(plan.tick / service_s))
        limits = config.limits.model_copy(update={"window_per_connection": window})
        return config.model_copy(update={"limits": limits})

    def _weights_of_nodes(self, traffic: int) -> list[float]:
        """A region gets a share of a traffic by how many of its sources may carry it."""
        plan = self.plan.traffic[traffic]
        weights = []
        for node in self.nodes:
            able = [
                s
                for s in node.sites.sources.values()
                if plan.stream in s.streams
                and (s.tenancy_of()[0] != "dedicated" or s.tenancy_of()[1] == plan.tenant)
            ]
            weights.append(float(len(able)))
        return weights

    # -- running

    def run(self, progress: Callable[[float], None] | None = None) -> Record:
        """Run the plan to its end and return the record."""
        total_ns = round(self.plan.duration * NS)
        now_ns = 0
        while now_ns < total_ns:
            step_ns = min(self._tick_ns, total_ns - now_ns)
            self.step(now_ns, step_ns)
            now_ns += step_ns
            if progress is not None:
                progress(now_ns / total_ns)
        self.record.finish(self)
        self._loop.close()
        return self.record

    def step(self, now_ns: int, step_ns: int) -> None:
        self.clock.move_to(now_ns)
        self._happen(now_ns / NS)
        now_ms = self.clock.wall_ms()
        self._arrive((now_ns + step_ns) / NS, now_ms)
        for number, node in enumerate(self.nodes):
            if node.is_up:
                node.sites.new_day(now_ms)
                self._send(number, node, now_ns)
                if number in self._dying:  # it had nothing to send
                    self._die_with(number, node, b"")
        self._dying.clear()
        # the reports of a step belong to it, also at midnight
        self.clock.move_to(now_ns + step_ns - 1_000_000)
        for number, node in enumerate(self.nodes):
            if node.is_up and (node.observer.has_news or now_ns >= self._next_report_ns[number]):
                node.exchange()
                self._next_report_ns[number] = now_ns + round(self.plan.report * NS)
        self.record.step(self, now_ns + step_ns)
        if self._watch is not None:
            self._watch.stepped(now_ns)

    # -- what the plan says happens

    def _happen(self, now_s: float) -> None:
        while self._ends and self._ends[0][0] <= now_s:
            _, number = self._ends.pop(0)
            self.nodes[number].restart()
            self.nodes[number].is_up = True
            self._forget_numbers(number)
        while self._delistings and self._delistings[0][0] <= now_s:
            self._note_listed(self._delistings.pop(0)[1], "")
        while self._events and self._events[0].at <= now_s:
            event = self._events.pop(0)
            self.record.happened(now_s, event)
            if event.kind in ("storm", "listing", "block"):
                self._list(event, now_s)
            elif event.kind == "dnsbl":
                self._note_listed(event.sources, "a DNS blocklist")
                self._delistings = sorted([*self._delistings, (now_s + event.lasts, event.sources)])
            elif event.kind == "owner_restart":
                for node in self.nodes:
                    for source in event.sources:
                        node.restart_owner(source)
            else:
                number = next(n for n, node in enumerate(self.nodes) if node.region == event.region)
                if event.kind == "restart":
                    self._dying.add(number)
                elif self.nodes[number].is_up:
                    self.lose_memory(number)
                    self._go_down(number, now_s + event.lasts)

    def _note_listed(self, sources: tuple[str, ...], text: str) -> None:
        for node in self.nodes:
            for number, source in node.sites.sources.items():
                if source.name in sources:
                    node.observer.note_listed(number, text)

    def _list(self, event: Happening, now_s: float) -> None:
        for site in self._sites:
            if event.provider is not None and site != event.provider:
                continue
            boxes = self.boxes(site)
            name = {"storm": "rate", "listing": "netblock", "block": "block"}[event.kind]
            sources: frozenset[int] | None = None
            if event.kind != "storm":
                sources = frozenset(
                    n
                    for n, source in enumerate(self.config.sources)
                    if str(source.netblock) == event.netblock or source.name in event.sources
                )
            boxes.listings.append(Listing(now_s + event.lasts, boxes.replies[name], sources, event.share))

    def _go_down(self, number: int, until_s: float) -> None:
        """The others adopt its mail (contract, section 10)."""
        self.nodes[number].is_up = False
        self._ends = sorted([*self._ends, (until_s, number)])
        for (traffic, site), flow in self.flows[number].items():
            usable = [node.is_up for node in self.nodes]
            if not any(ok and w for ok, w in zip(usable, self._weights_of_nodes(traffic), strict=True)):
                continue  # nobody can carry it: it waits for its region
            split = self._by_node[traffic, site]
            chunks = [(c.attempts, c.minute, c.count, 0) for c in flow.waiting]
            chunks += [(attempts, minute, count, due) for due, attempts, minute, count in flow.retries]
            for attempts, minute, count, due_ms in chunks:
                for other, share in enumerate(split.of(count, usable)):
                    if share and due_ms:
                        self._flow(other, traffic, site).depth += share
                        self._flow(other, traffic, site).retry(due_ms, attempts, minute, share)
                    elif share:
                        self._flow(other, traffic, site).arrive(share, minute, attempts)
            flow.waiting.clear()
            flow.retries.clear()
            flow.depth = 0

    def lose_memory(self, number: int) -> None:
        """A region's process dies: what was in its scheduler is on disk still, and due."""
        scheduler = self.nodes[number].scheduler
        for flow in self.flows[number].values():
            for first, count in flow.loaded:
                held = sum(scheduler.contains(id_) for id_ in range(first, first + count))
                if held:
                    flow.retry(0, attempts_of(first), minute_of(first), held)
            flow.forget_all_loaded()
        self._forget_numbers(number)

    def _die_with(self, number: int, node: Node, entries: bytes) -> None:
        """The region dies with a batch at its pools: its counts are on disk, its outcomes are lost, and the messages
        are due again (marked as possible duplicates). They may have gone out, so they have used the limits."""
        words = memoryview(entries).cast("Q")
        places = set(words[2::5].tolist())
        node.keep_counts([(node.sites.site(p & SITE_MASK), p >> SOURCE_SHIFT) for p in sorted(places)])
        self._dying.discard(number)
        self.lose_memory(number)
        node.restart()

    def _forget_numbers(self, number: int) -> None:
        self._at[number].clear()
        for flow in self.flows[number].values():
            flow.number = -1

    # -- mail in

    def _flow(self, number: int, traffic: int, site: str) -> Flow:
        flows = self.flows[number]
        found = flows.get((traffic, site))
        if found is None:
            found = flows[traffic, site] = Flow(traffic, site, len(flows) + 1)
        return found

    def _arrive(self, until_s: float, now_ms: int) -> None:
        minute = (now_ms - self._start_ms) // MINUTE_MS
        usable = [node.is_up for node in self.nodes]
        if not any(usable):
            return  # no region accepts: what was meant to come comes later
        for index, arrivals in enumerate(self._arrivals):
            total = arrivals.by(until_s)
            count = total - self._arrived[index]
            if count <= 0:
                continue
            self._arrived[index] = total
            self.record.accepted += count
            for site, at_site in zip(
                self._sites, self._by_site[index].of(count, [True] * len(self._sites)), strict=True
            ):
                split = self._by_node[index, site]
                for number, share in enumerate(split.of(at_site, usable) if at_site else ()):
                    if share:
                        self._flow(number, index, site).arrive(share, minute)

    def _fill(self, number: int, node: Node, flow: Flow, now_ms: int) -> None:
        """Keep the scheduler supplied, as engine/region/windows.py does from the disk."""
        if flow.number < 0:
            traffic = self.plan.traffic[flow.traffic]
            flow.site_number = node.open(flow.site).number
            tenant = node.sites.tenants.hold(traffic.tenant)
            campaign = node.sites.campaigns.hold(traffic.name)
            stream = int(Stream.parse(str(traffic.stream)))
            flow.number = node.scheduler.flow(flow.site_number, stream, tenant, campaign)
            self._at[number][flow.number] = flow
        if flow.retries and flow.retries[0][0] <= now_ms:
            flow.due(now_ms)
        if not flow.waiting:
            return
        ready = node.scheduler.ready(flow.number)
        if ready * 2 < self.plan.window:
            keys, count = flow.take(self.plan.window - ready, self._serial, now_ms)
            self._serial += count
            node.scheduler.add(flow.number, keys)

    # -- mail out

    def _send(self, number: int, node: Node, now_ns: int) -> None:
        now_ms = self.clock.wall_ms()
        flows = [flow for flow in self.flows[number].values() if flow.depth]
        if not flows:
            return
        for flow in flows:
            self._fill(number, node, flow, now_ms)
        settled: list[bytes] = []
        self._sent.clear()
        for pool in range(len(node.sites.pools)):
            while True:
                entries = node.scheduler.take(pool, now_ns, BATCH)
                if not entries:
                    break
                if self._watch is not None:
                    self._watch.taken(node, entries)
                if number in self._dying:
                    self._die_with(number, node, entries)
                    return
                settled.append(self._deliver(number, node, entries, now_ns))
                for flow in flows:
                    if flow.waiting and node.sites.site(flow.site_number).pool == pool:
                        self._fill(number, node, flow, now_ms)
        for ids in settled:
            node.scheduler.settle(ids)
        for (site, source), count in self._sent.items():
            self._time(node, node.sites.site(site), source, count)
        for flow in flows:
            if len(flow.loaded) > 1:
                flow.forget_loaded(node.scheduler.ready(flow.number))

    def _deliver(self, number: int, node: Node, entries: bytes, now_ns: int) -> bytes:
        """Answer one batch; returns the ids that are to be settled when the step is over."""
        view = memoryview(entries)
        words = view.cast("Q")
        places = words[2::5].tolist()  # the site, and above it the source
        flows = view.cast("I")[6::10].tolist()
        cells = Counter(zip(places, flows, strict=True))
        by_place: dict[int, list[tuple[Flow, int]]] = {}
        at = self._at[number]
        for (place, flow), count in cells.items():
            by_place.setdefault(place, []).append((at[flow], count))
            at[flow].granted += count
        node.keep_counts([(node.sites.site(p & SITE_MASK), p >> SOURCE_SHIFT) for p in by_place])
        refused: dict[int, list[tuple[Any, int, bool]]] = {}
        back = False
        for place, parts in by_place.items():
            first = 0
            if self.boxes(node.sites.site(place & SITE_MASK).name).config.greylist:
                ids = words[0::5].tolist()
                first = sum(not attempts_of(i) for i, p in zip(ids, places, strict=True) if p == place)
            answers, returned = self._answer(node, place, parts, first, now_ns)
            if answers or returned:
                refused[place] = answers
                back |= bool(returned)
                if returned:
                    refused[place] = [*answers, (None, returned, False)]
        for (place, flow), count in cells.items():
            if place not in refused:
                at[flow].depth -= count
        if not refused:
            return words[0::5].tobytes()
        return self._sort_out(number, node, entries, places, flows, refused, is_back=back)

    def _answer(
        self, node: Node, place: int, parts: list[tuple[Flow, int]], first: int, now_ns: int
    ) -> tuple[list[tuple[Any, int, bool]], int]:
        """What a provider says to one source's part of a batch: (said, count, goes out again at once), and how many are
        given back unsent."""
        source = place >> SOURCE_SHIFT
        site = node.sites.site(place & SITE_MASK)
        total = sum(count for _, count in parts)
        unknown = sum(self.plan.traffic[flow.traffic].unknown * count for flow, count in parts) / total
        complaints = sum(self.plan.traffic[flow.traffic].complaints * count for flow, count in parts) / total
        boxes = self.boxes(site.name)
        connections = 1
        if boxes.config.bears is not None:
            self._sent[site.number, source] += total
            connections = self._connections(node, site, source, self._sent[site.number, source])
        answers = boxes.answer(
            source, now_ns / NS, total, first, unknown, complaints, connections=connections
        )
        left = total
        owners = self._owners(parts)
        returned = 0
        found: list[tuple[Any, int, bool]] = []
        now_ms = self.clock.wall_ms()
        for count, said in answers:
            outcome = Outcome(0, said.kind, said.scope, said.reply, source, "", now_ms)
            wire = min(count, self._wire(node, site, source))
            stops = node.observer.note(outcome, site.number, wire)
            if stops:
                returned += count - wire
            elif count > wire:
                node.observer.note(outcome, site.number, count - wire)
                wire = count
            owners.note(node, outcome, wire)
            found.append((said, wire, stops))
            left -= count
            self.record.refused(source, site.name, said, wire)
        if left:
            outcome = Outcome(0, OutcomeKind.DELIVERED, Scope.MESSAGE, ACCEPTED, source, "", now_ms)
            node.observer.note(outcome, site.number, left)
            owners.note(node, outcome, left)
            self.record.delivered(source, site.name, left)
        return found, returned

    def _connections(self, node: Node, site: Site, source: int, count: int) -> int:
        """How many connections so many messages of a step keep busy, of those that are allowed."""
        busy = math.ceil(count * self.boxes(site.name).config.service / self.plan.tick)
        return max(1, min(busy, node.sites.pace(site, source)[1]))

    def _time(self, node: Node, site: Site, source: int, count: int) -> None:
        """Tell the region how fast the site answered in this step."""
        connections = self._connections(node, site, source, count)
        log2_us = count * math.log2(self.boxes(site.name).latency_s(connections) * 1e6)
        node.observer.note_pulse(Pulse(source, site.name, count, log2_us, 0, connections))

    def _owners(self, parts: list[tuple[Flow, int]]) -> Owners:
        return Owners([(self.plan.traffic[flow.traffic], count) for flow, count in parts])

    @staticmethod
    def _wire(node: Node, site: Site, source: int) -> int:
        return max(1, node.sites.pace(site, source)[1]) * ON_THE_WIRE

    def _sort_out(
        self,
        number: int,
        node: Node,
        entries: bytes,
        places: list[int],
        flows: list[int],
        refused: dict[int, list[tuple[Any, int, bool]]],
        *,
        is_back: bool,
    ) -> bytes:
        """Find messages for the answers of a batch: the last ones of each source's part have met the refusals."""
        ids = memoryview(entries).cast("Q")[0::5].tolist()
        at = self._at[number]
        groups: dict[int, list[tuple[int, int]]] = {place: [] for place in refused}
        for id_, place, flow in zip(ids, places, flows, strict=True):
            group = groups.get(place)
            if group is not None:
                group.append((id_, flow))
        given_back: list[int] = []
        for place, answers in refused.items():
            group = groups[place]
            for said, count, again in reversed(answers):
                chosen = group[len(group) - count :]
                del group[len(group) - count :]
                if said is None:
                    given_back += [id_ for id_, _ in chosen]
                elif said.kind is OutcomeKind.DEFERRED:
                    self._defer(at, chosen, again=again or said.scope is Scope.PROVIDER)
                else:
                    self.record.bounced += count
                    for flow, many in Counter(flow for _, flow in chosen).items():
                        at[flow].depth -= many
            for flow, many in Counter(flow for _, flow in group).items():
                at[flow].depth -= many
        if not is_back:
            return memoryview(entries).cast("Q")[0::5].tobytes()
        kept = set(given_back)
        if self._watch is not None:
            rows = [
                (place & SITE_MASK, place >> SOURCE_SHIFT)
                for id_, place in zip(ids, places, strict=True)
                if id_ in kept
            ]
            self._watch.returned(node, rows)
        node.scheduler.give_back(b"".join(id_.to_bytes(8, "little") for id_ in given_back))
        return b"".join(id_.to_bytes(8, "little") for id_ in ids if id_ not in kept)

    def _defer(self, at: dict[int, Flow], chosen: list[tuple[int, int]], *, again: bool) -> None:
        """As Region does it: at once over another source if this one is stopped now, else by the retry schedule."""
        now_ms = self.clock.wall_ms()
        start_ms = self._start_ms
        alike = Counter((flow, attempts_of(id_), minute_of(id_)) for id_, flow in chosen)
        for (number, attempts, minute), count in alike.items():
            flow = at[number]
            schedule = self._retry[int(Stream.parse(str(self.plan.traffic[flow.traffic].stream)))]
            due_ms: int | None = now_ms
            expires_ms = start_ms + minute * MINUTE_MS + schedule.expire_ms
            if now_ms >= expires_ms:
                due_ms = None
            elif not again:
                due_ms = schedule.next_due_ms(
                    now_ms=now_ms, attempts=attempts + 1, expires_ms=expires_ms, rng=self._rng
                )
            if due_ms is None:
                self.record.expired += count
                flow.depth -= count
            else:
                flow.retry(due_ms, attempts if again else attempts + 1, minute, count)

    # -- looking in

    def boxes(self, site: str) -> Mailboxes:
        """The provider behind a site."""
        found = self.mailboxes.get(site)
        if found is None:
            name = site if site in self.plan.models else provider_of(site)
            model = self.plan.models.get(name) or BUILT_IN.get(name) or ModelConfig()
            found = self.mailboxes[site] = Mailboxes(
                model, self._history, random.Random(f"{self.plan.seed}/{site}")
            )
        return found

    def depth(self, site: str) -> int:
        """Messages that wait for a site, in all regions."""
        return sum(flow.depth for flows in self.flows for flow in flows.values() if flow.site == site)


def _history(plan: Plan) -> dict[int, int]:
    """Messages a day that providers are used to, by source number."""
    found: dict[int, int] = {}
    for group in plan.sources:
        used_to = group.history if group.history is not None else 0 if group.warmup else PLENTY
        for _ in range(group.count):
            found[len(found)] = used_to
    return found
