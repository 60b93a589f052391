"""From findings to alerts: one fires when its condition has held for a time, and is over when it has not for a time.

Per alert (rule, region, where):

    in order --bad--> pending --bad for `after`--> firing --good for `quiet`--> in order (resolved)
       ^-----not bad-----'                            ^--not good--'

While a region does not answer, nothing is known of it: only the rule `region` looks, its other alerts stay what they
are. Pure: time is an argument. What is remembered ends with the process: an alert that still holds fires again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.alerts.rules import RULES, Found, Rule, entry_of
from engine.config.alerts import AlertsConfig
from engine.metrics.catalogue import Point
from engine.metrics.look import History, Look

REGION = "region"


@dataclass(frozen=True, slots=True)
class Alert:
    """`where` is a provider, or a part of the region; "" is the region itself. `since_ms`: unix milliseconds of when it
    fired."""

    name: str
    region: str
    where: str
    severity: str
    value: float
    limit: float
    text: str
    since_ms: int

    def fields(self) -> dict[str, object]:
        """As an event has them, and `sendfleet alerts --json`."""
        return {
            "alert": self.name,
            "region": self.region,
            "where": self.where,
            "severity": self.severity,
            "value": round(self.value, 4),
            "limit": self.limit,
            "since_ms": self.since_ms,
            "reason": self.text,
        }


@dataclass(frozen=True, slots=True)
class Change:
    """An alert has begun, or is over."""

    alert: Alert
    is_firing: bool


@dataclass(slots=True)
class _State:
    bad_since_s: float | None = None
    good_since_s: float | None = None
    alert: Alert | None = None


class Watch:
    """See the module docstring. Times: monotonic seconds, and unix milliseconds for people."""

    def __init__(self, config: AlertsConfig) -> None:
        self._config = config
        self._rules = [rule for rule in RULES if entry_of(config, rule).enabled]
        self._histories: dict[str, History] = {}
        self._states: dict[tuple[str, str, str], _State] = {}

    def look(self, region: str, points: Sequence[Point], now_s: float, now_ms: int) -> list[Change]:
        """What the figures of a region change."""
        history = self._histories.get(region)
        if history is None:
            history = self._histories[region] = History(self._config.looked_back)
        look = history.look(points, now_s)
        answers = look.value("sendfleet.region.up") > 0
        changes: list[Change] = []
        for rule in self._rules:
            if answers or rule.name == REGION:
                changes += self._apply(rule, region, look, now_s, now_ms)
        return changes

    def _apply(self, rule: Rule, region: str, look: Look, now_s: float, now_ms: int) -> Iterator[Change]:
        found = {one.where: one for one in rule.find(look, entry_of(self._config, rule))}
        known = [where for name, at, where in self._states if (name, at) == (rule.name, region)]
        for where in sorted({*found, *known}):
            change = self._step(rule, region, where, found.get(where), now_s, now_ms)
            if change is not None:
                yield change

    def _step(
        self, rule: Rule, region: str, where: str, found: Found | None, now_s: float, now_ms: int
    ) -> Change | None:
        """`found` None: there is nothing any more that could be bad."""
        key = rule.name, region, where
        entry = entry_of(self._config, rule)
        state = self._states.setdefault(key, _State())
        if state.alert is None:
            if found is None or not found.is_bad:
                del self._states[key]
                return None
            if state.bad_since_s is None:
                state.bad_since_s = now_s
            if now_s - state.bad_since_s < entry.after:
                return None
            state.alert = _alert(rule, region, found, entry.severity, now_ms)
            return Change(state.alert, is_firing=True)
        if found is not None and not found.is_good:
            state.good_since_s = None
            if found.is_bad:
                state.alert = _alert(rule, region, found, entry.severity, state.alert.since_ms)
            return None
        if state.good_since_s is None:
            state.good_since_s = now_s
        if now_s - state.good_since_s < self._config.quiet:
            return None
        del self._states[key]
        return Change(state.alert, is_firing=False)

    def firing(self) -> list[Alert]:
        """The worst first, then the oldest."""
        alerts = [state.alert for state in self._states.values() if state.alert is not None]
        return sorted(alerts, key=lambda a: (a.severity != "critical", a.since_ms, a.name, a.region, a.where))


def _alert(rule: Rule, region: str, found: Found, severity: str, since_ms: int) -> Alert:
    return Alert(rule.name, region, found.where, severity, found.value, found.limit, found.text, since_ms)
