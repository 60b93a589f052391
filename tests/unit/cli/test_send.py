"""`send` from the command line: campaigns, .eml files, bad rows, repeats, and what it says when it fails."""

import csv
from pathlib import Path

import pytest
import yaml

from engine.spool.errors import CampaignConflict
from tests.unit.cli.support import FLEET, MemoryFleet, invoke


@pytest.fixture
def campaign(tmp_path: Path) -> Path:
    rows = "".join(f"u{n}@example.com,Name {n}\n" for n in range(1200))
    (tmp_path / "r.csv").write_text("email,name\n" + rows + "nobody,x\nU0@example.com,again\n")
    path = tmp_path / "campaign.yaml"
    content = {
        "id": "c1",
        "sender": "b@example.com",
        "from": "Shop <s@example.com>",
        "subject": "Hi {{ name }}",
        "text": "Dear {{ name }}\n",
        "recipients": {"file": "r.csv"},
    }
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_campaign_and_the_same_again(campaign: Path) -> None:
    fleet = MemoryFleet()
    result = invoke("send", campaign, "--fleet", FLEET, fleet=fleet)
    assert result.exit_code == 0, result.output
    assert sorted(fleet.recipients()) == sorted(f"u{n}@example.com" for n in range(1200))
    assert "1200 recipients accepted, 0 accepted before, 0 refused, 2 bad rows" in result.stdout
    report = campaign.parent / "r.bad-rows.csv"
    assert [row["line"] for row in csv.DictReader(report.open())] == ["1202", "1203"]
    assert str(report) in result.stderr
    assert "1 of them repeated addresses" in result.stderr

    again = invoke("send", campaign, "--fleet", FLEET, fleet=fleet)
    assert "0 recipients accepted, 1200 accepted before" in again.stdout
    assert len(fleet.recipients()) == 1200


def test_refused_recipients_stand_in_the_report(campaign: Path) -> None:
    fleet = MemoryFleet()
    fleet.refused = {"u7@example.com"}
    report = campaign.parent / "report.csv"
    result = invoke("send", campaign, "--bad-rows", report, fleet=fleet)
    assert "1199 recipients accepted, 0 accepted before, 1 refused, 2 bad rows" in result.stdout
    assert "9,refused by the region: recipient: no,u7@example.com" in report.read_text()


def test_a_dry_run_renders_and_sends_nothing(campaign: Path) -> None:
    fleet = MemoryFleet()
    result = invoke("send", "--dry-run", campaign, fleet=fleet)
    assert result.exit_code == 0
    assert "Subject: Hi Name 0\n" in result.stdout
    assert "dry run: 1200 recipients, 2 bad rows; nothing was sent" in result.stdout
    assert not fleet.templates


def test_only_regions_with_a_source_for_the_stream_are_used(campaign: Path) -> None:
    fleet = MemoryFleet()
    sources = tuple(
        s for s in fleet.config.sources if s.region == "us" or "marketing" not in map(str, s.streams)
    )
    fleet.config = fleet.config.model_copy(update={"sources": sources})
    assert invoke("send", campaign, fleet=fleet).exit_code == 0
    assert {region for region, _ in fleet.chunks} == {"us"}
    none = tuple(s for s in sources if "marketing" not in map(str, s.streams))
    fleet.config = fleet.config.model_copy(update={"sources": none})
    result = invoke("send", campaign, fleet=fleet)
    assert result.exit_code == 1
    assert "no source of the fleet carries the stream marketing" in result.stderr


def test_failures_are_one_message_and_status_1(campaign: Path, tmp_path: Path) -> None:
    fleet = MemoryFleet()
    fleet.error = CampaignConflict("campaign 'c1' exists with another template")
    result = invoke("send", campaign, fleet=fleet)
    assert result.exit_code == 1
    assert "error: campaign 'c1' exists with another template" in result.stderr
    assert "Traceback" not in result.stderr

    campaign.write_text(campaign.read_text().replace("{{ name }}", "{{ city }}"))
    result = invoke("send", campaign, fleet=fleet)
    assert result.exit_code == 1
    assert "no column city; there are email, name" in result.stderr

    campaign.write_text("id: x\n")
    result = invoke("send", campaign, fleet=fleet)
    assert result.exit_code == 1
    assert "campaign.yaml: 5 problems" in result.stderr

    assert invoke("send", campaign, campaign, fleet=fleet).exit_code == 2
    assert invoke("send", tmp_path / "none.yaml", fleet=fleet).exit_code == 2


def mail(path: Path, number: int) -> None:
    path.write_text(f"From: a@example.com\nTo: b{number}@example.org\nSubject: {number}\n\nx\n")


def test_eml_files_and_directories(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    for number in range(5):
        mail(tmp_path / "d" / f"{number}.eml", number)
    mail(tmp_path / "single.eml", 9)
    fleet = MemoryFleet()
    result = invoke("send", tmp_path / "d", tmp_path / "single.eml", "--stream", "notification", fleet=fleet)
    assert result.exit_code == 0, result.output
    assert "6 messages accepted, 0 accepted before, 0 refused" in result.stdout
    sent = [message for batch in fleet.batches.values() for message in batch]
    assert {message.recipients[0] for message in sent} == {f"b{n}@example.org" for n in (0, 1, 2, 3, 4, 9)}

    # a file more in the directory changes nothing for the others
    mail(tmp_path / "d" / "00.eml", 100)
    again = invoke("send", tmp_path / "d", "--stream", "notification", fleet=fleet)
    assert "1 messages accepted, 5 accepted before" in again.stdout
    assert len(fleet.batches) == 7


def test_a_bad_eml_is_told_and_the_others_are_sent(tmp_path: Path) -> None:
    mail(tmp_path / "1.eml", 1)
    (tmp_path / "2.eml").write_text("no message")
    fleet = MemoryFleet()
    result = invoke("send", tmp_path, fleet=fleet)
    assert result.exit_code == 1
    assert "2.eml: not a message" in result.stderr
    assert len(fleet.batches) == 1
    dry = invoke("send", "--dry-run", tmp_path, fleet=MemoryFleet())
    assert dry.exit_code == 1
    assert "1 messages, 1 files that cannot be sent" in dry.stdout


def test_the_envelope_from_the_command_line(tmp_path: Path) -> None:
    mail(tmp_path / "1.eml", 1)
    fleet = MemoryFleet()
    options = (
        "--sender",
        "",
        "--recipient",
        "x@Example.org",
        "--recipient",
        "y@example.org",
        "--tenant",
        "acme",
    )
    assert invoke("send", tmp_path / "1.eml", *options, fleet=fleet).exit_code == 0
    [[message]] = fleet.batches.values()
    assert (message.sender, message.recipients) == ("", ("x@example.org", "y@example.org"))
    assert message.tenant == "acme"
    assert invoke("send", tmp_path / "1.eml", "--recipient", "x", fleet=fleet).exit_code == 2
    assert invoke("send", tmp_path / "1.eml", "--stream", "bulk", fleet=fleet).exit_code == 2
