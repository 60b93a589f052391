"""A trial on a fleet that settles at once: what is submitted, counted and reported."""

import asyncio
import json
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from engine.config.schema import FleetConfig
from engine.ops.process import ProcessUsage
from engine.trial import run as run_module
from engine.trial.load import batch_of, batch_size, body_of, number_of
from engine.trial.outcomes import Outcomes
from engine.trial.plot import write_plot
from engine.trial.run import Trial, TrialFailed, TrialFleet, run_trial, sums
from engine.trial.text import lines_of, write_json
from engine.values.message import ItemError, Message, Receipt
from tests.support.region import fleet


class InstantFleet:
    """Settles everything in `submit`; with `writes_events` it writes the events that a region would."""

    def __init__(self, config: FleetConfig, *, writes_events: bool = True) -> None:
        self.config = config
        self.counts = dict.fromkeys(("accepted", "delivered", "bounced", "queued"), 0)
        self.messages: list[Message] = []
        self.refused: set[str] = set()
        self.lost: set[str] = set()
        self._writes_events = writes_events

    async def submit(self, batch: Sequence[Message]) -> Receipt:
        errors, ids, lines = [], [], []
        for index, message in enumerate(batch):
            self.messages.append(message)
            (recipient,) = message.recipients
            if recipient in self.refused:
                errors.append(ItemError(index, "recipient", recipient, "not today"))
                ids.append(())
                continue
            ids.append((index,))
            self.counts["accepted"] += 1
            if recipient in self.lost:
                continue
            kind = "bounced" if recipient.startswith("user3@") else "delivered"
            self.counts[kind] += 1
            lines.append(
                json.dumps(
                    {
                        "event": kind,
                        "recipient": recipient,
                        "campaign": message.campaign,
                        "at_ms": int(time.time() * 1000) + 50,
                    }
                )
            )
        if self._writes_events and lines:
            log = Path(self.config.events.directory) / "eu" / "events-000001.jsonl"
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a") as file:
                file.write("\n".join([*lines, *lines]) + "\n")  # the log is at least once
        return Receipt("eu", tuple(ids), tuple(errors))

    async def snapshot(self) -> dict[str, Any]:
        region = {
            "region": "eu",
            "counts": dict(self.counts),
            "outstanding": {},
            "scheduler": {},
            "spool": {},
        }
        return {"regions": {"eu": region}}

    async def usage(self) -> dict[str, ProcessUsage]:
        return {"region:eu": ProcessUsage(pid=1, cpu_s=1.0, resident_bytes=2 << 20, anonymous_bytes=1 << 20)}

    def counted(self) -> list[Message]:
        return [message for message in self.messages if message.recipients[0].startswith("user")]


def run(client: TrialFleet, **asked: Any) -> Any:
    return asyncio.run(run_trial(client, Trial(**{"messages": 450, "size": 400, **asked})))


def test_the_report_counts_the_trials_own_messages_each_once(tmp_path: Path) -> None:
    client = InstantFleet(fleet(tmp_path, 2525))
    report = run(client, destinations=3)
    assert (report.accepted, report.delivered, report.bounced, report.unsettled) == (450, 449, 1, 0)
    recipients = [message.recipients[0] for message in client.counted()]
    assert sorted(recipients) == sorted(f"user{n}@d{n % 3}.bench.invalid" for n in range(450))
    assert len(client.messages) == 453  # one ahead for each destination
    assert report.receipt.count == 3  # batches
    assert report.delivery.count == 449
    assert 49 <= report.delivery.p50_ms < 20_000
    assert min(report.accepted_per_s, report.acknowledged_per_s, report.delivered_per_s) > 0
    assert set(report.actors) == {"region:eu", "client"}
    assert report.notes == []


def test_without_events_the_counters_are_taken_and_the_report_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "EVENTS_S", 0.0)
    report = run(InstantFleet(fleet(tmp_path, 2525), writes_events=False))
    assert (report.delivered, report.bounced, report.delivery) == (449, 1, None)
    assert report.delivered_per_s > 0
    assert "events logs" in report.notes[0]
    assert any("latency not measured" in line for line in lines_of(report))


