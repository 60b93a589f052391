"""status, audit, events, config: what they print, and their exit status."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.cli import audit as audit_module
from engine.cli.events import read_events
from engine.spool.audit import AuditReport
from tests.unit.cli.support import FLEET, MemoryFleet, invoke

COUNTS = {
    "accepted": 9,
    "queued": 1,
    "delivered": 5,
    "bounced": 3,
    "expired": 0,
    "suppressed": 0,
    "cancelled": 0,
}


def test_status_of_the_fleet() -> None:
    fleet = MemoryFleet()
    region = {"counts": COUNTS, "outstanding": {"google": 4}, "spool_queues": 2, "unrouted_domains": []}
    fleet.state = {"fleet": "demo", "regions": {"eu": region, "us": {"counts": COUNTS}}}
    result = invoke("status", fleet=fleet)
    assert result.exit_code == 0
    assert ["all", "18", "2", "10", "6", "0", "0", "0"] in [
        line.split() for line in result.stdout.splitlines()
    ]
    assert "eu: 4 messages at pools, 2 spool queues, 0 domains without a route yet" in result.stdout
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    as_json = invoke("status", "--json", fleet=fleet)
    assert json.loads(as_json.stdout) == fleet.state


def test_status_says_what_a_gateway_does_not_do() -> None:
    fleet = MemoryFleet()
    fleet.state = {
        "fleet": "demo",
        "regions": {"eu": {"counts": COUNTS}},
        "gateways": {
            "eu": {"region": "eu", "metrics": {"port": 0, "error": "address already in use"}},
            "us": {"region": "us", "error": "no actor gateway:us"},
            "ap": {"region": "ap", "metrics": {"port": 9464}},
        },
    }
    lines = invoke("status", fleet=fleet).stdout.splitlines()
    assert "eu: metrics are not served: address already in use" in lines
    assert "us: the gateway does not answer: no actor gateway:us" in lines
    assert not any(line.startswith("ap:") for line in lines)


def test_a_region_without_an_answer_is_status_1() -> None:
    fleet = MemoryFleet()
    fleet.state = {
        "fleet": "demo",
        "regions": {"eu": {"counts": COUNTS}, "us": {"error": "no actor region:us"}},
    }
    result = invoke("status", fleet=fleet)
    assert result.exit_code == 1
    assert "no answer from us: no actor region:us" in result.stderr
    fleet.error = ConnectionError("no actor fleet")
    result = invoke("status", "--json", fleet=fleet)
    assert (result.exit_code, result.stderr) == (1, "error: no actor fleet\n")


def test_status_says_which_regions_wait_to_go_on_without_copies() -> None:
    fleet = MemoryFleet()
    fleet.state = {
        "fleet": "demo",
        "without_copies": "fleet.replicas: 0: were not stopped together",
        "regions": {"eu": {"counts": COUNTS, "waits_for_all": True}, "us": {"counts": COUNTS}},
    }
    result = invoke("status", fleet=fleet)
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert "eu: waits until every region may go on without copies" in lines
    assert "fleet.replicas: 0: were not stopped together" in lines
    assert "eu waits until every region may go on without copies" in " ".join(result.stderr.split())
    assert "us" not in result.stderr


def test_status_of_a_message() -> None:
    result = invoke("status", "0001000000000001")
    assert result.exit_code == 0
    assert "delivered" in result.stdout
    assert json.loads(invoke("status", "0001000000000001", "--json").stdout)["attempts"] == 1
    assert invoke("status", "0001000000000002").exit_code == 1
    assert invoke("status", "xyz").exit_code == 2


@pytest.fixture
def fleet_yaml(tmp_path: Path) -> Path:
    content = yaml.safe_load(FLEET.read_text())
    content["spool"]["directory"] = str(tmp_path / "spool")
    content["events"]["directory"] = str(tmp_path / "events")
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_audit(fleet_yaml: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = invoke("audit", "--fleet", fleet_yaml)
    assert result.exit_code == 1
    assert "no spool of this fleet" in result.stderr

    reports: dict[str, AuditReport] = {}

    def fake_audit(path: Path) -> AuditReport:
        kinds = {kind: number for kind, number in COUNTS.items() if kind != "accepted"}
        return reports.setdefault(path.name, AuditReport(str(path), 9, kinds))

    monkeypatch.setattr(audit_module, "audit", fake_audit)
    (fleet_yaml.parent / "spool" / "eu").mkdir(parents=True)
    result = invoke("audit", "--fleet", fleet_yaml)
    assert result.exit_code == 0
    assert "region us: no spool on this machine" in result.stderr

    (fleet_yaml.parent / "spool" / "us").mkdir()
    result = invoke("audit", "--fleet", fleet_yaml)
    assert (
        "audit: accepted 18 = delivered 10 + bounced 6 + expired 0 + suppressed 0 + cancelled 0 + queued 2"
        in result.stdout
    )
    reports["us"].counts["moved"] = 3
    told = " ".join(invoke("audit", "--fleet", fleet_yaml).stdout.split())
    assert "+ queued 1 + moved 3 audit: accepted 15 = delivered 10" in told  # over all of them it counts once
    reports["us"].counts["replaced"] = 2
    told = " ".join(invoke("audit", "--fleet", fleet_yaml).stdout.split())
    assert "+ queued 1 + moved 3 + replaced 2 audit: accepted 13 = delivered 10" in told
    reports["us"].problem("0002000000000005: queued, but never due")
    result = invoke("audit", "--fleet", fleet_yaml)
    assert result.exit_code == 1
    assert "0002000000000005: queued, but never due" in result.stderr
    result = invoke("audit", "--json", "--fleet", fleet_yaml)
    assert result.exit_code == 1
    assert json.loads(result.stdout)["us"]["problems"] == 1


def write_events(directory: Path, region: str, number: int, events: list[dict[str, Any]]) -> Path:
    path = directory / "events" / region / f"events-{number:06d}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


def test_events(fleet_yaml: Path) -> None:
    assert invoke("events", "--fleet", fleet_yaml).stdout == ""
    first = {"event": "delivered", "recipient": "a@example.com", "campaign": "c", "id": "1"}
    second = {**first, "event": "bounced"}
    path = write_events(fleet_yaml.parent, "eu", 1, [first])
    write_events(fleet_yaml.parent, "eu", 2, [second])
    path.write_text(path.read_text() + '{"event": "deliv')  # being written
    lines = invoke("events", "--fleet", fleet_yaml).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [first, second]
    lines = invoke(
        "events", "--fleet", fleet_yaml, "--event", "bounced", "--campaign", "c"
    ).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [second]
    result = invoke("events", "--fleet", fleet_yaml, "--recipient", "b@example.com")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == f"no events in {fleet_yaml.parent / 'events'} with --recipient b@example.com\n"
    result = invoke("events", "--fleet", fleet_yaml, "--id", "5")
    assert result.exit_code == 2
    assert "--id: message id '5': expected 16 hex digits" in result.stderr
    write_events(fleet_yaml.parent, "eu", 3, [{**first, "id": "00010000000000ab"}])
    assert invoke("events", "--fleet", fleet_yaml, "--id", "00010000000000AB").stdout.count("\n") == 1


def test_following_events_goes_on_where_it_was(fleet_yaml: Path) -> None:
    path = write_events(fleet_yaml.parent, "eu", 1, [{"n": 1}])
    lines = read_events(fleet_yaml.parent / "events", follow=True, poll_s=0)
    assert json.loads(next(lines)) == {"n": 1}
    with path.open("a") as file:
        file.write('{"n": 2}\n{"n":')
    assert json.loads(next(lines)) == {"n": 2}
    with path.open("a") as file:
        file.write(" 3}\n")
    assert json.loads(next(lines)) == {"n": 3}


def test_config_check(fleet_yaml: Path) -> None:
    result = invoke("config", "check", "--fleet", fleet_yaml)
    assert result.exit_code == 0
    assert "2 regions, 6 sources, 5 routes" in result.stdout
    fleet_yaml.write_text(fleet_yaml.read_text().replace("regions:", "regoins:").replace("ehlo:", "elho:"))
    result = invoke("config", "check", "--fleet", fleet_yaml)
    assert result.exit_code == 1
    assert "regoins" in result.stderr
    assert "elho" in result.stderr
    assert invoke("config", "check", "--fleet", fleet_yaml.parent / "none.yaml").exit_code == 1


def test_config_check_looks_for_the_key_of_dns_failover(fleet_yaml: Path) -> None:
    content = yaml.safe_load(fleet_yaml.read_text())
    key = fleet_yaml.parent / "tsig.key"
    content["dns_failover"] = {
        "zone": "example.com",
        "name": "submit.example.com",
        "servers": ["192.0.2.53"],
        "key_file": str(key),
        "addresses": {"eu": ["192.0.2.1"], "us": ["192.0.2.2"]},
    }
    fleet_yaml.write_text(yaml.safe_dump(content))
    result = invoke("config", "check", "--fleet", fleet_yaml)
    assert result.exit_code == 0  # it is needed on the Fleet's machine
    assert f"dns_failover.key_file: {key}: cannot be read: No such file or directory" in result.stderr
    key.touch(0o600)
    key.write_text("hmac-sha256:fleet:c2VjcmV0LXNlY3JldC1zZWNyZXQ=\n")
    assert invoke("config", "check", "--fleet", fleet_yaml).stderr == ""
    key.chmod(0o644)
    assert "others may read it" in invoke("config", "check", "--fleet", fleet_yaml).stderr


def test_config_explain(fleet_yaml: Path) -> None:
    arguments = ("config", "explain", "--fleet", fleet_yaml, "--recipient", "a@gmail.test")
    result = invoke(*arguments, "--stream", "marketing", "--source", "127.0.0.12")
    assert result.exit_code == 0
    assert "google" in result.stdout
    assert "eu-2" in result.stdout
    assert invoke(*arguments, "--stream", "bulk").exit_code == 2
    assert invoke(*arguments, "--source", "192.0.2.1").exit_code == 2
    assert " none " in next(line for line in result.stdout.splitlines() if "limits.pool_shards" in line)
    result = invoke("config", "explain", "--fleet", fleet_yaml, "--recipient", "gmail.test")
    assert result.exit_code == 2
    assert "recipient 'gmail.test': no @" in result.stderr


def test_a_table_that_is_not_for_a_screen_is_not_folded(fleet_yaml: Path) -> None:
    shown = invoke("config", "explain", "--fleet", fleet_yaml, "--recipient", "a@gmail.test").stdout
    assert all(len(line.split()) >= 3 for line in shown.splitlines())


def test_status_shows_faults_of_tls() -> None:
    def row(sessions: int, fault: str = "", verified: str = "") -> dict[str, object]:
        return {"policy": "x", "verified": verified, "version": "", "fault": fault, "sessions": sessions}

    fleet = MemoryFleet()
    rows = [
        row(100),
        row(3, "certificate-expired"),
        row(2, "starttls-not-supported"),
        row(5, verified="plain"),
    ]
    fleet.state["regions"] = {"eu": {"tls": [*rows, row(1, "certificate-expired")]}, "us": {"tls": [row(9)]}}
    lines = [line for line in invoke("status", fleet=fleet).stdout.splitlines() if "TLS" in line]
    assert " ".join(lines).startswith(
        "eu: TLS, of 111 sessions: certificate-expired 4, starttls-not-supported 2,"
    )


def covering(**changes: Any) -> dict[str, Any]:
    """The snapshot of a region in order, with `changes` in what it says of its failover."""
    status = {
        "epoch": 7,
        "is_live": True,
        "lease_ms": 650,
        "refusal": "",
        "standby": "us",
        "standby_in_reach": True,
        "standby_complete": True,
        "standby_lacks": 0,
        "degraded_receipts": 0,
    }
    return {"counts": COUNTS, "failover": {**status, **changes}}


def standings(**regions: str) -> dict[str, dict[str, object]]:
    return {name: {"standing": standing, "epoch": 7, "weight": 0} for name, standing in regions.items()}


def test_status_shows_the_standing_of_each_region() -> None:
    fleet = MemoryFleet()
    fleet.state = {
        "fleet": "demo",
        "standing": standings(eu="live", us="suspect"),
        "regions": {"eu": covering(), "us": covering(standby="eu")},
    }
    result = invoke("status", fleet=fleet)
    assert result.exit_code == 0
    rows = [line.split() for line in result.stdout.splitlines()]
    assert ["region", "standing", "accepted"] in [row[:3] for row in rows]
    assert ["eu", "live", "9", "1", "5", "3", "0", "0", "0"] in rows
    assert ["us", "suspect", "9", "1", "5", "3", "0", "0", "0"] in rows
    assert ["all", "18", "2", "10", "6", "0", "0", "0"] in rows
    assert all(len(line) <= 80 for line in result.stdout.splitlines())
    assert "standby" not in result.stdout


def test_status_says_what_is_not_in_order_and_fails_if_a_region_does_nothing() -> None:
    fleet = MemoryFleet()
    alone = {"standby_in_reach": False, "refusal": "no standby region is within reach"}
    fleet.state = {
        "fleet": "demo",
        "standing": standings(eu="live", us="dead", ap="live", sa="live", af="returning"),
        "regions": {
            "eu": covering(**alone),
            "us": covering(is_live=False, lease_ms=0, standby="", **alone),
            "ap": covering(standby_in_reach=False, degraded_receipts=42, standby_lacks=10, standby="sa"),
            "sa": covering(lease_ms=0),
            "af": {"error": "no actor region:af"},
        },
    }
    result = invoke("status", fleet=fleet)
    lines = result.stdout.splitlines()
    assert "eu: its standby, us, is not in reach: new mail is refused" in lines
    assert "us: no lease: it sends nothing; no standby in reach: new mail is refused" in lines
    assert (
        "ap: its standby, sa, is not in reach: new mail is accepted without a copy; "
        "sa lacks copies of 10 messages; degraded receipts since its start: 42"
    ) in lines
    assert "sa: no lease: it sends nothing" in lines
    assert ["af", "returning", "none"] in [line.split() for line in lines]
    assert result.exit_code == 1
    assert result.stderr == (
        "error: no answer from af: no actor region:af; "
        "eu refuses new mail: no standby region is within reach; us is dead; sa has no lease\n"
    )
    fleet.state["standing"] = standings(ap="live")
    fleet.state["regions"] = {"ap": fleet.state["regions"]["ap"]}
    assert invoke("status", fleet=fleet).exit_code == 0  # it accepts and sends


def test_status_of_a_fleet_without_a_living_region_is_not_a_plain_table() -> None:
    fleet = MemoryFleet()
    dead = covering(is_live=False, lease_ms=0, standby_in_reach=False, degraded_receipts=42)
    fleet.state = {
        "fleet": "demo",
        "standing": standings(eu="dead", us="dead"),
        "regions": {"eu": dead, "us": dead},
    }
    result = invoke("status", "--json", fleet=fleet)
    assert (result.exit_code, result.stderr) == (1, "error: eu is dead; us is dead\n")
