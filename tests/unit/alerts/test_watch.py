"""When an alert fires, and when it is over: every rule at both sides of its limit, and the times between."""

from typing import Any

import pytest
from pydantic import ValidationError

from engine.alerts.rules import RULES, entry_of
from engine.alerts.watch import Change, Watch
from engine.config.alerts import AlertsConfig
from engine.metrics.catalogue import CATALOGUE, Point
from engine.metrics.look import History

UP = Point("sendfleet.region.up", (), 1)
GIB = 1 << 30


class Watched:
    """A watch on one region, a minute by the hand of a clock."""

    def __init__(self, **alerts: Any) -> None:
        self.watch = Watch(AlertsConfig.model_validate(alerts))
        self.now_s = 1000.0

    def look(self, *points: Point, after_s: float = 10.0, up: bool = True) -> list[Change]:
        self.now_s += after_s
        shown = [UP, *points] if up else [Point("sendfleet.region.up", (), 0)]
        return self.watch.look("eu", shown, self.now_s, round(self.now_s * 1000))

    def names(self) -> list[tuple[str, str]]:
        return [(alert.name, alert.where) for alert in self.watch.firing()]


def waiting(ready: float, provider: str = "google", stream: str = "marketing") -> Point:
    return Point("sendfleet.messages.waiting", (stream, provider, "ready"), ready)


def memory(share: float) -> list[Point]:
    return [Point("system.memory.usage", (), share * GIB), Point("system.memory.limit", (), GIB)]


def test_an_alert_fires_after_a_time_and_is_over_after_a_time() -> None:
    it = Watched(memory={"after": "30s", "above": 0.9}, quiet="20s")
    assert it.look(*memory(0.95)) == []
    assert it.look(*memory(0.95)) == []
    assert it.look(*memory(0.95)) == []
    (change,) = it.look(*memory(0.97))
    assert change.is_firing
    assert (change.alert.name, change.alert.severity, change.alert.value) == ("memory", "critical", 0.97)
    assert "97%" in change.alert.text
    fired_ms = change.alert.since_ms
    assert it.look(*memory(0.99)) == []
    assert it.watch.firing()[0].value == 0.99
    assert it.watch.firing()[0].since_ms == fired_ms
    assert it.look(*memory(0.5)) == []
    assert it.look(*memory(0.5)) == []
    (change,) = it.look(*memory(0.5))
    assert not change.is_firing
    assert it.names() == []


def test_a_break_begins_the_time_anew() -> None:
    it = Watched(memory={"after": "30s"})
    for share in (0.95, 0.95, 0.95, 0.5, 0.95, 0.95, 0.95):
        assert it.look(*memory(share)) == []
    assert len(it.look(*memory(0.95))) == 1


def test_a_little_better_is_not_over() -> None:
    """Between 90 % of the limit and the limit an alert that fires goes on, and one that does not, does not begin."""
    it = Watched(memory={"after": "10s", "above": 0.9}, quiet="20s")
    it.look(*memory(0.95))
    assert len(it.look(*memory(0.95))) == 1
    for _ in range(10):
        assert it.look(*memory(0.85)) == []
    assert it.names() == [("memory", "")]
    it.look(*memory(0.5))
    it.look(*memory(0.85))  # the quiet is broken
    for _ in range(2):
        assert it.look(*memory(0.5)) == []
    assert len(it.look(*memory(0.5))) == 1
    for _ in range(5):
        assert it.look(*memory(0.85)) == []
    assert it.names() == []


def test_while_a_region_does_not_answer_nothing_else_changes() -> None:
    it = Watched(memory={"after": "10s"}, region={"after": "15s"}, quiet="20s")
    it.look(*memory(0.95))
    it.look(*memory(0.95))
    assert it.names() == [("memory", "")]
    assert it.look(up=False) == []
    assert it.look(up=False) == []
    (change,) = it.look(up=False)
    assert (change.alert.name, change.is_firing) == ("region", True)
    for _ in range(10):
        assert it.look(up=False) == []
    assert it.names() == [("memory", ""), ("region", "")]
    ended = [change for _ in range(4) for change in it.look(*memory(0.1))]
    assert {(change.alert.name, change.is_firing) for change in ended} == {
        ("memory", False),
        ("region", False),
    }