def test_messages_that_are_refused_or_never_settled_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "STALL_S", 0.0)
    client = InstantFleet(fleet(tmp_path, 2525))
    client.refused = {"user7@d0.bench.invalid"}
    client.lost = {"user8@d0.bench.invalid", "user9@d0.bench.invalid"}
    report = run(client)
    assert (report.accepted, report.refused, report.unsettled) == (449, 1, 2)
    assert report.first_refusal == "recipient user7@d0.bench.invalid: not today"
    assert any("not settled 2" in line for line in lines_of(report))


def test_a_trial_that_cannot_be_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    client = InstantFleet(fleet(tmp_path, 2525))
    with pytest.raises(TrialFailed, match=r"size 99999999999.*max_message_size"):
        run(client, size=99_999_999_999)
    assert client.messages == []


def test_a_receiver_that_takes_nothing_ends_the_trial_before_it_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "WARM_UP_S", 0.0)
    client = InstantFleet(fleet(tmp_path, 2525))
    client.lost = {"ahead0@d0.bench.invalid"}
    with pytest.raises(TrialFailed, match="of 1 messages ahead of the trial 0 were delivered"):
        run(client)
    assert client.counted() == []


def test_the_report_can_be_written_and_drawn(tmp_path: Path) -> None:
    report = run(InstantFleet(fleet(tmp_path, 2525)))
    write_json(report, tmp_path / "report.json")
    write_plot(report, tmp_path / "plot.svg")
    read = json.loads((tmp_path / "report.json").read_text())
    assert (read["delivered"], read["actors"]["region:eu"]["peak_anonymous_bytes"]) == (449, 1 << 20)
    assert {limit["name"] for limit in read["limits"]} >= {
        "rate",
        "connections",
        "credits",
        "spool",
        "client",
    }
    picture = ElementTree.parse(tmp_path / "plot.svg")
    assert len(picture.findall("{http://www.w3.org/2000/svg}polyline")) == 3


# -- the load


@pytest.mark.parametrize("size", [300, 2048, 10_240])
def test_bodies_have_the_size_asked_for(size: int) -> None:
    assert len(body_of(1, size)) == size
    assert body_of(1, size).endswith(b"\r\n")


def test_batches_are_small_at_low_rates_and_with_large_messages() -> None:
    assert batch_size(2048, 0.0) == 200
    assert batch_size(2048, 50.0) == 5
    assert batch_size(2048, 1.0) == 1
    assert batch_size(1 << 20, 0.0) == 4
    assert batch_size(100 << 20, 0.0) == 1


def test_a_recipient_carries_its_number() -> None:
    (message,) = batch_of(range(17, 18), ["a.example"], 300, "c")
    assert number_of(message.recipients[0]) == 17


# -- the outcomes


def event(number: int, kind: str = "delivered", campaign: str = "mine", at_ms: int = 5) -> str:
    return (
        json.dumps(
            {"event": kind, "recipient": f"user{number}@x", "campaign": campaign, "at_ms": at_ms + number}
        )
        + "\n"
    )


def test_only_own_whole_new_lines_count(tmp_path: Path) -> None:
    log = tmp_path / "eu" / "events-000001.jsonl"
    log.parent.mkdir()
    log.write_text(event(0))
    outcomes = Outcomes(tmp_path, "mine", 10)
    torn = event(4)
    with log.open("a") as file:
        file.write(event(1) + event(1, at_ms=90) + event(2, campaign="mine-too") + event(3, "bounced"))
        file.write(event(5, "deferred") + torn[:20])
    outcomes.read()
    assert (outcomes.delivered, outcomes.settled) == (1, 2)
    with log.open("a") as file:
        file.write(torn[20:])
    (tmp_path / "eu" / "events-000002.jsonl").write_text(event(3, "bounced") + event(6, "expired"))
    outcomes.read()
    assert (outcomes.delivered, outcomes.failed["bounced"], outcomes.settled) == (2, 1, 4)
    assert list(outcomes.delivered_ms)[:5] == [0, 6, 0, 0, 9]


def test_snapshot_of_a_region_that_is_down_counts_nothing() -> None:
    assert sums({"regions": {"eu": {"region": "eu", "error": "gone"}}})["delivered"] == 0
