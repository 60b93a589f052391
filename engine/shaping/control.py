"""What the replies of one site have changed for one source: orders in force, rate, connections, recovery.

Multiplicative decrease: a rule of action `slow` multiplies, at most once per period of its threshold, so that the
answers to what was already under way count once. Additive increase: a fixed share of the full rate at a time, only
while mail is delivered and no order holds. After a suspension sending begins at a reduced rate, never at the full one.

Recovery (Google, support.google.com/mail/answer/81126): nothing for the duration of the rule, then one connection;
each step that delivers opens one more; the reply again means the pause again. Pure: time is an argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from engine.config.shaping import Action, AutomationRule, RuleScope, ShapingConfig
from engine.shaping.rules import RuleSet

FULL = 1000
MAX_HITS = 64


@dataclass(frozen=True, slots=True)
class Order:
    """A rule's action in force: why, since when, until when. A `recover` order ends with its recovery."""

    rule: str
    action: Action
    scope: RuleScope
    since_ms: int
    until_ms: int
    reply: str


@dataclass(slots=True)
class Recovery:
    """After a `recover` order. `connections` 0: still stopped."""

    rule: str
    resume_ms: int
    connections: int = 0
    since_ms: int = 0
    delivered: int = 0


class SiteControl:
    """See the module docstring."""

    __slots__ = ("_config", "_hits", "connections", "delivered", "orders", "raised_ms", "rate", "recovery")

    def __init__(self, config: ShapingConfig) -> None:
        self._config = config
        self._hits: dict[str, list[tuple[int, int]]] = {}
        self.orders: dict[str, Order] = {}
        self.rate = FULL  # permille of the full rate
        self.connections = FULL  # permille of the full number
        self.raised_ms = 0  # when rate or connections changed last
        self.delivered = 0  # since then
        self.recovery: Recovery | None = None

    @property
    def is_idle(self) -> bool:
        """Nothing here that must be remembered."""
        return not (self.orders or self.recovery or self._hits) and self.rate == self.connections == FULL

    # -- replies

    def hit(self, now_ms: int, rule: AutomationRule, reply: str, count: int) -> Order | None:
        """Count replies; returns the order that they set off, if they do."""
        period_ms = round(rule.threshold.period_s * 1000)
        hits = [hit for hit in self._hits.get(rule.name, []) if hit[0] > now_ms - period_ms]
        is_near = hits and now_ms < hits[-1][0] + period_ms // MAX_HITS
        if is_near and rule.threshold.count > MAX_HITS:
            hits[-1] = (
                hits[-1][0],
                hits[-1][1] + count,
            )  # more are counted than are kept: by parts of the period
        else:
            hits.append((now_ms, count))
        self._hits[rule.name] = hits[-MAX_HITS:]
        if sum(number for _, number in hits) < rule.threshold.count or not self._may_fire(now_ms, rule):
            return None
        del self._hits[rule.name]
        order = Order(
            rule.name, rule.action, rule.scope, now_ms, now_ms + round(rule.duration * 1000), reply[:256]
        )
        self.orders[rule.name] = order
        self._apply(now_ms, rule, order)
        return order

    def _may_fire(self, now_ms: int, rule: AutomationRule) -> bool:
        """Late answers to what was under way set nothing off again."""
        current = self.orders.get(rule.name)
        if current is None:
            return True
        if rule.action == "slow":
            return now_ms >= current.since_ms + rule.threshold.period_s * 1000
        if rule.action == "recover":
            return self.recovery is None or self.recovery.connections > 0
        return now_ms >= current.until_ms

    def _apply(self, now_ms: int, rule: AutomationRule, order: Order) -> None:
        floor = round(self._config.floor * FULL)
        if rule.action == "slow":
            self.rate = max(floor, round(self.rate * rule.rate))
            self.connections = max(floor, round(self.connections * rule.connections))
        elif rule.action == "suspend":
            self.rate = max(floor, min(self.rate, round(self._config.restart * FULL)))
        elif rule.action == "recover":
            self.recovery = Recovery(rule.name, order.until_ms)
        else:
            return
        self.raised_ms = now_ms
        self.delivered = 0

    # -- time

    def advance(self, now_ms: int, delivered: int, rules: RuleSet) -> None:
        """Time has passed and so many messages were delivered in it."""
        self._begin_what_lies_ahead(now_ms)
        self.delivered += delivered
        self._advance_recovery(now_ms, delivered, rules)
        recovering = self.recovery.rule if self.recovery is not None else ""
        ended = [n for n, o in self.orders.items() if o.until_ms <= now_ms and n != recovering]
        for name in ended:
            order = self.orders.pop(name)
            if order.action in ("suspend", "slow"):
                self.raised_ms = now_ms
                self.delivered = 0
        self._forget_hits(now_ms, rules)
        if self.rate == self.connections == FULL:
            return
        held = any(order.action in ("suspend", "slow") for order in self.orders.values())
        due = now_ms >= self.raised_ms + self._config.increase_every * 1000
        if not held and due and self.delivered:
            step = round(self._config.increase * FULL)
            self.rate = min(FULL, self.rate + step)
            self.connections = min(FULL, self.connections + step)
            self.raised_ms = now_ms
            self.delivered = 0

    def _begin_what_lies_ahead(self, now_ms: int) -> None:
        """If the clock was set back, what was ordered later than now is as if it had been ordered now."""
        self.raised_ms = min(self.raised_ms, now_ms)
        for name, order in self.orders.items():
            if order.since_ms > now_ms:
                until_ms = now_ms + order.until_ms - order.since_ms
                self.orders[name] = replace(order, since_ms=now_ms, until_ms=until_ms)
        self._hits = {
            name: [(min(at_ms, now_ms), count) for at_ms, count in hits] for name, hits in self._hits.items()
        }
        recovery = self.recovery
        if recovery is not None:
            recovery.since_ms = min(recovery.since_ms, now_ms)
            ordered = self.orders.get(recovery.rule)
            if ordered is not None:
                recovery.resume_ms = min(recovery.resume_ms, ordered.until_ms)

    def _forget_hits(self, now_ms: int, rules: RuleSet) -> None:
        for name in list(self._hits):
            rule = rules.rule(name)
            if rule is None or self._hits[name][-1][0] <= now_ms - rule.threshold.period_s * 1000:
                del self._hits[name]

    def _advance_recovery(self, now_ms: int, delivered: int, rules: RuleSet) -> None:
        recovery = self.recovery
        if recovery is None or now_ms < recovery.resume_ms:
            return
        if recovery.connections == 0:
            recovery.connections = 1
            recovery.since_ms = now_ms
            return
        recovery.delivered += delivered
        waited = now_ms >= recovery.since_ms + self._config.recovery_step * 1000
        if not waited or recovery.delivered < self._config.recovery_delivered:
            return
        recovery.connections += 1
        recovery.since_ms = now_ms
        recovery.delivered = 0
        if recovery.connections >= rules.max_connections:
            self.orders.pop(recovery.rule, None)
            self.recovery = None

    # -- looking in, and operators

    def suspended_until_ms(self, scope: RuleScope) -> int:
        """Until when nothing may be sent, by orders of this scope; 0 if nothing says so."""
        times = [o.until_ms for o in self.orders.values() if o.action == "suspend" and o.scope == scope]
        if self.recovery is not None and self.recovery.connections == 0:
            order = self.orders.get(self.recovery.rule)
            if order is not None and order.scope == scope:
                times.append(self.recovery.resume_ms)
        return max(times, default=0)

    def allowed_connections(self, full: int) -> int:
        """Connections at once, of `full`."""
        allowed = max(1, full * self.connections // FULL)
        if self.recovery is not None:
            allowed = min(allowed, max(1, self.recovery.connections))
        return allowed

    def cancel(self, rule: str) -> bool:
        """End an order now, by an operator's word; returns whether there was one. The full rate is given back."""
        order = self.orders.pop(rule, None)
        if self.recovery is not None and self.recovery.rule == rule:
            self.recovery = None
        self._hits.pop(rule, None)
        if order is not None and not self.orders:
            self.rate = self.connections = FULL
        return order is not None

    def to_state(self) -> list[object]:
        recovery = self.recovery
        return [
            [[o.rule, o.action, o.scope, o.since_ms, o.until_ms, o.reply] for o in self.orders.values()],
            [[name, [list(hit) for hit in hits]] for name, hits in self._hits.items()],
            [self.rate, self.connections, self.raised_ms, self.delivered],
            None
            if recovery is None
            else [
                recovery.rule,
                recovery.resume_ms,
                recovery.connections,
                recovery.since_ms,
                recovery.delivered,
            ],
        ]

    @classmethod
    def from_state(cls, config: ShapingConfig, state: Sequence[Any]) -> "SiteControl":
        control = cls(config)
        orders, hits, adjustment, recovery = state
        control.orders = {row[0]: Order(*row) for row in orders}
        control._hits = {name: [(at_ms, count) for at_ms, count in rows] for name, rows in hits}
        control.rate, control.connections, control.raised_ms, control.delivered = adjustment
        control.recovery = None if recovery is None else Recovery(*recovery)
        return control
