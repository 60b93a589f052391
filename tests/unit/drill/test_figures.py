"""Gaps, losses, duplicates and verdicts, from arrivals that the test writes."""

import json
import random
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.config.schema import FleetConfig
from engine.drill.figures import Arrival, Submission, Watch, binned, figures_of, longest_gap
from engine.drill.record import Check, DrillRecord, judge, read_records, write_record
from engine.drill.report import html, rows, timeline
from engine.drill.scenarios import SCENARIOS, caveat, refusal
from tests.support.fleets import fleet


def arrivals(*times: float, source: str = "eu-1") -> list[Arrival]:
    return [Arrival(time, f"{source}-{time}", source) for time in times]


@pytest.mark.parametrize(
    ("times", "gap"),
    [
        ([1, 2, 3, 4, 5, 6], 1.0),
        ([1, 2, 3, 6, 7], 3.0),
        ([1, 2], 4.0),
        ([4, 5], 1.0),
        ([], 3.0),
        ([0.5, 2.9, 3.1, 5.9], 2.8),
        ([1, 3, 5, 9], 4.0),
        ([1, 3, 5.5, 6.5, 20], 2.5),
    ],
)
def test_the_longest_gap_from_the_fault_at_3_to_the_end_at_6(times: list[float], gap: float) -> None:
    assert longest_gap(times, 3.0, 6.0) == pytest.approx(gap)


def test_the_gap_before_the_fault_does_not_count_the_start_of_the_pools() -> None:
    found = figures_of(Watch(arrivals(4.0, 4.5, 6.0, 7.0), (), fault_s=5.0, end_s=7.0, detected_s=None))
    assert found.gap_before_s == pytest.approx(0.5)
    assert found.gap_s == pytest.approx(1.5)


def test_lost_and_sent_twice() -> None:
    submissions = [
        Submission(0.0, 0.1, "eu", ("a", "b", "c", "d")),
        Submission(1.0, 1.5, "us", (), 2, "SpoolFull: full"),
        Submission(2.0, 2.1, "us", ("e",), 1),
    ]
    seen = [Arrival(0.2, name, "eu-1") for name in ("a", "a", "b", "b", "e", "unasked")]
    watch = Watch(seen, submissions, 0.15, 3.0, 0.4, marked={"a"}, settled_otherwise={"d"})
    found = figures_of(watch)
    assert (found.accepted, found.refused, found.delivered) == (5, 3, 4)
    assert (found.lost, found.duplicated, found.unmarked) == (1, 2, 1)
    assert found.detection_s == pytest.approx(0.25)
    assert found.errors == {"SpoolFull: full": 1}
    assert found.share_gap_s is None
    checks = {check.name: check.is_met for check in judge(SCENARIOS["pool-kill"], found, extra={})}
    assert checks == {
        "nothing lost": False,
        "duplicates are marked": False,
        "nothing refused where nothing was hit": False,
        "there was load": True,
        "detected in time": True,
        "deliveries go on": False,
        "what was hit is rerouted": None,
    }


def test_the_drain_is_of_what_had_a_receipt_at_the_fault() -> None:
    submissions = [
        Submission(1.0, 1.1, "eu", ("a", "b")),
        Submission(2.9, 3.1, "eu", ("on its way",)),
        Submission(4.0, 4.1, "eu", ("later",)),
    ]
    seen = [("a", 1.2), ("b", 4.5), ("b", 7.0), ("on its way", 6.0), ("later", 20.0)]
    arrived = [Arrival(at_s, name, "eu-1") for name, at_s in seen]
    found = figures_of(Watch(arrived, submissions, 3.0, 18.0, None))
    assert found.drain_s == pytest.approx(1.5), "its first arrival, not that of what came later or twice"
    assert figures_of(Watch(arrived[:1], submissions, 3.0, 18.0, None)).drain_s == 0.0


def test_who_was_not_hit_refuses_nothing() -> None:
    submissions = [Submission(4.0, 4.1, "us", (), 10, "SpoolFull: full"), Submission(4.0, 4.1, "eu", ("a",))]
    for may_refuse, refused in ((("us",), 0), (("eu",), 10), ((), 10)):
        watch = Watch(arrivals(4.2), submissions, 3.0, 9.0, 3.5, may_refuse=may_refuse)
        found = figures_of(watch)
        assert (found.refused, found.refused_elsewhere) == (10, refused)
        checks = {check.name: check.is_met for check in judge(SCENARIOS["disk-full"], found, extra={})}
        assert checks["nothing refused where nothing was hit"] is (refused == 0)