def test_what_is_not_there_any_more_is_over() -> None:
    it = Watched(reputation={"after": "1s"}, quiet="10s")
    gone = Point("sendfleet.source.sites", ("google", "eu-1", "removed"), 1)
    it.look(gone)
    (change,) = it.look(gone)
    assert (change.alert.where, change.alert.text) == ("google", "out of the rotation at google: eu-1")
    it.look()
    (change,) = it.look()
    assert not change.is_firing


def test_a_rule_that_is_not_enabled_is_not_looked_for() -> None:
    it = Watched(memory={"enabled": False, "after": "1s"})
    for _ in range(5):
        assert it.look(*memory(1.0)) == []


def test_severity_and_limit_are_those_of_the_configuration() -> None:
    it = Watched(queue_depth={"above": 10, "after": "1s", "severity": "critical"})
    it.look(waiting(6), waiting(5, "yahoo"))
    (change,) = it.look(waiting(6), waiting(5, "yahoo"))
    assert (change.alert.severity, change.alert.limit, change.alert.value) == ("critical", 10, 11)


def many(metric: str, rows: dict[tuple[str, ...], float]) -> list[Point]:
    return [Point(metric, labels, value) for labels, value in rows.items()]


def delivered(count: float, provider: str = "google") -> Point:
    return Point("sendfleet.outcomes", ("marketing", provider, "delivered"), count)


QUEUED = Point("sendfleet.messages.queued", (), 9)

# rule -> (figures of looks 10 s apart that are in order, those that are not, a word of the text)
CASES: dict[str, tuple[list[list[Point]], list[list[Point]], str]] = {
    "queue_depth": ([[waiting(400_000)]], [[waiting(500_000)]], "500000 messages"),
    "stall": (
        [[QUEUED, waiting(9), delivered(n)] for n in range(10)],
        [[QUEUED, waiting(9), delivered(5), delivered(n, "yahoo")] for n in range(10)],
        "nothing is delivered to google: 9 messages are due",
    ),
    "cpu": (
        [[Point("process.cpu.time", ("region",), 8.0 * n)] for n in range(10)],
        [[Point("process.cpu.time", ("pool:google.0",), 9.5 * n)] for n in range(10)],
        "pool:google.0 uses 95%",
    ),
    "memory": ([memory(0.8)], [memory(0.9)], "memory"),
    "disk": (
        [
            [
                Point("sendfleet.spool.index.limit", (), 100),
                Point("sendfleet.spool.index.usage", (), 70),
                Point("sendfleet.spool.disk.free", (), 10 * GIB),
                Point("sendfleet.spool.disk.reserve", (), GIB),
            ]
        ],
        [
            [
                Point("sendfleet.spool.index.limit", (), 100),
                Point("sendfleet.spool.index.usage", (), 70),
                Point("sendfleet.spool.disk.free", (), 4 * GIB),
                Point("sendfleet.spool.disk.reserve", (), GIB),
            ]
        ],
        "4.00 GiB are free",
    ),
    "connections": (
        [
            [
                Point("sendfleet.sessions.open", ("google", "eu-1"), 20),
                Point("sendfleet.sessions.limit", ("google", "eu-1"), 20),
                Point("sendfleet.sessions.refused", ("google", "eu-1"), 7),
            ]
        ],
        [
            [
                Point("sendfleet.sessions.open", ("google", "eu-1"), 20),
                Point("sendfleet.sessions.limit", ("google", "eu-1"), 20),
                Point("sendfleet.sessions.refused", ("google", "eu-1"), n),
            ]
            for n in range(10)
        ],
        "from eu-1",
    ),
    "files": (
        [
            many("process.unix.file_descriptor.count", {("region",): 700})
            + many("sendfleet.file_descriptor.limit", {("region",): 1024})
        ],
        [
            many("process.unix.file_descriptor.count", {("region",): 10, ("gateway",): 900})
            + many("sendfleet.file_descriptor.limit", {("region",): 1024, ("gateway",): 1024})
        ],
        "gateway has 88%",
    ),
    "lag": (
        [many("sendfleet.loop.lag", {("region",): 0.2})],
        [many("sendfleet.loop.lag", {("region",): 2.5})],
        "2.5 s late",
    ),
    "tls": (
        [
            many(
                "sendfleet.tls.sessions",
                {("sts", "successful"): 1000.0 * n, ("sts", "certificate-expired"): 30.0 * n},
            )
            for n in range(10)
        ],
        [
            many(
                "sendfleet.tls.sessions",
                {("sts", "successful"): 100.0 * n, ("tlsa", "certificate-expired"): 30.0 * n},
            )
            for n in range(10)
        ],
        "certificate-expired",
    ),
    "reputation": (
        [many("sendfleet.source.sites", {("google", "eu-1", "active"): 1})],
        [many("sendfleet.source.sites", {("all", f"eu-{n}", "removed"): 1 for n in range(7)})],
        "everywhere: eu-0, eu-1, eu-2, eu-3, eu-4 and 2 more",
    ),
    "floor": ([[]], [many("sendfleet.streams.unserved", {("google", "held"): 2})], "2 held"),
    "warmup": (
        [many("sendfleet.warmup.held", {("google", "eu-1"): 1})],
        [many("sendfleet.warmup.held", {("google", "eu-1"): 3})],
        "for 3 days: eu-1",
    ),
    "region": (
        [[Point("sendfleet.lease.held", (), 1)]],
        [[Point("sendfleet.lease.held", (), 0)]],
        "no lease",
    ),
    "replication": (
        [many("sendfleet.replication.covered", {(): 1})],
        [many("sendfleet.replication.covered", {(): 0})],
        "copies",
    ),
    "degraded": (
        [many("sendfleet.failover.degraded", {(): 5})],
        [many("sendfleet.failover.degraded", {(): 5 + n}) for n in (0, 0, 0, 3)],
        "3 receipts were given without a copy",
    ),
    "clock": (
        [many("sendfleet.clock.offset", {(): -4.0})],
        [many("sendfleet.clock.offset", {(): -60.0})],
        "60 s behind",
    ),
}


