"""What the outcomes say about the sources: counted here, reported to the sources' owners, their answers applied.

A report leaves every quarter of a second while there is something to tell, at once after a reply that blocked a
source, and otherwise when the owner wished it or after a few seconds. If an owner does not answer, its last words
stay in force: a dead owner never stops the mail.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol

from engine.delivery.pulse import Pulse
from engine.providers.profiles import Profile
from engine.region.allowances import Allowances
from engine.region.ports import SourcePort
from engine.region.sites import Sites
from engine.region.source_numbers import SourceNumbers
from engine.region.suspensions import ALL_SOURCES, Suspensions
from engine.region.tenants import REMOVED, Tenants
from engine.reputation.allowance import Allowance, Answer, SiteCounts, Summary, decode_answer, encode_summary
from engine.shaping.rules import GENERIC_BLOCK, RuleSet
from engine.values.clock import Clock
from engine.values.outcome import Outcome, OutcomeKind, Scope

log = logging.getLogger(__name__)

REPORT_MS = 250
NEWS_MS = 20
IDLE_MS = 5_000
NO_TLS = "TLS"
KEPT_SITES = 5_000  # of a source whose owner does not answer: those with the most refusals
BLOCKING = frozenset({Scope.SOURCE, Scope.NETBLOCK})
STOPPING = frozenset({"suspend", "recover", "remove"})


class EventStore(Protocol):
    def note_events(self, events: list[tuple[int, str, dict[str, Any]]]) -> object:
        """Put events that are not about a message into the outbox: (unix ms, kind, fields)."""


@dataclass(slots=True)
class Tally:
    """One source at one site since the last report. `replies`: one text per automation rule that matched."""

    delivered: int = 0
    deferred: int = 0
    bounced: int = 0
    blocked: int = 0
    tls_failures: int = 0
    replies: dict[str, tuple[str, int]] = field(default_factory=dict)
    excused: int = 0
    timed: int = 0
    log2_us: float = 0.0
    refused: int = 0
    most: int = 0

    def refusals(self) -> int:
        return self.blocked + self.bounced + self.deferred + self.tls_failures

    def plus(self, later: "Tally") -> "Tally":
        replies = dict(self.replies)
        for rule, (text, count) in later.replies.items():
            replies[rule] = text, count + replies.get(rule, ("", 0))[1]
        return Tally(
            self.delivered + later.delivered,
            self.deferred + later.deferred,
            self.bounced + later.bounced,
            self.blocked + later.blocked,
            self.tls_failures + later.tls_failures,
            replies,
            self.excused + later.excused,
            self.timed + later.timed,
            self.log2_us + later.log2_us,
            self.refused + later.refused,
            max(self.most, later.most),
        )


class Observer:
    """See the module docstring."""

    def __init__(
        self,
        *,
        region: str,
        sites: Sites,
        suspensions: Suspensions,
        allowances: Allowances,
        tenants: Tenants,
        numbers: SourceNumbers,
        events: EventStore,
        clock: Clock,
        sources: SourcePort,
        wake: Callable[[], None],
    ) -> None:
        self._region = region
        self._sites = sites
        self._suspensions = suspensions
        self._allowances = allowances
        self._tenants = tenants
        self._numbers = numbers
        self._events = events
        self._clock = clock
        self._sources = sources
        self._wake = wake
        self._rules: dict[str, RuleSet] = {}
        self._tallies: dict[int, dict[str, Tally]] = {}
        self._full: set[int] = set(sites.sources)
        self._late: dict[int, Counter[tuple[str, str]]] = {}
        self._due_ms: dict[int, int] = dict.fromkeys(sites.sources, 0)
        self._listed: dict[int, str] = {}
        self._news = asyncio.Event()
        self._reviewed: set[tuple[int, str]] = set()

    # -- outcomes

    @property
    def has_news(self) -> bool:
        """Whether something should be reported before the next report is due."""
        return self._news.is_set()

    def note(self, outcome: Outcome, site: int, count: int = 1) -> bool:
        """Count one attempt's outcome, or that of so many alike; returns whether its source is now suspended because
        of it."""
        source = outcome.source
        if outcome.scope is Scope.MESSAGE and outcome.reply.code == 0:
            return False  # we ourselves put it off or refused it: nobody was asked
        if site < 0 or source not in self._sites.sources:
            return False
        tally = self._tally(
            source, self._sites.site(site).name
        )  # its number may be another's before the report
        if outcome.kind is OutcomeKind.DELIVERED:
            tally.delivered += count
            return False
        if outcome.kind is OutcomeKind.DEFERRED:
            if _is_about_recipient(outcome):
                tally.excused += count
            else:
                tally.deferred += count
        elif outcome.kind is OutcomeKind.BOUNCED:
            tally.bounced += count
        else:
            return False
        return self._note_refusal(outcome, site, tally, count)

    def note_pulse(self, pulse: Pulse) -> None:
        """How a site answered a source lately, as a pool has measured it."""
        if pulse.source in self._sites.sources:
            tally = self._tally(pulse.source, pulse.site)
            tally.timed += pulse.timed
            tally.log2_us += pulse.log2_us
            tally.refused += pulse.refused
            tally.most = max(tally.most, pulse.most)

    def _tally(self, source: int, site: str) -> Tally:
        cells = self._tallies.get(source)
        if cells is None:
            cells = self._tallies[source] = {}
        tally = cells.get(site)
        if tally is None:
            tally = cells[site] = Tally()
        return tally

    def note_late(
        self, source: int, site: str, what: Literal["complaints", "bounced"], *, sent_ms: int
    ) -> None:
        """A complaint, or the bounce of an address that does not exist, came after the delivery at `sent_ms`, for which
        the source had that number then."""
        source = self._numbers.now(source, sent_ms)
        if source in self._sites.sources:
            self._late.setdefault(source, Counter())[site, what] += 1

    def note_listed(self, source: int, text: str) -> None:
        """What the block lists say of a source, "" for nothing: its owner hears of it at once."""
        if self._listed.get(source) != text:
            self._listed[source] = text
            self._due_ms[source] = 0
            self._news.set()

    def _note_refusal(self, outcome: Outcome, site: int, tally: Tally, count: int) -> bool:
        text = str(outcome.reply)
        if outcome.reply.code == 0:
            tally.tls_failures += count * (NO_TLS in text)
        about_us = outcome.scope in BLOCKING
        rules = self._rules_of(self._sites.profile(self._sites.site(site).provider))
        rule = rules.match(text) if outcome.reply.code else None
        if rule is not None:
            _, before = tally.replies.get(rule.name, ("", 0))
            tally.replies[rule.name] = text, before + count
            self._news.set()
        if about_us and outcome.reply.code:
            tally.blocked += count
            if rule is None:
                _, before = tally.replies.get(GENERIC_BLOCK.name, ("", 0))
                tally.replies[GENERIC_BLOCK.name] = text, before + count
            self._news.set()
        stops = about_us
        if rule is not None:
            # what a rule says about its reply is more than the scope: a mild rule does not stop the source
            stops = rule.action in STOPPING and rule.threshold.count <= 1 and rule.scope != "domain"
        if stops:
            self._stop(outcome, site, "netblock" if outcome.scope is Scope.NETBLOCK else "source", text)
        return stops

    def _stop(self, outcome: Outcome, site: int, scope: str, text: str) -> None:
        named = self._sites.sources[outcome.source]
        affected = [named.name]
        if scope == "netblock":
            affected = [s.name for s in self._sites.sources.values() if s.netblock == named.netblock]
        self._suspensions.suspend_provisionally(affected, self._sites.site(site).name, text)

    def _rules_of(self, profile: Profile) -> RuleSet:
        found = self._rules.get(profile.name)
        if found is None:
            found = self._rules[profile.name] = RuleSet.build(profile.automation, profile.max_connections)
        return found

    # -- reports

    async def run(self) -> None:
        """Report for ever."""
        while True:
            try:
                # not wait_for: in Python 3.11 it can swallow a cancellation that meets the event
                async with asyncio.timeout(REPORT_MS / 1000):
                    await self._news.wait()
            except TimeoutError:
                pass
            else:
                await asyncio.sleep(NEWS_MS / 1000)  # the answers to what is under way come together
            await self.exchange()

    async def exchange(self) -> None:
        """Report what there is to report, apply the answers, write what changed to disk."""
        self._news.clear()
        tallies, self._tallies = self._tallies, {}
        late, self._late = self._late, {}
        now_ms = self._clock.wall_ms()
        due = [s for s in self._sites.sources if s in tallies or s in late or self._is_due(s, now_ms)]
        # one source after the other would let a slow owner delay the others
        await asyncio.gather(*(self._report(s, tallies.get(s, {}), late.get(s, Counter())) for s in due))
        self._tenants.advance()
        self._note_suspensions()
        self._tenants.save()
        self._suspensions.save()
        self._allowances.save()

    def _note_suspensions(self) -> None:
        now_ms = self._clock.wall_ms()
        rows: list[tuple[int, str, dict[str, Any]]] = [
            (
                now_ms,
                "suspension",
                {"source": s.source, "site": s.site, "until_ms": s.until_ms, "reason": s.reason},
            )
            for s in self._suspensions.take_news()
        ]
        if rows:
            self._events.note_events(rows)

    def _is_due(self, source: int, now_ms: int) -> bool:
        return now_ms >= self._due_ms[source] or bool(self._allowances.waiting(source))

    async def _report(self, source: int, tallies: dict[str, Tally], late: Counter[tuple[str, str]]) -> None:
        name = self._sites.sources[source].name
        rows = [self._row(site, tally) for site, tally in tallies.items()]
        rows = _with_late(rows, late)
        named = {row.site for row in rows}
        rows += [
            SiteCounts(site, 0, 0, 0, 0) for site in self._allowances.waiting(source) if site not in named
        ]
        now_ms = self._clock.wall_ms()
        full = source in self._full
        summary = Summary(now_ms, full, self._allowances.seen[source], tuple(rows), self._listed.get(source))
        try:
            data = await self._sources.observe(name, encode_summary(summary))
        except (ConnectionError, TimeoutError) as error:
            log.warning("source %s: its owner does not answer: %s", name, error)
            self._full.add(source)
            self._due_ms[source] = now_ms + REPORT_MS
            self._keep(source, tallies)
            if late:
                self._late.setdefault(source, Counter()).update(late)
            return
        self._full.discard(source)
        self._apply(source, summary, decode_answer(data))

    def _keep(self, source: int, tallies: dict[str, Tally]) -> None:
        """What could not be told goes into the next report. The owner may have heard it: then it counts twice."""
        cells = self._tallies.setdefault(source, {})
        for site, told in tallies.items():
            since = cells.get(site)
            cells[site] = told if since is None else told.plus(since)
        if len(cells) > 2 * KEPT_SITES:
            kept = sorted(cells.items(), key=lambda cell: cell[1].refusals(), reverse=True)[:KEPT_SITES]
            log.warning(
                "source %s: its owner does not answer, what happened at %d sites is forgotten",
                self._sites.sources[source].name,
                len(cells) - len(kept),
            )
            self._tallies[source] = dict(kept)

    def _row(self, site: str, tally: Tally) -> SiteCounts:
        return SiteCounts(
            site,
            tally.delivered,
            tally.deferred,
            tally.bounced,
            tally.blocked,
            tls_failures=tally.tls_failures,
            replies=tuple(tally.replies.values()),
            excused=tally.excused,
            timed=tally.timed,
            log2_us=tally.log2_us,
            refused=tally.refused,
            most=tally.most,
        )

    def _apply(self, source: int, summary: Summary, answer: Answer) -> None:
        now_ms = self._clock.wall_ms()
        named = self._sites.sources[source]
        reported = [row.site for row in summary.rows]
        before = {a.site: self._allowances.of(source, a.site) for a in answer.allowances}
        for allowance in answer.allowances:
            if allowance.state == REMOVED and before[allowance.site].state != REMOVED:
                # before the scheduler can choose other sources for that tenant's mail
                self._tenants.source_removed(source, allowance.site, allowance.reason)
        breaches = self._allowances.take(source, answer.allowances, full=summary.full, reported=reported)
        for allowance in answer.allowances:
            if allowance.netblock_until_ms > now_ms:
                for neighbour in self._sites.sources.values():
                    if neighbour.netblock == named.netblock:
                        self._suspensions.order(
                            neighbour.name, allowance.site, allowance.netblock_until_ms, allowance.reason
                        )
            if allowance.provider_until_ms > now_ms:
                self._suspensions.order(
                    ALL_SOURCES, allowance.site, allowance.provider_until_ms, allowance.reason
                )
            if allowance.suspended_until_ms > now_ms:
                self._suspensions.order(
                    named.name, allowance.site, allowance.suspended_until_ms, allowance.reason
                )
        for row in summary.rows:
            if row.blocked or row.replies:
                holds = self._allowances.of(source, row.site)
                self._suspensions.judged(
                    named.name,
                    row.site,
                    reported_ms=summary.at_ms,
                    until_ms=max(holds.suspended_until_ms, holds.netblock_until_ms),
                    reason=holds.reason,
                )
        self._relax(source)
        if answer.allowances or any(row.blocked or row.replies for row in summary.rows):
            self._wake()  # what was parked may go now
        self._due_ms[source] = now_ms + IDLE_MS
        if answer.review_ms:
            self._due_ms[source] = max(now_ms + NEWS_MS, min(self._due_ms[source], answer.review_ms))
        self._write_events(source, answer, before, breaches)

    def _write_events(
        self, source: int, answer: Answer, before: dict[str, Allowance], breaches: list[tuple[str, Any]]
    ) -> None:
        name = self._sites.sources[source].name
        rows: list[tuple[int, str, dict[str, Any]]] = []
        for allowance in answer.allowances:
            said = _said(allowance)
            if said != _said(before[allowance.site]):
                told = {"source": name, "site": allowance.site, **said, "score": allowance.score}
                rows.append((self._clock.wall_ms(), "allowance", {**told, "reason": allowance.reason}))
        for event in answer.events:
            if event.number > self._allowances.seen[source]:
                rows.append((event.at_ms, event.kind, {"source": name, "site": event.site, **event.fields}))
                self._allowances.events_seen(source, event.number)
        for site, breach in breaches:
            held = "its mail is held" if breach.kept is None else "one source trickles"
            if breach.whose:
                held = f"{breach.whose}: no source is left; {held}"
            log.error("stream %s has no source left at %s: %s", breach.stream, site, held)
            rows.append(
                (
                    self._clock.wall_ms(),
                    "alert",
                    {"source": name, "site": site, "stream": str(breach.stream), "reason": held},
                )
            )
        if rows:
            for _, kind, fields in rows:
                log.info("%s: %s", kind, fields)
            self._events.note_events(rows)

    def note_notices(self, notices: Sequence[tuple[str, str]]) -> None:
        """What a pool has to say to whoever operates the fleet, e.g. that a key file cannot be read."""
        now_ms = self._clock.wall_ms()
        for subject, text in notices:
            log.error("%s: %s", subject, text)
        self._events.note_events(
            [(now_ms, "alert", {"subject": subject, "reason": text}) for subject, text in notices]
        )

    def review(self, source: str, site: str) -> None:
        """An operator has given an order to a source's owner: ask it at once. ValueError for a source that is not
        of this region."""
        number = next((n for n, named in self._sites.sources.items() if named.name == source), None)
        if number is None:
            raise ValueError(f"source {source!r}: not a source of region {self._region}")
        self._reviewed.add((number, site))
        self._due_ms[number] = 0
        self._news.set()

    def _relax(self, source: int) -> None:
        """After the answer to a review: suspensions last no longer than the orders that are left."""
        for number, site in sorted(pair for pair in self._reviewed if pair[0] == source):
            self._reviewed.discard((number, site))
            held = {n: self._allowances.of(n, site) for n in self._sites.sources}
            for n, named in self._sites.sources.items():
                neighbours = [m for m, s in self._sites.sources.items() if s.netblock == named.netblock]
                orders = [held[n].suspended_until_ms, *(held[m].netblock_until_ms for m in neighbours)]
                self._suspensions.relax(named.name, site, max(orders))
            self._suspensions.relax(ALL_SOURCES, site, max(a.provider_until_ms for a in held.values()))
            self._wake()


def _said(allowance: Allowance) -> dict[str, Any]:
    """What of an allowance is an event when it changes; a warm-up's pace drifts all day, and scores flicker."""
    return {
        "state": allowance.state,
        "weight": allowance.weight,
        "rate": allowance.rate,
        "connections": allowance.connections,
        "daily_cap": allowance.daily_cap,
    }


def _with_late(rows: list[SiteCounts], late: Counter[tuple[str, str]]) -> list[SiteCounts]:
    by_site = {row.site: row for row in rows}
    for (site, what), count in late.items():
        row = by_site.get(site) or SiteCounts(site, 0, 0, 0, 0)
        by_site[site] = replace(row, **{what: getattr(row, what) + count})
    return list(by_site.values())


def _is_about_recipient(outcome: Outcome) -> bool:
    """Greylisting, a full mailbox, a recipient who gets too much: deferrals that say nothing about their source.

    What speaks of policy or security (RFC 3463, x.7.x) does, also as an answer to RCPT.
    """
    return outcome.scope is Scope.RECIPIENT and not outcome.reply.enhanced.startswith("4.7.")