def test_the_share_of_what_was_hit() -> None:
    seen = arrivals(*(n / 10 for n in range(100)), source="us-1") + arrivals(1.0, 2.0, 4.5, 9.0)
    found = figures_of(Watch(seen, (), 3.0, 9.9, None, affected={"eu-1"}))
    assert found.gap_s == pytest.approx(0.1)
    assert found.share_gap_s == pytest.approx(4.5)
    assert found.detection_s is None


def test_the_share_is_what_was_submitted_to_the_region_that_was_hit_whoever_sent_it() -> None:
    submissions = [Submission(n, n, "us", (f"eu-1-{float(n)}",)) for n in (1, 2, 7)]
    seen = arrivals(*(float(n) for n in range(10)))
    watch = Watch(seen, submissions, 3.0, 9.0, None, affected={"us-1"}, hit="us")
    assert figures_of(watch).share_gap_s == pytest.approx(5.0)
    assert figures_of(replace(watch, hit="")).share_gap_s is None
    assert figures_of(replace(watch, submissions=None, affected={"eu-1"})).share_gap_s == pytest.approx(1.0)


def test_a_temporary_fleet_has_copies_where_failover_is_rehearsed_and_a_live_one_need_not() -> None:
    for name in ("region-kill", "region-freeze"):
        assert SCENARIOS[name].gets_copies
        assert refusal(SCENARIOS[name], fleet()) == ""


def test_what_a_live_fleet_does_not_show_is_not_measured(tmp_path: Path) -> None:
    seen = arrivals(*(n / 10 for n in range(100)))
    found = figures_of(Watch(seen, None, 3.0, 8.0, 3.5, affected={"us-1"}, marked={"eu-1-1.0"}))
    assert (found.accepted, found.refused, found.lost) == (None, None, None)
    assert (found.duplicated, found.unmarked) == (None, None)
    assert (found.drain_s, found.receipt_p50_ms, found.receipt_p99_ms) == (None, None, None)
    assert found.share_gap_s is None, "what was hit had sent nothing before either"
    assert found.delivered == 100
    audit = "the audit accounts for every message"
    ours = record(figures=found, is_live=True)
    ours.checks = judge(SCENARIOS["pool-kill"], found, extra={audit: None})
    assert {check.name: check.state for check in ours.checks} == {
        "nothing lost": "not measured",
        "duplicates are marked": "not measured",
        "nothing refused where nothing was hit": "not measured",
        "there was load": "met",
        "detected in time": "met",
        "deliveries go on": "met",
        "what was hit is rerouted": "not measured",
        audit: "not measured",
    }
    assert ours.is_passed
    shown = dict(rows(ours))
    for name in (
        "drain of what had a receipt at the fault",
        "accepted",
        "refused",
        "lost",
        "sent twice",
        "receipts p50",
    ):
        assert shown[name] == "-", name
    assert html(ours).count("not measured</td>") >= 4
    data = json.loads(write_record(ours, tmp_path).read_text())
    assert data["figures"]["lost"] is None
    assert data["checks"][0]["is_met"] is None
    assert read_records(tmp_path) == ([ours], [])


def test_zeros_that_older_records_have_of_live_drills_are_read_as_not_measured(tmp_path: Path) -> None:
    for hour, is_live in (("12", True), ("13", False)):
        figures = {"drain_s": 0.97, "lost": 0, "accepted": 0, "gap_s": 0.5, "delivered": 9}
        old = {"version": 1, "passed": True, **asdict(record(is_live=is_live)), "figures": figures}
        (tmp_path / f"20260131T{hour}0000Z-pool-kill.json").write_text(json.dumps(old))
    (live, temporary), problems = read_records(tmp_path)
    assert problems == []
    assert (live.figures.lost, live.figures.drain_s, live.figures.gap_s) == (None, None, 0.5)
    assert (temporary.figures.lost, temporary.figures.drain_s) == (0, None), "it was another figure"


def test_nothing_measured_is_not_passed_and_not_run_is_neither() -> None:
    assert record(checks=[Check("x", None, "not measured")]).verdict == "not passed"
    refused = record(checks=[Check("x", True, "yes")], not_run="no load")
    assert (refused.verdict, refused.is_passed) == ("refused", False)
    lacking = replace(refused, is_lacking=True, not_run="only <root>")
    assert (lacking.verdict, lacking.is_passed) == ("not run", False)
    page = html(lacking)
    assert "Not run: only &lt;root&gt;" in page
    assert "<svg" not in page


def test_what_was_not_detected_and_what_had_no_load_is_not_passed() -> None:
    found = figures_of(Watch((), (), 3.0, 9.0, None))
    checks = {check.name: check for check in judge(SCENARIOS["source-block"], found, extra={"x": False})}
    assert not checks["detected in time"].is_met
    assert checks["detected in time"].text == "did not happen, at most 5 s"
    assert not checks["there was load"].is_met
    assert not checks["x"].is_met