def test_a_region_that_waits_to_go_on_without_copies_is_an_alert() -> None:
    it = Watched(region={"after": "15s"})
    for _ in range(10):
        it.look(Point("sendfleet.region.waiting", (), 1))
    assert [(alert.name, alert.text) for alert in it.watch.firing()] == [
        ("region", "the region sends nothing: not every region may go on without copies")
    ]


@pytest.mark.parametrize("name", CASES)
def test_a_rule_at_both_sides_of_its_limit(name: str) -> None:
    good, bad, word = CASES[name]
    for looks, fires in ((good, False), (bad, True)):
        it = Watched(**{name: {"after": "15s"}})
        for number in range(10):
            it.look(*looks[min(number, len(looks) - 1)])
        assert [alert.name for alert in it.watch.firing()] == ([name] if fires else [])
    assert word in it.watch.firing()[0].text


def test_every_rule_has_a_case_a_setting_and_metrics_that_exist() -> None:
    assert {rule.name for rule in RULES} == set(CASES)
    settings = set(AlertsConfig.model_fields) - {"enabled", "interval", "quiet"}
    assert {rule.name for rule in RULES} == settings
    for rule in RULES:
        assert set(rule.metrics) <= set(CATALOGUE)
        assert entry_of(AlertsConfig(), rule).enabled


def test_mail_that_is_put_off_again_and_again_stalls() -> None:
    it = Watched(stall={"after": "15s", "deferrals": 10})
    for number in range(6):
        put_off = Point("sendfleet.outcomes", ("marketing", "google", "deferred"), 12.0 * number)
        few = Point("sendfleet.outcomes", ("marketing", "yahoo", "deferred"), float(number))
        it.look(QUEUED, put_off, few)
    assert it.names() == [("stall", "google")]
    assert it.look(QUEUED, delivered(1)) == []
    changes = [it.look(QUEUED, delivered(1 + number)) for number in range(8)]
    assert [change.is_firing for found in changes for change in found] == [False]


def test_without_mail_there_is_no_stall() -> None:
    it = Watched(stall={"after": "15s"})
    for number in range(6):
        scheduled = Point("sendfleet.messages.waiting", ("marketing", "google", "scheduled"), 50)
        it.look(QUEUED, scheduled, waiting(0, "yahoo"), delivered(5))
        assert it.names() == [], number


