"""warmup, shaping, trace: what operators see and order, with the real owners of the sources."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from engine.cli.main import build_cli
from engine.config.load import load_fleet
from engine.reputation.allowance import SiteCounts, Summary
from tests.unit.cli.support import FLEET, MemoryFleet, invoke

S3140 = "550 5.7.1 part of their network is on our block list (S3140)."
TSS04 = "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred"
NETBLOCK = "421 4.7.28 unusual rate of unsolicited email originating from your IP Netblock."


@pytest.fixture
def fleet(tmp_path: Path) -> MemoryFleet:
    content = yaml.safe_load(FLEET.read_text())
    content["sources"][0]["warmup"] = "standard"
    content["events"]["directory"] = str(tmp_path / "events")
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(content))
    found = MemoryFleet()
    found.config = load_fleet(path)
    found.state = {"fleet": "demo", "regions": {"eu": {}, "us": {}}}
    return found


def report(fleet: MemoryFleet, source: str, *rows: SiteCounts) -> None:
    fleet.owner(source).observe(Summary(fleet.now_ms, False, 0, rows))


def refused(site: str, reply: str) -> SiteCounts:
    return SiteCounts(site, 0, 1, 0, 1, replies=((reply, 1),))


def test_warmup_show(fleet: MemoryFleet) -> None:
    assert "no source is in warm-up" in invoke("warmup", "show", fleet=fleet).stdout
    report(fleet, "eu-1", SiteCounts("google", 120, 5, 0, 0))
    fleet.state["regions"]["eu"]["granted"] = {"eu-1": {"google": 131}}
    result = invoke("warmup", "show", fleet=fleet)
    row = next(line.split() for line in result.stdout.splitlines() if "eu-1" in line)
    assert row == ["eu-1", "google", "running", "0/29", "200", "131", "120", "69", "40", "2024-11-02"]
    (as_json,) = json.loads(invoke("warmup", "show", "--json", fleet=fleet).stdout)
    assert (as_json["day_cap"], as_json["granted"], as_json["remaining"]) == (200, 131, 69)
    assert as_json["end_date"] == "2024-11-02"  # day 20,000 and 29 stages
    assert json.loads(invoke("warmup", "show", "--site", "yahoo", "--json", fleet=fleet).stdout) == []
    wrong = invoke("warmup", "show", "--source", "eu-9", fleet=fleet)
    assert (wrong.exit_code, "allowed are eu-1, eu-2" in wrong.stderr) == (1, True)


def test_yesterdays_counts_are_not_todays(fleet: MemoryFleet) -> None:
    report(fleet, "eu-1", SiteCounts("google", 120, 0, 0, 0))
    fleet.now_ms += 86_400_000
    (row,) = json.loads(invoke("warmup", "show", "--json", fleet=fleet).stdout)
    assert (row["attempts"], row["delivered"], row["remaining"]) == (0, 0, row["day_cap"])


def test_warmup_orders(fleet: MemoryFleet) -> None:
    report(fleet, "eu-1", SiteCounts("google", 1, 0, 0, 0))
    assert "paused" in invoke("warmup", "pause", "eu-1", "google", fleet=fleet).stdout
    again = invoke("warmup", "pause", "eu-1", "google", fleet=fleet)
    assert again.exit_code == 1
    assert "is not running" in again.stderr
    assert "running" in invoke("warmup", "resume", "eu-1", "google", fleet=fleet).stdout
    assert "4/29" in invoke("warmup", "skip", "eu-1", "google", "4", fleet=fleet).stdout
    assert "finished" in invoke("warmup", "skip", "eu-1", "google", "29", fleet=fleet).stdout
    # a provider that the source has not met yet: its warm-up begins at that stage
    assert "2/29" in invoke("warmup", "skip", "eu-1", "yahoo", "2", fleet=fleet).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("skip", "eu-1", "google", "30"), "stage 30: allowed are 0 to 29"),
        (("skip", "eu-1", "gogle", "3"), "site 'gogle': allowed are providers"),
        (("pause", "eu-2", "google"), "source eu-2 has no warm-up"),
    ],
)
def test_orders_that_make_no_sense(fleet: MemoryFleet, arguments: tuple[str, ...], message: str) -> None:
    result = invoke("warmup", *arguments, fleet=fleet)
    assert result.exit_code == 1
    assert message in result.stderr
    assert "gogle" not in fleet.owner("eu-1").warmup.plans


def test_shaping_list_and_explain(fleet: MemoryFleet) -> None:
    assert "nothing is in force" in invoke("shaping", "list", fleet=fleet).stdout
    report(fleet, "eu-2", refused("yahoo", TSS04))
    fleet.state["regions"]["eu"]["suspensions"] = [
        {"source": "eu-2", "site": "yahoo", "until_ms": fleet.now_ms + 7_200_000, "reason": "r"}
    ]
    (row,) = json.loads(invoke("shaping", "list", "--json", fleet=fleet).stdout)
    assert (row["source"], row["rule"], row["until_ms"] - fleet.now_ms) == (
        "eu-2",
        "yahoo-deferred",
        7_200_000,
    )
    listed = invoke("shaping", "list", fleet=fleet).stdout
    assert "yahoo-deferred" in listed
    assert "2024-10-04 02:00:00Z" in listed
    explained = invoke("shaping", "explain", "eu-2", "yahoo", fleet=fleet).stdout
    for part in (
        "yahoo-deferred",
        "[TSS04]",
        "threshold 1/min",
        "nothing is sent until 2024-10-04 02:00:00Z",
    ):
        assert part in explained
    found = json.loads(invoke("shaping", "explain", "eu-2", "yahoo", "--json", fleet=fleet).stdout)
    assert found["orders"][0]["written"]["action"] == "suspend"
    assert "unchanged" in invoke("shaping", "explain", "eu-1", "yahoo", fleet=fleet).stdout


def test_shaping_cancel_asks_first(fleet: MemoryFleet) -> None:
    report(fleet, "eu-2", refused("google", NETBLOCK))
    cancel = ("shaping", "cancel", "eu-2", "google", "google-netblock-rate")
    refusal = invoke(*cancel, fleet=fleet)  # no answer to the question
    assert refusal.exit_code == 1
    assert "other sources of its netblock" in refusal.stdout
    assert fleet.owner("eu-2").shaping.listing()
    assert invoke(*cancel, "--yes", fleet=fleet).exit_code == 0
    assert not fleet.owner("eu-2").shaping.listing()
    wrong = invoke(*cancel, "--yes", fleet=fleet)
    assert wrong.exit_code == 1
    assert "there are: none" in wrong.stderr


def test_cancelling_a_removal_begins_the_probation(fleet: MemoryFleet) -> None:
    report(fleet, "eu-2", refused("outlook", S3140))
    owner = fleet.owner("eu-2")
    assert owner.allowance(fleet.now_ms, "outlook").weight == 0
    fleet.now_ms += 60_000
    result = invoke("shaping", "cancel", "eu-2", "outlook", "outlook-block-list", "--yes", fleet=fleet)
    assert "begins its probation" in result.stdout
    assert owner.allowance(fleet.now_ms, "outlook").state == "probation"


def test_a_peers_words_are_not_obeyed_by_the_terminal(fleet: MemoryFleet) -> None:
    said = f"{TSS04} \x9b31m\x1b]0;x\u202e[bold]"
    report(fleet, "eu-2", refused("yahoo", said))
    fleet.traced[0x0001000000000007] = {
        "status": {"id": "0001000000000007", "state": "queued"},
        "region": "eu",
        "site": "yahoo",
        "paths": [],
    }
    write_events(fleet, [attempt(1, fleet.now_ms, "deferred", 1, said)])
    for command in (
        ("shaping", "list"),
        ("shaping", "explain", "eu-2", "yahoo"),
        ("trace", "0001000000000007"),
    ):
        text = invoke(*command, fleet=fleet).stdout
        assert "temporarily deferred  31m ]0;x [bold]" in text
        assert text.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (("skip", "eu-1", "google", "30"), 1, "stage 30: allowed are 0 to 29"),
        (("skip", "eu-1", "google", "9" * 40), 1, "allowed are 0 to 29"),
        (("skip", "eu-1", "google", "x"), 2, "'x' is not a valid integer"),
        (("skip", "eu-1", "google", "--", "-1"), 1, "stage -1: allowed are 0 to 29"),
        (("skip", "eu-1", "google"), 2, "Missing argument 'STAGE'"),
        (("pause", "eu-2", "google"), 1, "source eu-2 has no warm-up"),
        (("pause", "eu-1", "mx:never-met"), 1, "site 'mx:never-met': allowed are providers and"),
        (("resume", "eu-1", "google"), 1, "nothing changes"),
    ],
)
def test_warmup_orders_that_make_no_sense(
    fleet: MemoryFleet, command: tuple[str, ...], status: int, said: str
) -> None:
    result = invoke("warmup", *command, fleet=fleet)
    assert (result.exit_code, said in result.stderr) == (status, True), result.stderr


def test_shaping_check(tmp_path: Path) -> None:
    assert "match their samples" in invoke("shaping", "check", "--fleet", FLEET).stdout
    content = yaml.safe_load(FLEET.read_text())
    rule = {
        "name": "a",
        "pattern": "x",
        "sample": "421 x",
        "scope": "source",
        "action": "suspend",
        "duration": "1m",
    }
    content["providers"] = {"apple": {"automation": [rule, {**rule, "name": "b"}]}}
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(content))
    result = invoke("shaping", "check", "--fleet", path)
    assert result.exit_code == 1
    assert "apple: b: shadowed" in result.stderr


def event(seq: int, at_ms: int, kind: str, **fields: Any) -> str:
    return json.dumps({"seq": seq, "at_ms": at_ms, "event": kind, **fields}, separators=(",", ":"))


def write_events(fleet: MemoryFleet, lines: list[str]) -> None:
    path = Path(fleet.config.events.directory) / "eu" / "events-000001.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(line + "\n" for line in lines))


def attempt(seq: int, at_ms: int, kind: str, source: int, text: str) -> str:
    fields = {"id": "0001000000000007", "recipient": "a@yahoo.com", "stream": "marketing", "tenant": "t"}
    more = {"host": "mx.yahoo.test", "possible_duplicate": False, "code": 421, "enhanced": "", "attempt": 1}
    return event(seq, at_ms, kind, **fields, **more, source=source, text=text)


def test_trace(fleet: MemoryFleet) -> None:
    t = fleet.now_ms
    removed = {"source": "eu-3", "site": "yahoo", "state": "removed", "weight": 0, "reason": "TS03"}
    back = {**removed, "state": "active", "weight": 1000}
    held = {"source": "eu-2", "site": "yahoo", "until_ms": t + 5_000, "reason": "TSS04 said"}
    lines = [
        event(1, t, "allowance", **removed),
        attempt(2, t + 10, "deferred", 1, "first"),
        event(3, t + 11, "suspension", **held),
        event(4, t + 12, "allowance", **back),
        attempt(5, t + 20, "delivered", 2, "second"),
        attempt(5, t + 20, "delivered", 2, "second"),  # shipped twice after a crash
        event(6, t + 30, "allowance", **removed),
    ]
    write_events(fleet, lines)
    fleet.traced[0x0001000000000007] = {
        "status": {"id": "0001000000000007", "state": "delivered"},
        "region": "eu",
        "site": "yahoo",
        "paths": [{"source": "eu-2", "eligible": True, "reasons": []}],
    }
    found = json.loads(invoke("trace", "0001000000000007", "--json", fleet=fleet).stdout)
    first, second = found["attempts"]
    assert (first["source_name"], second["source_name"]) == ("eu-2", "eu-3")
    why = {row["source"]: row["reasons"] for row in first["others"]}
    assert why == {
        "eu-1": ["does not serve the stream marketing"],
        "eu-3": ["out of the rotation (removed): TS03"],
    }
    why = {row["source"]: row["reasons"] for row in second["others"]}
    assert why["eu-2"] == ["suspended until 2024-10-04 00:00:05Z: TSS04 said"]
    assert found["paths"] == []  # it is not queued: nobody carries it now
    text = invoke("trace", "0001000000000007", fleet=fleet).stdout
    assert "2. 2024-10-04 00:00:00Z delivered over eu-3 to mx.yahoo.test" in text
    assert "the only one eligible" in text
    assert "is not recorded" in text
    assert invoke("trace", "0001000000000008", fleet=fleet).exit_code == 1
    assert invoke("trace", "x", fleet=fleet).exit_code == 2


@pytest.fixture
def pools(fleet: MemoryFleet, tmp_path: Path) -> MemoryFleet:
    """Sources for marketing in eu: eu-2 shared, eu-3 of the tenant t, and a pool apart."""
    content = yaml.safe_load(FLEET.read_text())
    content["events"]["directory"] = str(fleet.config.events.directory)
    content["sources"][2]["tenancy"] = {"dedicated": "t"}
    apart = {**content["sources"][1], "name": "eu-4", "ip": "127.0.0.13", "quality": ["poor"]}
    content["sources"] = [content["sources"][3], *content["sources"][:3], apart, *content["sources"][4:]]
    path = tmp_path / "pools.yaml"
    path.write_text(yaml.safe_dump(content))
    fleet.config = load_fleet(path)
    fleet.traced[0x0001000000000007] = {
        "status": {"id": "0001000000000007", "state": "delivered"},
        "region": "eu",
        "site": "yahoo",
        "paths": [],
    }
    return fleet


def traced(fleet: MemoryFleet, *lines: str) -> list[tuple[str, dict[str, str]]]:
    """The source of each attempt, and what is said of each other one."""
    write_events(fleet, list(lines))
    found = json.loads(invoke("trace", "0001000000000007", "--json", fleet=fleet).stdout)
    return [
        (
            attempt["source_name"],
            {row["source"]: "; ".join(row["reasons"]) or row["passed_over"] for row in attempt["others"]},
        )
        for attempt in found["attempts"]
    ]


def test_trace_knows_whose_sources_come_first(pools: MemoryFleet) -> None:
    t = pools.now_ms
    (own, others), (shared, rest) = traced(
        pools, attempt(1, t, "deferred", 3, "x"), attempt(2, t + 9, "delivered", 2, "x")
    )
    assert (own, shared) == ("eu-3", "eu-2")
    assert others == {
        "eu-1": "does not serve the stream marketing",
        "eu-2": "the tenant's own sources come first",
        "eu-4": "did not serve tenants of the class new, as t was",
    }
    assert rest["eu-3"] == "it comes first, so its rate, window or cap of the day was used up"


def test_trace_knows_the_class_that_the_tenant_had(pools: MemoryFleet) -> None:
    t = pools.now_ms
    fall = {"tenant": "t", "before": "new", "state": "poor", "score": 0, "reason": "x"}
    (_, first), (carrier, second) = traced(
        pools,
        attempt(1, t, "deferred", 3, "x"),
        event(2, t + 5, "tenant", **fall),
        attempt(3, t + 9, "delivered", 4, "x"),
    )
    assert first["eu-4"] == "did not serve tenants of the class new, as t was"
    assert carrier == "eu-4"
    assert second["eu-2"] == "did not serve tenants of the class poor, as t was"


def test_trace_knows_the_source_that_had_the_number_then(pools: MemoryFleet) -> None:
    t = pools.now_ms
    before = ["gone", "eu-1", "eu-2", "eu-3"]
    now = [source.name for source in pools.config.sources]
    found = traced(
        pools,
        attempt(1, t, "deferred", 0, "x"),
        event(2, t + 1, "sources", names=before, before=["first"]),
        attempt(3, t + 2, "deferred", 2, "x"),
        event(4, t + 3, "sources", names=now, before=before),
        attempt(5, t + 4, "delivered", 2, "x"),
        attempt(6, t + 5, "expired", 0xFFFF, "x"),
    )
    assert [carrier for carrier, _ in found] == ["first", "eu-2", now[2], ""]


def test_trace_knows_that_a_whole_source_was_out(pools: MemoryFleet) -> None:
    t = pools.now_ms
    fields = {"source": "eu-2", "state": "removed", "weight": 0, "reason": "listed: zen.example"}
    here = {"source": "eu-2", "site": "yahoo", "state": "active", "weight": 1000, "reason": ""}
    ((_, others),) = traced(
        pools,
        event(1, t, "allowance", **fields, site=""),
        event(2, t + 1, "allowance", **here),
        attempt(3, t + 2, "delivered", 3, "x"),
    )
    assert others["eu-2"] == "out of the rotation (removed): listed: zen.example"


def test_trace_of_a_message_about_which_something_came_back(pools: MemoryFleet) -> None:
    t = pools.now_ms
    fields = {"id": "0001000000000007", "recipient": "a@yahoo.com", "stream": "marketing", "tenant": "t"}
    lines = [
        attempt(1, t, "delivered", 3, "ok"),
        event(2, t + 60_000, "complaint", **fields, source=3, site="yahoo", feedback="abuse"),
        event(3, t + 61_000, "late_bounce", **fields, source=3, site="yahoo", text="no such user"),
    ]
    write_events(pools, lines)
    text = invoke("trace", "0001000000000007", fleet=pools).stdout
    assert "2024-10-04 00:01:00Z complaint: abuse" in text
    assert "late_bounce: no such user" in text
    assert "1. 2024-10-04 00:00:00Z delivered over eu-3" in text


def test_trace_of_a_queued_message_says_what_holds_it_now(fleet: MemoryFleet) -> None:
    fleet.traced[0x0001000000000007] = {
        "status": {"id": "0001000000000007", "state": "queued"},
        "region": "eu",
        "site": "yahoo",
        "paths": [{"source": "eu-2", "eligible": False, "reasons": ["today's cap of 200 is used up"]}],
    }
    text = invoke("trace", "0001000000000007", fleet=fleet).stdout
    assert "eu-2: today's cap of 200 is used up" in text


TENANT = {
    "tenant": "acme",
    "quality": "poor",
    "pinned": False,
    "score": 40,
    "since_ms": 0,
    "until_ms": 86_400_000,
    "attempts": 10,
    "reason": "hard bounces at 20.03%",
}


def test_tenants_are_listed_and_the_poor_ones_are_in_the_status() -> None:
    fleet = MemoryFleet()
    rows = [TENANT, {**TENANT, "tenant": "fine", "quality": "good", "pinned": True, "until_ms": 0}]
    fleet.state = {"fleet": "demo", "regions": {"eu": {"counts": {}, "tenants": rows}, "us": {"counts": {}}}}
    shown = invoke("tenants", "list", fleet=fleet)
    assert shown.exit_code == 0
    text = " ".join(shown.stdout.split())
    assert "acme eu poor 40 1970-01-01 00:00 1970-01-02 00:00 hard bounces" in text
    assert "fine eu good (pinned) 40" in text
    only = json.loads(invoke("tenants", "list", "--class", "poor", "--json", fleet=fleet).stdout)
    assert only == [{"region": "eu", **TENANT}]
    status = invoke("status", fleet=fleet).stdout
    assert "eu: tenant acme is poor: hard bounces at 20.03%" in " ".join(status.split())
    assert "fine" not in status


def test_a_tenant_is_moved_in_every_region() -> None:
    fleet = MemoryFleet()
    moved = invoke("tenants", "move", "acme", "good", fleet=fleet)
    assert (moved.exit_code, moved.stdout.strip()) == (0, "acme: good in eu")
    repeated = invoke("tenants", "move", "acme", "good", fleet=fleet)
    assert repeated.exit_code == 1
    assert "nothing changes, it is good already" in repeated.stderr
    wrong = invoke("tenants", "move", "acme", "bad", fleet=fleet)
    assert wrong.exit_code == 2
    assert "'new', 'good', 'poor'" in wrong.stderr


def test_listed_sources_and_lists_that_do_not_work_are_in_the_status() -> None:
    fleet = MemoryFleet()
    lists = {
        "sources": {"eu-1": "bl.test (127.0.0.2 SBL)"},
        "problems": {"other.test": "it refuses to answer"},
    }
    fleet.state = {
        "fleet": "demo",
        "regions": {"eu": {"counts": {}, "blocklists": lists}, "us": {"counts": {}}},
    }
    text = " ".join(invoke("status", fleet=fleet).stdout.split())
    assert "eu: source eu-1 is listed: bl.test (127.0.0.2 SBL)" in text
    assert "eu: the blocklist other.test says nothing about us: it refuses to answer" in text


def test_shaping_shows_how_many_connections_a_site_bears(fleet: MemoryFleet) -> None:
    for latency_us in (100_000, 100_000, 900_000):
        timed = SiteCounts("yahoo", 100, 0, 0, 0, timed=100, log2_us=100 * math.log2(latency_us), most=10)
        report(fleet, "eu-2", timed)
        fleet.now_ms += 6_000
    listed = invoke("shaping", "list", "--source", "eu-2", fleet=fleet).stdout
    assert "eu-2 at yahoo: connections adapted to its answers: 7" in listed
    assert "answers take 900 ms, 100 ms at best" in listed
    (row,) = json.loads(invoke("shaping", "list", "--json", fleet=fleet).stdout)
    assert (row["action"], row["connections"], row["rule"]) == ("adapt", 7, "")
    allowance = fleet.owner("eu-2").allowance(fleet.now_ms, "yahoo")
    fleet.state["regions"]["eu"]["allowances"] = [
        {**{name: getattr(allowance, name) for name in allowance.__slots__}, "source": "eu-2"}
    ]
    explained = invoke("shaping", "explain", "eu-2", "yahoo", fleet=fleet).stdout
    assert "connections adapted to its answers: 7 since" in explained
    assert "no rule has given an order" in explained
    assert "connections 7, daily cap none" in explained
    result = invoke("shaping", "cancel", "eu-2", "yahoo", "adapt", "--yes", fleet=fleet)
    assert result.exit_code == 1, "what the site does not bear is no order"


@pytest.mark.parametrize(
    "command",
    [
        ("shaping", "list", "--source", "eu-9"),
        ("shaping", "explain", "eu-9", "google"),
        ("shaping", "cancel", "eu-9", "google", "rule"),
        ("warmup", "show", "--source", "eu-9"),
        ("warmup", "pause", "eu-9", "google"),
        ("warmup", "resume", "eu-9", "google"),
        ("warmup", "skip", "eu-9", "google", "3"),
    ],
)
def test_a_source_that_is_none_is_told_also_if_no_fleet_runs(command: tuple[str, ...]) -> None:
    def nothing_runs(path: Path) -> MemoryFleet:
        raise ConnectionError("no fleet runs here")

    result = CliRunner().invoke(build_cli(nothing_runs), [*command, "--fleet", str(FLEET)])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: source 'eu-9': allowed are eu-1, eu-2")