def test_bins() -> None:
    assert binned([0.0, 0.05, 0.15, 0.999, 1.0, 5.0], 1.0) == [2, 1, 0, 0, 0, 0, 0, 0, 0, 1, 1]


def record(**changes: object) -> DrillRecord:
    plain = DrillRecord(
        scenario="pool-kill",
        title="kill",
        expects="goes on",
        at="20260131T120000Z",
        fleet="<b>&fleet",
        is_live=False,
        target="pool x",
        rate=10.0,
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_a_record_is_read_back_and_broken_ones_are_told(tmp_path: Path) -> None:
    found = figures_of(Watch(arrivals(1.0, 2.0), (), 1.0, 2.0, 1.5))
    ours = record(figures=found, checks=judge(SCENARIOS["pool-kill"], found, extra={}), marks=[(1.0, "x")])
    first, second = write_record(ours, tmp_path), write_record(replace(ours, rate=20.0), tmp_path)
    assert first.name == "20260131T120000Z-pool-kill.json"
    assert second.name == "20260131T120000Z-pool-kill-2.json"
    (tmp_path / "20260131T130000Z-dns.json").write_text("{")
    (tmp_path / "20260131T140000Z-dns.json").write_text('{"version": 9}')
    (tmp_path / "other.json").write_text("{}")
    records, problems = read_records(tmp_path)
    assert [r.rate for r in records] == [10.0, 20.0]
    assert ours in records
    assert len(problems) == 2
    assert read_records(tmp_path / "nothing") == ([], [])


def test_the_report_stands_alone_and_quotes_what_it_shows() -> None:
    rng = random.Random(1)
    page = html(
        record(
            delivered=[rng.randint(0, 9) for _ in range(200)],
            accepted=[5] * 200,
            marks=[(5.0, "pool-kill"), (6.0, "<detected>")],
            notes=["<script>"],
        )
    )
    assert "&lt;b&gt;&amp;fleet" in page
    assert "<script>" not in page
    assert "&lt;detected&gt;" in page
    assert "http" not in page.replace("http://www.w3.org/2000/svg", "")
    assert "<polyline" in timeline(record(delivered=[1, 2, 3]))
    assert "<svg" in timeline(record()), "also without any delivery"


def test_what_a_fleet_cannot_be_put_to() -> None:
    plain = fleet()
    assert refusal(SCENARIOS["pool-kill"], plain) == ""
    assert "temporary fleet" in refusal(SCENARIOS["source-block"], plain)
    assert "temporary fleet" in refusal(SCENARIOS["disk-full"], plain)
    for name in ("partition", "partition-in", "partition-out"):
        assert "replicas: 0" in refusal(SCENARIOS[name], plain)
    assert refusal(SCENARIOS["head-kill"], plain) == ""
    assert "no dns_failover" in refusal(SCENARIOS["dns"], plain)
    elsewhere = fleet(ray={"address": "192.0.2.1:6379"})
    assert refusal(SCENARIOS["pool-kill"], elsewhere) == ""
    assert "on a cluster" in refusal(SCENARIOS["head-kill"], elsewhere)


def two_regions(**sections: Any) -> FleetConfig:
    regions = [{"name": "eu", "number": 1}, {"name": "us", "number": 2}]
    sources = [
        {
            "name": name,
            "region": name,
            "ip": f"192.0.2.{n}",
            "ehlo": f"{name}.example.com",
            "streams": ["marketing"],
        }
        for n, name in enumerate(("eu", "us"), 1)
    ]
    return fleet(regions=regions, sources=sources, **sections)


def test_a_region_that_cannot_be_hit_is_refused_with_those_that_can() -> None:
    both = two_regions()
    assert refusal(SCENARIOS["region-freeze"], both, "eu") == ""
    assert refusal(SCENARIOS["region-freeze"], both, "asia") == "--region: 'asia', allowed are eu, us"
    section = both.model_copy(
        update={"dns_failover": SimpleNamespace(addresses={"eu": ["192.0.2.1"]})}  # only eu has any
    )
    assert refusal(SCENARIOS["dns"], section, "eu") == ""
    for region in (None, "us"):
        assert "region us has no addresses" in refusal(SCENARIOS["dns"], section, region)
        assert "allowed are eu" in refusal(SCENARIOS["dns"], section, region)


def test_what_a_drill_does_not_show_depends_on_whether_the_fleet_keeps_copies() -> None:
    alone = two_regions()
    covered = two_regions(fleet={"replicas": 1})
    assert "keep no copies" in caveat(SCENARIOS["region-kill"], alone)
    assert "disk is gone" in caveat(SCENARIOS["region-kill"], covered)
    assert "keep no copies" not in caveat(SCENARIOS["region-kill"], covered)
    assert caveat(SCENARIOS["pool-kill"], covered) == ""
