"""The owner of one source: reputation, warm-up and shaping together, and the allowances that follow from them.

Pure: time comes in with the summaries. What the owner knows survives in `to_state`; `is_due_to_save` says when that
must be written: at once after an event, else now and then, because losing seconds of counts does no harm (the caps
themselves are counted on the region's disk).
"""

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import fields
from operator import attrgetter
from typing import Any

from engine.config.schema import FleetConfig
from engine.providers.profiles import load_profiles
from engine.reputation.allowance import EVERYWHERE, Allowance, Answer, SourceEvent, Summary
from engine.reputation.book import Reputation
from engine.reputation.standing import Share, State, Transition
from engine.shaping.rules import RuleSet
from engine.shaping.shaping import Fired, Shaping
from engine.shaping.windows import Answers, Narrowed
from engine.warmup.plan import Plan, StageChange
from engine.warmup.tables import load_tables
from engine.warmup.warmup import Warmup, provider_of

VERSION = 2
KEPT_EVENTS = 500
SAVE_MS = 5_000
PACE_TOLERANCE = 0.05
SWEEP_MS = 60_000
DAY_MS = 86_400_000


def rules_of(config: FleetConfig) -> Callable[[str], RuleSet]:
    """The automation rules of any site."""
    profiles = load_profiles(config.providers)
    sets = {
        name: RuleSet.build(p.automation, p.max_connections, is_adaptive=p.adaptive_connections)
        for name, p in profiles.items()
    }
    return lambda site: sets.get(provider_of(site)) or sets["default"]


