"""The shaping of one source: replies in, what they order out, at every site.

Orders about the source itself are enforced by its own allowances; those about its netblock or the whole provider are
told to the region, which applies them to the other sources too. The windows of connections (windows.py) go their own
way: what holds is the least. Pure: time is an argument.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from engine.config.shaping import AutomationRule, ShapingConfig
from engine.shaping.control import FULL, Order, SiteControl
from engine.shaping.rules import GENERIC_BLOCK, RuleSet
from engine.shaping.windows import Answers, ConnectionWindow, Narrowed

VERSION = 1
MAX_WINDOWS = 5_000  # the longest unused are forgotten, full ones first
FORGET_MS = 3_600_000  # so are full ones that nothing was sent to for so long


@dataclass(frozen=True, slots=True)
class Fired:
    """An order that has just been given at a site, and its rule."""

    site: str
    rule: AutomationRule
    order: Order


@dataclass(frozen=True, slots=True)
class Shape:
    """What shaping allows at a site. Times are unix milliseconds, 0: not suspended. `rate` is permille."""

    source_until_ms: int = 0
    netblock_until_ms: int = 0
    provider_until_ms: int = 0
    rate: int = FULL
    connections: int = 0  # 0: the profile's number
    reason: str = ""


UNSHAPED = Shape()


class Shaping:
    """See the module docstring. `rules_of` gives the rules of a site's provider."""

    def __init__(self, config: ShapingConfig, rules_of: Callable[[str], RuleSet]) -> None:
        self._config = config
        self._rules_of = rules_of
        self.sites: dict[str, SiteControl] = {}
        self.windows: dict[str, ConnectionWindow] = {}  # the longest unused first
        self.narrow: set[str] = set()  # sites whose window is not full

    def observe(
        self, now_ms: int, site: str, replies: Iterable[tuple[str, int]], delivered: int
    ) -> list[Fired]:
        """Take in what a site answered since the last time; returns the orders that follow.

        `replies`: those that a rule matches, or that block the source although no rule does.
        """
        rules = self._rules_of(site)
        control = self.sites.get(site)
        if control is not None:
            control.advance(now_ms, delivered, rules)
        fired = []
        for reply, count in replies:
            rule = rules.match(reply) or GENERIC_BLOCK
            if control is None:
                control = self.sites[site] = SiteControl(self._config)
            order = control.hit(now_ms, rule, reply, count)
            if order is not None:
                fired.append(Fired(site, rule, order))
        if control is not None and control.is_idle:
            del self.sites[site]
        return fired

    def advance(self, now_ms: int) -> None:
        """Time has passed: orders end, recoveries go on."""
        for site, control in list(self.sites.items()):
            control.advance(now_ms, 0, self._rules_of(site))
            if control.is_idle:
                del self.sites[site]
        for site in list(self.narrow):
            window = self.windows[site]
            window.advance(now_ms, self._rules_of(site).max_connections)
            if not window.window:
                self.narrow.discard(site)
        while self.windows:
            oldest = next(iter(self.windows))
            if oldest in self.narrow or now_ms < self.windows[oldest].used_ms + FORGET_MS:
                break
            del self.windows[oldest]

    # -- connections

    def note_answers(self, now_ms: int, site: str, answers: Answers) -> Narrowed | None:
        """How a site answered since the last time; says so if it gets fewer connections from now on."""
        rules = self._rules_of(site)
        if not rules.is_adaptive or rules.max_connections <= 1:
            if self.windows.pop(site, None) is not None:  # turned off since
                self.narrow.discard(site)
            return None
        window = self.windows.pop(site, None)
        if window is None:
            if not (answers.timed or answers.refused):
                return None
            window = ConnectionWindow(self._config.adaptive)
            self._make_room()
        self.windows[site] = window
        narrowed = window.observe(now_ms, answers, rules.max_connections)
        if window.window:
            self.narrow.add(site)
        else:
            self.narrow.discard(site)
        return narrowed

    def _make_room(self) -> None:
        if len(self.windows) < MAX_WINDOWS:
            return
        full = (site for site in self.windows if site not in self.narrow)
        oldest = next(full, None) or next(iter(self.windows))
        del self.windows[oldest]
        self.narrow.discard(oldest)

    def adapted(self, site: str) -> int:
        """Connections that the site bears now, 0 for the profile's number."""
        if site not in self.narrow:
            return 0
        full = self._rules_of(site).max_connections
        allowed = self.windows[site].allowed(full)
        return allowed if allowed < full else 0

    def shape(self, site: str) -> Shape:
        control = self.sites.get(site)
        if control is None:
            return UNSHAPED
        full = self._rules_of(site).max_connections
        allowed = control.allowed_connections(full)
        latest = max(control.orders.values(), key=lambda order: order.since_ms, default=None)
        return Shape(
            source_until_ms=control.suspended_until_ms("source"),
            netblock_until_ms=control.suspended_until_ms("netblock"),
            provider_until_ms=control.suspended_until_ms("provider"),
            rate=control.rate,
            connections=allowed if allowed < full else 0,
            reason="" if latest is None else f"{latest.rule}: {latest.reply}",
        )

    def review_ms(self, site: str, now_ms: int) -> int:
        """The next time at which something here changes without traffic, 0 if there is none."""
        control = self.sites.get(site)
        times = [self.windows[site].review_ms()] if site in self.narrow else []
        if control is None:
            return min((time for time in times if time > now_ms), default=0)
        times += [order.until_ms for order in control.orders.values()]
        if control.recovery is not None and control.recovery.connections == 0:
            times.append(control.recovery.resume_ms)
        return min((time for time in times if time > now_ms), default=0)

    def cancel(self, site: str, rule: str) -> bool:
        control = self.sites.get(site)
        return control is not None and control.cancel(rule)

    def listing(self) -> list[dict[str, object]]:
        """What is in force, why, until when: for `sendfleet shaping list`."""
        rows: list[dict[str, object]] = []
        for site, control in self.sites.items():
            full = self._rules_of(site).max_connections
            for order in control.orders.values():
                rows.append(
                    {
                        "site": site,
                        "rule": order.rule,
                        "action": order.action,
                        "scope": order.scope,
                        "since_ms": order.since_ms,
                        "until_ms": order.until_ms,
                        "reply": order.reply,
                        "rate_permille": control.rate,
                        "connections": control.allowed_connections(full),
                    }
                )
            if not control.orders and (control.rate < FULL or control.connections < FULL):
                rows.append(
                    {
                        "site": site,
                        "rule": "",
                        "action": "increase",
                        "scope": "source",
                        "since_ms": control.raised_ms,
                        "until_ms": 0,
                        "reply": "",
                        "rate_permille": control.rate,
                        "connections": control.allowed_connections(full),
                    }
                )
        rows += (self._listed(site) for site in sorted(self.narrow))
        return rows

    def _listed(self, site: str) -> dict[str, object]:
        window = self.windows[site]
        control = self.sites.get(site)
        return {
            "site": site,
            "rule": "",
            "action": "adapt",
            "scope": "source",
            "since_ms": window.changed_ms,
            "until_ms": 0,
            "reply": window.reason,
            "rate_permille": FULL if control is None else control.rate,
            "connections": window.allowed(self._rules_of(site).max_connections),
        }

    def to_state(self) -> dict[str, object]:
        return {
            "version": VERSION,
            "sites": {site: control.to_state() for site, control in self.sites.items()},
            # full ones are many, and soon learnt anew
            "windows": {site: self.windows[site].to_state() for site in sorted(self.narrow)},
        }

    @classmethod
    def from_state(
        cls, config: ShapingConfig, rules_of: Callable[[str], RuleSet], state: Mapping[str, Any]
    ) -> "Shaping":
        """Raises ValueError for a state of a version that this code does not know."""
        if state.get("version") != VERSION:
            raise ValueError(f"shaping state: version {state.get('version')!r}; allowed is {VERSION}")
        shaping = cls(config, rules_of)
        shaping.sites = {site: SiteControl.from_state(config, row) for site, row in state["sites"].items()}
        shaping.windows = {
            site: ConnectionWindow.from_state(config.adaptive, row)
            for site, row in state.get("windows", {}).items()
            if rules_of(site).is_adaptive
        }
        shaping.narrow = {site for site, window in shaping.windows.items() if window.window}
        return shaping
