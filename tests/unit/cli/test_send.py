"""`send` from the command line: campaigns, .eml files, bad rows, repeats, and what it says when it fails."""

import csv
import os
from pathlib import Path

import pytest
import yaml

from engine.spool.errors import CampaignConflict
from engine.values.engagement import Engagement
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


def covered_fleet() -> MemoryFleet:
    fleet = MemoryFleet()
    fleet.config = fleet.config.model_copy(
        update={"fleet": fleet.config.fleet.model_copy(update={"replicas": 1})}
    )
    return fleet


def test_what_has_no_copy_yet_is_told(campaign: Path, tmp_path: Path) -> None:
    fleet = covered_fleet()
    fleet.degraded = True
    result = invoke("send", campaign, "--fleet", FLEET, fleet=fleet)
    assert "1200 without a copy in another region yet" in result.stdout
    mail(tmp_path / "1.eml", 1)
    mail(tmp_path / "2.eml", 2)
    result = invoke("send", tmp_path / "1.eml", tmp_path / "2.eml", "--fleet", FLEET, fleet=fleet)
    assert "2 messages accepted, 0 accepted before, 0 refused\n2 without a copy" in result.stdout
    fleet.degraded = False
    assert "without" not in invoke("send", tmp_path / "1.eml", "--fleet", FLEET, fleet=fleet).stdout


def test_with_copies_other_regions_take_the_parts_of_one_that_is_away(campaign: Path) -> None:
    fleet = covered_fleet()
    fleet.away = {"us"}
    result = invoke("send", campaign, "--fleet", FLEET, fleet=fleet)
    assert result.exit_code == 0, result.output
    assert "1200 recipients accepted" in result.stdout
    assert {region for region, _ in fleet.chunks} == {"eu"}
    assert "took the parts of region us: the actor is away" in result.stderr


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
    assert "no column city, which the template wants; there are email, name" in result.stderr

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


def test_a_template_that_works_for_nobody_is_refused_before_anything_is_sent(campaign: Path) -> None:
    fleet = MemoryFleet()
    campaign.write_text(campaign.read_text().replace("Dear {{ name }}", "Dear {{ name.first }}"))
    result = invoke("send", campaign, fleet=fleet)
    assert result.exit_code == 1
    assert "the message to u0@example.com (line 2) cannot be made: text:" in result.stderr
    assert "'first'" in result.stderr
    assert fleet.templates == []


def test_nobody_to_send_to(campaign: Path) -> None:
    (campaign.parent / "r.csv").write_text("email,name\n")
    result = invoke("send", campaign, fleet=MemoryFleet())
    assert "no recipients in" in result.stderr
    assert "0 recipients accepted" in result.stdout


def test_what_cannot_be_read_again_is_refused(campaign: Path) -> None:
    """Going on after an interruption reads the recipients again: a pipe has nothing any more."""
    (campaign.parent / "r.csv").unlink()
    os.mkfifo(campaign.parent / "r.csv")
    result = invoke("send", campaign, fleet=MemoryFleet())
    assert result.exit_code == 1
    assert "recipients.file: 'r.csv': allowed is a file" in result.stderr
    os.mkfifo(campaign.parent / "pipe.eml")
    result = invoke("send", campaign.parent / "pipe.eml", fleet=MemoryFleet())
    assert result.exit_code == 1
    assert "a pipe cannot be sent again" in result.stderr
    campaign.write_text(campaign.read_text().replace("r.csv", "/dev/stdin") + "  \n")
    result = invoke("send", campaign, fleet=MemoryFleet())
    assert result.exit_code == 1