def test_a_stall_fires_its_time_after_the_last_delivery() -> None:
    it = Watched(stall={"after": "60s"}, quiet="20s")
    for number in range(10):
        assert it.look(QUEUED, waiting(9), delivered(number)) == []
    for _ in range(6):
        assert it.look(QUEUED, waiting(9), delivered(9)) == []
    (change,) = it.look(QUEUED, waiting(9), delivered(9))
    assert change.is_firing
    # one delivery in a while is not nothing
    slow = [it.look(QUEUED, waiting(9), delivered(10 + number // 4)) for number in range(8)]
    assert [change.is_firing for found in slow for change in found] == [False]


def test_mail_that_is_delivered_does_not_stall_however_short_the_time_is() -> None:
    it = Watched(stall={"after": "5s"}, tls={"after": "1s", "window": "5s", "at_least": 20})
    for number in range(6):
        failed = Point("sendfleet.tls.sessions", ("sts", "certificate-expired"), 30.0 * number)
        it.look(QUEUED, waiting(9), delivered(number), failed)
    assert it.names() == [("tls", "")]


def test_mail_without_a_route_stalls_with_all_the_rest() -> None:
    """The DNS of some domain always fails: that is no stall while other mail leaves."""
    it = Watched(stall={"after": "15s"})
    for number in range(10):
        put_off = Point("sendfleet.outcomes", ("marketing", "unknown", "deferred"), 50.0 * number)
        it.look(QUEUED, put_off, waiting(3, "unknown"), waiting(9), delivered(number))
        assert it.names() == []
    for _ in range(3):
        it.look(QUEUED, waiting(3, "unknown"), delivered(9))
    assert it.names() == [("stall", "unknown")]


def test_of_earlier_looks_only_what_rules_look_back_at_is_kept() -> None:
    history = History(600)
    refused = {("google", f"eu-{n}"): 5.0 for n in range(50)}
    for number in range(10):
        history.look([UP, delivered(number), *many("sendfleet.sessions.refused", refused)], number * 10.0)
    *earlier, (_, last) = history._looks
    assert {len(counters) for _, counters in earlier} == {1}
    assert len(last) == 51
    look = history.look([UP, delivered(12), *many("sendfleet.sessions.refused", refused)], 100.0)
    assert dict(look.increases("sendfleet.outcomes", 55.0)) == {("marketing", "google", "delivered"): 7.0}
    assert {value for _, value in look.increases("sendfleet.sessions.refused")} == {0.0}


def test_tls_needs_some_failures_beside_a_share() -> None:
    it = Watched(tls={"after": "10s", "at_least": 20})
    for number in range(6):
        it.look(
            *many("sendfleet.tls.sessions", {("no-policy-found", "starttls-not-supported"): 3.0 * number})
        )
    assert it.names() == []


def test_a_window_forgets_what_was_before_it() -> None:
    it = Watched(tls={"after": "10s", "at_least": 20, "window": "40s"}, quiet="10s")
    failures = [0, 25, 50, 75, 75, 75, 75, 75, 75, 75]
    seen = []
    for count in failures:
        changes = it.look(*many("sendfleet.tls.sessions", {("sts", "sts-webpki-invalid"): float(count)}))
        seen += [change.is_firing for change in changes]
    assert seen == [True, False]


def test_a_counter_that_begins_anew_has_risen_by_what_it_says() -> None:
    history = History(600)
    rises = []
    for value in (100.0, 130.0, 7.0, 9.0):
        look = history.look([UP, delivered(value)], len(rises) * 10.0)
        rises.append([risen for _, risen in look.increases("sendfleet.outcomes")])
    assert rises == [[], [30.0], [7.0], [2.0]]
    look = history.look([UP, delivered(10.0), delivered(4.0, "new")], 40.0)
    assert dict(look.increases("sendfleet.outcomes", 100.0)) == {
        ("marketing", "google", "delivered"): 40.0,
        ("marketing", "new", "delivered"): 4.0,
    }


@pytest.mark.parametrize(
    ("alerts", "said"),
    [
        ({"interval": "500ms"}, "at least 1s"),
        ({"cpu": {"above": 1.5}}, "less than or equal to 1"),
        ({"tls": {"window": "10h"}}, "at least a 1000th"),
        ({"stall": {"after": "10h"}}, "at least a 1000th"),
        ({"stall": {"severity": "mild"}}, "warning"),
        ({"stall": {"above": 1}}, "extra"),
        ({"stal": {}}, "extra"),
    ],
)
def test_a_configuration_that_is_refused(alerts: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        AlertsConfig.model_validate(alerts)
