"""The catalogue holds together, its points are bounded, and Prometheus' own library reads what is rendered."""

import re
import runpy
from pathlib import Path

import pytest

from engine.metrics.bounding import Bounds, merged
from engine.metrics.catalogue import CATALOGUE, Kind, Metric, Point, label_names
from engine.metrics.prometheus import render
from tests.support.prometheus import Scrape

ROOT = Path(__file__).parents[3]
# https://opentelemetry.io/docs/specs/semconv/general/metrics/: names are dotted, lower case; units are UCUM
NAME = re.compile(r"[a-z]+(\.[a-z][a-z_]*)+")
UNITS = {"s", "By"}


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=lambda metric: metric.name)
def test_a_metric_is_named_and_described(metric: Metric) -> None:
    assert NAME.fullmatch(metric.name)
    assert metric.unit in UNITS or re.fullmatch(r"\{[a-z_]+\}", metric.unit)
    assert metric.text.endswith(".")
    assert len(set(label_names(metric))) == len(metric.labels) + 2
    assert re.fullmatch(r"[a-z_]+", metric.prometheus)
    assert metric.prometheus.endswith("_total") == (metric.kind is Kind.COUNTER)
    strange = {"domain", "host", "tenant", "campaign", "address", "recipient", "site"} & set(metric.labels)
    assert not strange, "others choose how many of these there are"


def test_no_two_metrics_have_one_name() -> None:
    names = [metric.prometheus for metric in CATALOGUE.values()]
    assert len(set(names)) == len(names)


def test_labels_beyond_the_bounds_are_one() -> None:
    bounds = Bounds({"google", "default"}, ["eu-1"])
    points = [
        Point("sendfleet.sessions.open", ("google", "eu-1"), 3),
        Point("sendfleet.sessions.open", ("google", "eu-2"), 4),
        Point("sendfleet.sessions.open", ("google", "eu-3"), 5),
        Point("sendfleet.sessions.open", ("gone", "eu-1"), 6),
        Point("sendfleet.suspensions", ("default", "all"), 1),
        Point("sendfleet.outcomes", ("marketing", "unknown", "expired"), 2),
    ]
    assert bounds.apply(points) == [
        Point("sendfleet.sessions.open", ("google", "eu-1"), 3),
        Point("sendfleet.sessions.open", ("google", "other"), 9),
        Point("sendfleet.sessions.open", ("other", "eu-1"), 6),
        Point("sendfleet.suspensions", ("default", "all"), 1),
        Point("sendfleet.outcomes", ("marketing", "unknown", "expired"), 2),
    ]


def test_many_are_one_as_the_metric_says() -> None:
    labels = ("google", "eu-1")
    points = [
        Point(name, labels, value)
        for name in ("sendfleet.sessions.open", "sendfleet.source.score", "sendfleet.warmup.held")
        for value in (7, 3, 5)
    ]
    assert [point.value for point in merged(points)] == [15, 3, 7]


@pytest.mark.parametrize(
    "point", [Point("sendfleet.nonsense", (), 1), Point("sendfleet.sessions.open", ("google",), 1)]
)
def test_what_is_not_in_the_catalogue_is_an_error(point: Point) -> None:
    with pytest.raises(ValueError, match="not in the catalogue"):
        merged([point])


def test_what_is_rendered_is_read_back() -> None:
    nasty = 'a "quoted" \\ and\nbroken'
    by_region = {
        "eu": [
            Point("sendfleet.messages.queued", (), 12),
            Point("sendfleet.loop.lag", (nasty,), 0.125),
            Point("sendfleet.tls.sessions", ("sts", "successful"), 1 << 60),
            Point("system.cpu.time", ("idle",), 1.5),
        ],
        "us": [Point("sendfleet.messages.queued", (), 0), Point("sendfleet.clock.offset", (), -3.25)],
    }
    text = render(by_region)
    found = Scrape(text)
    assert found.rows("sendfleet_messages_queued") == [({"region": "eu"}, 12), ({"region": "us"}, 0)]
    assert found.rows("sendfleet_loop_lag_seconds") == [({"region": "eu", "actor": nasty}, 0.125)]
    assert found.total("sendfleet_tls_sessions_total", policy="sts", result="successful") == 1 << 60
    assert found.total("system_cpu_time_seconds_total", cpu_mode="idle") == 1.5
    assert found.total("sendfleet_clock_offset_seconds", region="us") == -3.25
    helped = [line.split()[2] for line in text.splitlines() if line.startswith("# HELP")]
    assert len(helped) == len(set(helped)) == 5


def test_what_a_shard_has_counted_is_of_its_region() -> None:
    text = render({"eu-1": [Point("sendfleet.sessions.open", ("google", "a"), 7)]}, "eu")
    labels = {"region": "eu", "shard": "eu-1", "provider": "google", "source": "a"}
    assert Scrape(text).rows("sendfleet_sessions_open") == [(labels, 7)]


def test_nothing_is_an_empty_page() -> None:
    assert render({"eu": []}) == ""


def test_the_monitoring_page_has_every_metric() -> None:
    page = (ROOT / "docs" / "monitoring.md").read_text("utf-8")
    assert runpy.run_path(str(ROOT / "tools" / "write_monitoring_docs.py"))["write"](page) == page, (
        "run: python -m tools.write_monitoring_docs"
    )
