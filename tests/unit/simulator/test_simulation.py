"""The loop of a simulation: the law of conservation, the same bytes each time, and what the plans are there to show."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from engine.cli.main import build_cli
from engine.config.load import ConfigError
from engine.simulator.plan import load_plan, parse_plan
from engine.simulator.record import Record
from engine.simulator.report import html_text, json_text
from engine.simulator.simulation import Simulation
from tests.unit.cli.support import MemoryFleet

SCENARIOS = Path(__file__).parents[3] / "examples" / "scenarios"
HOUR_S = 3600.0


def plan_of(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "name": "small",
        "seed": 4,
        "duration": "2h",
        "tick": "10s",
        "report": "20s",
        "samples": 24,
        "sources": [
            {"name": "eu", "region": "eu", "count": 3, "first_ip": "192.0.2.1", "history": 1_000_000}
        ],
        "traffic": [{"name": "news", "per_day": 120_000}],
    }
    return data | changes


def run(**changes: Any) -> Record:
    return Simulation(parse_plan(plan_of(**changes))).run()


def states(record: Record, source: str) -> list[tuple[str, str]]:
    return [
        (event["site"], event["state"])
        for event in record.events
        if event["event"] == "reputation" and event["source"] == source
    ]


def test_all_mail_is_accounted_for() -> None:
    record = run()
    assert record.accepted == 10_000
    assert record.queued < 20
    assert record.delivered_count + record.bounced + record.queued == 10_000
    assert 20 <= record.bounced <= 90  # half a per cent do not exist


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """In other processes with other hash seeds, storms, restarts and all."""
    plan = plan_of(
        tick="30s",
        events=[
            {"kind": "storm", "at": "20m", "lasts": "10m", "provider": "yahoo", "share": 0.5},
            {"kind": "listing", "at": "30m", "lasts": "10m", "netblock": "192.0.2.0/24"},
            {"kind": "restart", "at": "50m", "region": "eu"},
            {"kind": "owner_restart", "at": "55m", "sources": ["eu-1"]},
        ],
    )
    (tmp_path / "plan.yaml").write_text(json_text(plan))
    found = []
    for turn in ("1", "2"):
        code = "from engine.cli.main import build_cli; build_cli(lambda _: None)()"
        arguments = [
            f"{tmp_path}/plan.yaml",
            "--json",
            f"{tmp_path}/{turn}.json",
            "--html",
            f"{tmp_path}/{turn}.html",
        ]
        subprocess.run(
            [sys.executable, "-c", code, "simulate", *arguments],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONHASHSEED": turn},
        )
        found.append([(tmp_path / f"{turn}.{kind}").read_bytes() for kind in ("json", "html")])
    assert found[0] == found[1]
    assert b"TSS04" in found[0][0]
    other = Simulation(parse_plan({**plan, "seed": 5})).run()
    assert json_text(other.as_json()).encode() != found[0][0]


def test_a_storm_suspends_and_nothing_is_lost() -> None:
    storm = {"kind": "storm", "at": "10m", "lasts": "20m", "provider": "yahoo"}
    record = run(
        duration="6h", events=[storm], traffic=[{"name": "n", "per_day": 60_000, "shares": {"yahoo": 1}}]
    )
    assert record.expired == 0
    # what was on the wire of ten connections of each of three sources
    assert 3 <= record.replies.total() - record.bounced <= 60
    depth = record.sites["yahoo"].depth
    assert max(depth) > 3_000
    assert depth[-1] < 200


def test_a_listed_netblock_is_left_and_the_other_takes_the_mail() -> None:
    sources = [
        {"name": "one", "region": "eu", "count": 2, "first_ip": "192.0.2.1", "netblock": "192.0.2.0/29"},
        {"name": "two", "region": "eu", "count": 2, "first_ip": "192.0.2.9", "netblock": "192.0.2.8/29"},
    ]
    listing = {
        "kind": "listing",
        "at": "10m",
        "lasts": "20m",
        "provider": "outlook",
        "netblock": "192.0.2.0/29",
    }
    record = run(duration="3h", sources=sources, events=[listing])
    assert states(record, "one-1")[0] == ("outlook", "removed")
    assert states(record, "two-1") == []
    assert record.queued < 20
    after = slice(6, 20)
    assert sum(record.pairs[0, "outlook"].delivered[after]) == 0
    assert sum(record.pairs[2, "outlook"].delivered[after]) > 500
    assert sum(record.pairs[0, "google"].delivered[after]) > 500


def test_a_lost_region_gives_its_mail_to_the_other() -> None:
    sources = [
        {"name": name, "region": name, "first_ip": ip, "history": 10_000_000}
        for name, ip in (("eu", "192.0.2.1"), ("us", "198.51.100.1"))
    ]
    down = {"kind": "region_down", "at": "30m", "lasts": "30m", "region": "us"}
    record = run(sources=sources, events=[down], traffic=[{"name": "news", "per_day": 1_200_000}])
    assert record.queued < 200
    us = record.pairs[1, "google"].delivered
    assert sum(us[7:12]) == 0
    assert min(us[:5]) > 0
    assert min(us[14:]) > 0
    assert record.pairs[1, "google"].state[8] == "region down"


def test_mail_waits_while_no_region_is_up() -> None:
    down = {"kind": "region_down", "at": "30m", "lasts": "30m", "region": "eu"}
    record = run(events=[down])
    assert record.accepted == 10_000
    assert sum(record.sites["google"].delivered[7:12]) == 0
    assert record.queued < 20


def test_greylisting_costs_time_and_no_reputation() -> None:
    record = run(models={"google": {"greylist": 0.8, "greylisted": "450 4.2.0 Greylisted, come again later"}})
    assert record.attempts_refused > 3_000
    assert states(record, "eu-1") == []
    assert record.expired == 0


@pytest.mark.parametrize("path", sorted(SCENARIOS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_scenarios_run(path: Path) -> None:
    plan = load_plan(path)
    begin = min((t.begins for t in plan.traffic), default=0.0)
    assert begin < plan.duration
    # a few steps from the hour at which mail comes
    traffic = tuple(t.model_copy(update={"hours": "flat"}) for t in plan.traffic)
    changes = {"duration": 6 * plan.tick, "samples": 10, "traffic": traffic, "report": 3 * plan.tick}
    record = Simulation(plan.model_copy(update=changes)).run()
    assert record.delivered_count > 0
    data = record.as_json()
    page = html_text(data)
    for part in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part.partition("</svg>")[0] + "</svg>")
    assert len(data["times_s"]) == 6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"duration": "1s"}, "duration: allowed is at least tick"),
        ({"tick": "2h"}, "allowed is 10ms to 1h"),
        ({"start": "yesterday"}, "allowed is a day"),
        ({"traffic": [{"name": "a", "per_day": 1, "hours": [0] * 24}]}, "one at least is above zero"),
        ({"traffic": [{"name": "a", "per_day": 1}, {"name": "a", "per_day": 1}]}, "a name is given twice"),
        ({"events": [{"kind": "storm", "at": "1m"}]}, "provider: needed by kind storm"),
        ({"events": [{"kind": "restart", "at": "1m", "region": "mars"}]}, "allowed are eu"),
        ({"events": [{"kind": "block", "at": "1m", "sources": ["eu-9"]}]}, "eu-9"),
        ({"models": {"google": {"groth": 2}}}, "groth"),
        ({"models": {"google": {"rate": "250 fine"}}}, "code of class 4 or 5"),
        ({"models": {"gogle": {}}}, "models.gogle"),
        ({"traffic": [{"name": "a", "per_day": 1, "shares": {"gogle": 1}}]}, "gogle"),
        ({"fleet": {"reputation": {"removed_below": 90}}}, "removed_below"),
    ],
)
def test_what_is_wrong_with_a_plan_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_plan(plan_of(**changes))


def test_the_command_says_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "plan.yaml"
    path.write_text(json_text(plan_of()))
    cli = build_cli(lambda _: MemoryFleet())
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["simulate", str(path), "--duration", "20m", "--seed", "9"])
    assert result.exit_code == 0, result.output
    assert "accepted" in result.stdout
    assert Path("plan.html").read_text().startswith("<!doctype html>")
    assert '"seed":9' in Path("plan.json").read_text()
    assert CliRunner().invoke(cli, ["simulate", str(path), "--duration", "soon"]).exit_code == 2
    assert CliRunner().invoke(cli, ["simulate", "none.yaml"]).exit_code == 1