@pytest.mark.parametrize(
    ("data", "accepted", "bad"),
    [
        (b"\xef\xbb\xbfemail,name\r\na@example.com,Ann\r\nb@example.com,Bob\r\n", 2, []),
        (b'email,name\na@example.com,"An\nn"\nb@example.com,"Bo""b"\n', 2, []),
        (b"email,name\na@example.com,\xff\nb@example.com,Bob\n", 1, ["not UTF-8"]),
        (b"email,name\na@example.com,Ann\nA@EXAMPLE.com,Ann\n", 1, ["the same address as line 2"]),
        (
            b"email,name,"
            + b",".join(b"c%d" % n for n in range(100))
            + b"\na@example.com,Ann"
            + b",x" * 100
            + b"\n",
            1,
            [],
        ),
        (
            b"email,name\na@example.com," + b"x" * (3 << 20) + b"\nb@example.com,Bob\n",
            1,
            ["longer than 65536 bytes"],
        ),
        (b'email,name\na@example.com,"open\nb@example.com,Bob\n', 1, ["quoting"]),
        (b"email,name\na@example.com,Ann\0\nb@example.com,Bob\n", 2, []),
    ],
    ids=["bom-crlf", "quotes", "utf8", "twice", "100-columns", "long-line", "open-quote", "nul"],
)
def test_files_as_people_have_them(campaign: Path, data: bytes, accepted: int, bad: list[str]) -> None:
    (campaign.parent / "r.csv").write_bytes(data)
    fleet = MemoryFleet()
    result = invoke("send", campaign, fleet=fleet)
    assert result.exit_code == 0, result.output
    assert len(fleet.recipients()) == accepted
    report = campaign.parent / "r.bad-rows.csv"
    reasons = [row["reason"] for row in csv.DictReader(report.open())] if report.exists() else []
    assert len(reasons) == len(bad)
    assert all(part in reason for part, reason in zip(bad, reasons, strict=True)), reasons


def test_json_lines_with_what_is_no_text(campaign: Path) -> None:
    rows = [
        '{"email": "a@example.com", "name": {"first": "Ann"}}',
        '{"email": "b@example.com", "name": ["Bob"]}',
        '{"email": "c@example.com", "name": null}',
        '{"email": "d@example.com", "name": 7}',
        '{"email": "e@example.com"}',
        "[" * 100_000,
        '{"email": ["f@example.com"], "name": "F"}',
    ]
    (campaign.parent / "r.jsonl").write_text("\n".join(rows))
    campaign.write_text(campaign.read_text().replace("r.csv", "r.jsonl"))
    fleet = MemoryFleet()
    result = invoke("send", campaign, fleet=fleet)
    assert result.exit_code == 0, result.output
    assert sorted(fleet.recipients()) == ["c@example.com", "d@example.com"]
    lines = [row["line"] for row in csv.DictReader((campaign.parent / "r.bad-rows.csv").open())]
    assert lines == ["1", "2", "5", "6", "7"]


def test_a_directory_of_broken_eml_files(tmp_path: Path) -> None:
    broken = {
        "empty": b"",
        "no-header": b"hello\r\n",
        "no-recipient": b"From: a@example.com\r\n\r\nx",
        "bad-address": b"From: a@example.com\r\nTo: b at example.org\r\n\r\nx",
        "binary": bytes(range(256)) * 100,
    }
    for name, data in broken.items():
        (tmp_path / f"{name}.eml").write_bytes(data)
    (tmp_path / "dangling.eml").symlink_to(tmp_path / "nothing")
    (tmp_path / "directory.eml").mkdir()
    mail(tmp_path / "good.eml", 1)
    fleet = MemoryFleet()
    result = invoke("send", tmp_path, fleet=fleet)
    assert result.exit_code == 1
    assert "1 messages accepted, 0 accepted before, 5 refused" in result.stdout
    for name in broken:
        assert f"{name}.eml: " in result.stderr
    assert "Traceback" not in result.output


def test_the_engaged_are_sent_to_first(campaign: Path) -> None:
    """Their rows stand last in the file; a value that is none is a bad row."""
    rows = [f"user{n}@example.com,x,{n // 4}\n" for n in range(8)]
    (campaign.parent / "r.csv").write_text("".join(["email,name,opens\n", *rows, "z@example.com,x,?\n"]))
    content = yaml.safe_load(campaign.read_text())
    content["recipients"]["engagement"] = "opens"
    campaign.write_text(yaml.safe_dump(content))
    fleet = MemoryFleet()
    result = invoke("send", campaign, fleet=fleet)
    assert result.exit_code == 0, result.output
    sent = {
        number: (chunk.engagement, chunk.recipients) for (_, number), chunk in sorted(fleet.chunks.items())
    }
    assert sent == {
        0: (Engagement.ENGAGED, tuple(f"user{n}@example.com" for n in range(4, 8))),
        1: (Engagement.NORMAL, tuple(f"user{n}@example.com" for n in range(4))),
    }
    assert "'?': allowed is a number" in (campaign.parent / "r.bad-rows.csv").read_text()
    assert "in this order: 4 engaged, 4 normal, 0 unengaged" in result.stdout
    assert "in this order: 4 engaged" in invoke("send", "--dry-run", campaign, fleet=fleet).stdout