class SourceOwner:
    """See the module docstring."""

    def __init__(self, config: FleetConfig, name: str) -> None:
        source = next(source for source in config.sources if source.name == name)
        tables = load_tables(config.warmup.tables)
        self.name = name
        self._config = config
        self._table = tables[source.warmup] if source.warmup is not None else None
        self._rules_of = rules_of(config)
        self.reputation = Reputation(config.reputation)
        self.warmup = Warmup(config.warmup, self._table)
        self.shaping = Shaping(config.shaping, self._rules_of)
        self._events: deque[SourceEvent] = deque(maxlen=KEPT_EVENTS)
        self._event_number = 0
        self._sent: dict[str, Allowance] = {}
        self._touched: set[str] = set()  # sites to which something has happened since the last answer
        self._swept_ms = 0
        self._whole: tuple[State, Share] | None = None  # the source's standing at the last answer
        self._saved_ms = 0
        self._is_changed = False
        self._has_news = False

    # -- what happened

    def observe(self, summary: Summary) -> Answer:
        """Judge a summary; returns what changes."""
        now_ms = summary.at_ms
        # one that has begun anew goes on behind what the region has seen, else it would take the next for old
        self._event_number = max(self._event_number, summary.seen)
        while self._events and self._events[0].number <= summary.seen:
            self._events.popleft()
        if summary.full:
            self._sent.clear()
            self._swept_ms = 0
        self._touched |= self._active_sites()
        self._touched.update(row.site for row in summary.rows)
        if summary.listed is not None and summary.listed != self.reputation.listed:
            self.reputation.listed = summary.listed
            self._is_changed = self._has_news = True
        self.reputation.observe(now_ms, summary.rows)
        for row in summary.rows:
            attempts = row.delivered + row.deferred + row.bounced + row.excused
            self._is_changed |= bool(attempts or row.complaints)
            for fired in self.shaping.observe(now_ms, row.site, row.replies, row.delivered):
                self._fired(now_ms, fired)
            answers = Answers(attempts, row.deferred, row.timed, row.log2_us, row.refused, row.most)
            self._narrowed(now_ms, row.site, self.shaping.note_answers(now_ms, row.site, answers))
            score = self.reputation.score(row.site)
            changes = self.warmup.observe(
                now_ms, row.site, attempts=attempts, delivered=row.delivered, excused=row.excused, score=score
            )
            self._stage_changes(changes)
        self._advance(now_ms)
        return self._answer(now_ms)

    def _advance(self, now_ms: int) -> None:
        self.shaping.advance(now_ms)
        self._stage_changes(self.warmup.advance(now_ms, self.reputation.score))
        for transition in self.reputation.advance(now_ms, self.warmup.is_warming):
            self._transition(transition)

    def _fired(self, now_ms: int, fired: Fired) -> None:
        rule, order = fired.rule, fired.order
        self._event(
            now_ms,
            "alert" if rule.action == "alert" else "shaping",
            fired.site,
            {
                "rule": rule.name,
                "action": rule.action,
                "scope": rule.scope,
                "until_ms": order.until_ms,
                "reply": order.reply,
            },
        )
        if rule.action == "remove":
            self._transition(
                self.reputation.remove(
                    now_ms, fired.site, f"{rule.name}: {order.reply}", stay_ms=self._stay_ms(rule.duration)
                )
            )
        if rule.step_back:
            change = self.warmup.step_back(now_ms, fired.site, rule.name)
            self._stage_changes([change] if change is not None else [])

    def _narrowed(self, now_ms: int, site: str, change: Narrowed | None) -> None:
        if change is not None:
            fields = {
                "action": "adapt",
                "scope": "source",
                "connections": change.now,
                "before": change.before,
            }
            self._event(now_ms, "shaping", site, {**fields, "reason": change.reason})

    def _stay_ms(self, duration_s: float) -> int:
        """The rule's duration, but not longer than the configuration lets a source stay out."""
        return round(min(duration_s, self._config.reputation.removed_stay_max) * 1000)

    # -- events

    def _transition(self, transition: Transition | None) -> None:
        if transition is None:
            return
        self._event(
            transition.at_ms,
            "reputation",
            transition.site,
            {
                "before": str(transition.before),
                "state": str(transition.after),
                "score": transition.score,
                "reason": transition.reason,
            },
        )

    def _stage_changes(self, changes: list[StageChange]) -> None:
        for change in changes:
            self.reputation.look_at(change.site)
            self._event(
                change.at_ms,
                "alert" if change.kind == "stalled" else "warmup",
                change.site,
                {"change": change.kind, "stage": change.stage, "reason": change.reason},
            )

    def _event(self, at_ms: int, kind: str, site: str, fields: Mapping[str, Any]) -> None:
        self._event_number += 1
        self._touched.add(site)
        self._events.append(SourceEvent(self._event_number, at_ms, kind, site, fields))
        self._has_news = True

    # -- allowances

    def allowance(self, now_ms: int, site: str) -> Allowance:
        """What follows from everything that is known, at one site."""
        share = self.reputation.share(site)
        standing = self.reputation.standing(site)
        shape = self.shaping.shape(site)
        cap = None if site == EVERYWHERE else self.warmup.cap(now_ms, site)
        plan = self.warmup.plans.get(site)
        used = plan.attempts if plan is not None and plan.day == now_ms // DAY_MS else 0
        interval_us = share.interval_ms * 1000
        connections = shape.connections
        full = self._rules_of(site).max_connections
        if standing.state is State.PROBATION:
            # the trickle is one connection, the ramp opens more
            allowed = 1 if share.interval_ms else max(1, full * share.permille // 1000)
            connections = min(allowed, connections or full)
            connections = connections if connections < full else 0
        return Allowance(
            site=site,
            state=str(standing.state),
            score=standing.score,
            weight=share.permille,
            rate=max(1, share.permille * shape.rate // 1000),
            connections=connections,
            interval_us=max(interval_us, cap.interval_us if cap is not None else 0),
            daily_cap=cap.day if cap is not None else -1,
            daily_used=used,
            suspended_until_ms=shape.source_until_ms,
            netblock_until_ms=shape.netblock_until_ms,
            provider_until_ms=shape.provider_until_ms,
            reason=(standing.reason if standing.state is not State.ACTIVE else shape.reason)[:256],
            adapted=self.shaping.adapted(site),
            used_day=now_ms // DAY_MS if used else 0,
        )

    def _active_sites(self) -> set[str]:
        """Those whose allowance time alone may change."""
        return {EVERYWHERE, *self.shaping.sites, *self.shaping.narrow, *self.reputation.unsettled}

    def _sites_to_look_at(self, now_ms: int) -> tuple[set[str], bool]:
        """See the module docstring; and whether these are all."""
        touched, self._touched = self._touched | self._active_sites(), set()
        whole = self.reputation.whole.state, self.reputation.whole.share()
        is_over = not 0 <= now_ms - self._swept_ms < SWEEP_MS or now_ms // DAY_MS != self._swept_ms // DAY_MS
        if not is_over and whole == self._whole:
            return touched, False
        self._whole = whole
        self._swept_ms = now_ms
        return touched.union(self._sent, self.warmup.plans), True

    def _answer(self, now_ms: int) -> Answer:
        changed = []
        sites, are_all = self._sites_to_look_at(now_ms)
        for site in sorted(sites):
            allowance = self.allowance(now_ms, site)
            default = Allowance(site)
            if _is_same(self._sent.get(site, default), allowance):
                continue
            changed.append(allowance)
            if _is_same(default, allowance):
                self._sent.pop(site, None)
            else:
                self._sent[site] = allowance
        if are_all and self._table is not None and self.reputation.whole.state is State.ACTIVE:
            # what is known of a forgotten plan's site is what it began with; the region still has that, if what was
            # said last has nothing in it of the whole source's state
            known = self._active_sites() | self.warmup.plans.keys()
            self._sent = {site: sent for site, sent in self._sent.items() if site in known}
        return Answer(self._review_ms(now_ms), tuple(changed), tuple(self._events))

    def _review_ms(self, now_ms: int) -> int:
        times = [(now_ms // DAY_MS + 1) * DAY_MS] if self.warmup.plans else []
        for site in self._active_sites():
            times.append(self.reputation.review_ms(site))
            times.append(self.shaping.review_ms(site, now_ms))
        return min((time for time in times if time > now_ms), default=0)

    # -- operators

    def order(self, now_ms: int, name: str, site: str, argument: object = None) -> bool:
        """An operator's word about a site: `pause`, `resume` or `skip` (to stage `argument`) its warm-up, `cancel`
        the automation order of the rule `argument`. False if that changes nothing; ValueError if it makes no sense.
        """
        self._touched |= self._active_sites()
        self._touched.add(site)
        self._advance(now_ms)
        if name == "cancel":
            return self._cancel(now_ms, site, str(argument))
        if name not in ("pause", "resume", "skip"):
            raise ValueError(f"order {name!r}: allowed are pause, resume, skip and cancel")
        plan = self._plan_to_order(now_ms, site)
        if name == "pause":
            change = plan.pause(now_ms)
        elif name == "resume":
            change = plan.resume(now_ms)
        else:
            if not isinstance(argument, int):
                raise ValueError(f"stage {argument!r}: allowed is a number")
            change = plan.skip(now_ms, argument)
        self._stage_changes([change] if change is not None else [])
        return change is not None

    def _plan_to_order(self, now_ms: int, site: str) -> Plan:
        """The plan that an order is about: one that runs, or one that is begun for a provider that has a profile."""
        if self._table is None:
            raise ValueError(f"source {self.name} has no warm-up: `warmup` is not set in fleet.yaml")
        if site not in self.warmup.plans and site not in load_profiles(self._config.providers):
            known = ", ".join(sorted(self.warmup.plans)) or "none yet"
            raise ValueError(f"site {site!r}: allowed are providers and the sites met so far ({known})")
        plan = self.warmup.plan(now_ms, site)
        assert plan is not None
        return plan

    def _cancel(self, now_ms: int, site: str, name: str) -> bool:
        control = self.shaping.sites.get(site)
        order = control.orders.get(name) if control is not None else None
        if order is None or not self.shaping.cancel(site, name):
            return False
        fields = {"rule": name, "action": "cancel", "reason": "by an operator"}
        self._event(now_ms, "shaping", site, fields)
        if order.action == "remove":
            self.reputation.release(now_ms, site)
            self._advance(now_ms)
        return True

    # -- state

    def is_due_to_save(self, now_ms: int) -> bool:
        """Whether `to_state` must be written now."""
        return self._has_news or (self._is_changed and now_ms - self._saved_ms >= SAVE_MS)

    def saved(self, now_ms: int) -> None:
        self._saved_ms = now_ms
        self._has_news = False
        self._is_changed = False

    def to_state(self) -> dict[str, object]:
        return {
            "version": VERSION,
            "reputation": self.reputation.to_state(),
            "warmup": self.warmup.to_state(),
            "shaping": self.shaping.to_state(),
            "event_number": self._event_number,
            "events": [[e.number, e.at_ms, e.kind, e.site, dict(e.fields)] for e in self._events],
        }

    @classmethod
    def from_state(cls, config: FleetConfig, name: str, state: Mapping[str, Any]) -> "SourceOwner":
        """A state of the first release (it had no version) begins anew; of an unknown one raises ValueError."""
        owner = cls(config, name)
        if "version" not in state:
            return owner
        if state["version"] != VERSION:
            raise ValueError(f"state of source {name}: version {state['version']!r}; allowed is {VERSION}")
        owner.reputation = Reputation.from_state(config.reputation, state["reputation"])
        owner.warmup = Warmup.from_state(config.warmup, owner._table, state["warmup"])
        owner.shaping = Shaping.from_state(config.shaping, owner._rules_of, state["shaping"])
        owner._event_number = state["event_number"]
        owner._events.extend(SourceEvent(*row) for row in state["events"])
        return owner

    def snapshot(self, now_ms: int) -> dict[str, object]:
        """For status pages and the CLI."""
        standings = [self.reputation.whole, *self.reputation.sites.values()]
        return {
            "source": self.name,
            "standings": [
                {
                    "site": s.site,
                    "state": str(s.state),
                    "score": s.score,
                    "since_ms": s.since_ms,
                    "until_ms": s.review_ms() if s.state is State.REMOVED else 0,
                    "reason": s.reason,
                }
                for s in standings
            ],
            "warmup": [_plain(view) for view in self.warmup.views(now_ms)],
            "shaping": self.shaping.listing(),
            "rules": self._rules_in_force(),
        }

    def _rules_in_force(self) -> dict[str, dict[str, object]]:
        """The rules whose orders are in force, as they are written, by name."""
        found: dict[str, dict[str, object]] = {}
        for site, control in self.shaping.sites.items():
            for name in control.orders:
                rule = self._rules_of(site).rule(name)
                if rule is not None:
                    found[name] = rule.model_dump(mode="json")
        return found


def _plain(view: Any) -> dict[str, object]:
    return {name: getattr(view, name) for name in view.__slots__}


_DRIFTS = {"interval_us", "daily_used", "used_day", "score", "reason"}
_MATTERS = attrgetter(*(field.name for field in fields(Allowance) if field.name not in _DRIFTS))


def _is_same(sent: Allowance, now: Allowance) -> bool:
    """Whether nothing that matters has changed: the pace of a warm-up drifts all day, and scores flicker."""
    near = abs(sent.interval_us - now.interval_us) <= PACE_TOLERANCE * sent.interval_us
    return near and _MATTERS(sent) == _MATTERS(now)
