"""What becomes of refusals: their class in the events, and the list of replies that no rule knows."""

import json
from pathlib import Path

import orjson
import pytest
import yaml
from click.testing import CliRunner

from engine.cli.bounces import bounces_group
from engine.region.outbox import event_line
from engine.spool.store import Spool
from engine.values.clock import SteadyClock
from tests.e2e.test_region_in_process import messages, personality, run_to_the_end
from tests.support.region import fleet


def events_of(path: Path) -> list[dict[str, object]]:
    spool = Spool.open(path, region_number=1, clock=SteadyClock())
    try:
        rows = [(seq, event) for seq, events in spool.read_outbox(10_000) for event in events]
        return [orjson.loads(event_line(seq, event)) for seq, event in rows]
    finally:
        spool.close()


def test_an_event_says_what_the_reply_means(tmp_path: Path) -> None:
    text = '{unknown: {pattern: "user[0-9]@", reply: "550 5.1.1 no such user"}}'
    with personality(tmp_path, text) as server:
        counts = run_to_the_end(fleet(tmp_path, server.addresses["it"][1]), messages(20))
    assert (counts["delivered"], counts["bounced"]) == (10, 10)
    for event in events_of(tmp_path / "spool" / "eu"):
        if event["event"] == "bounced":
            assert (event["category"], event["hard"], event["scope"]) == ("bad-mailbox", True, "recipient")
        elif event["event"] != "tls":  # what is said of a session, not of a message
            assert (event["category"], event["hard"], event["scope"]) == ("success", False, "recipient")


def test_an_event_of_the_first_release_can_still_be_shipped() -> None:
    line = orjson.loads(event_line(1, [5, 2, 7, 250, "", "ok", "mx", 0, 1, 1, "a@example.org", 0, "t", ""]))
    assert (line["category"], line["hard"], line["scope"]) == ("", False, "")
    assert line["possible_duplicate"]


def test_unknown_replies_are_listed(tmp_path: Path) -> None:
    text = '{unknown: {pattern: "user[0-9]@", reply: "554 xyzzy 17, plugh"}}'
    with personality(tmp_path, text) as server:
        config = fleet(tmp_path, server.addresses["it"][1])
        run_to_the_end(config, messages(20))
    fleet_file = tmp_path / "fleet.yaml"
    fleet_file.write_text(yaml.safe_dump(json.loads(config.model_dump_json(exclude_defaults=True))))
    listed = CliRunner().invoke(bounces_group, ["unknown", "--json", "--fleet", str(fleet_file)])
    assert listed.exit_code == 0, listed.output
    (row,) = json.loads(listed.stdout)
    assert (row["wording"], row["count"], row["region"]) == ("554 xyzzy # plugh", 10, "eu")
    table = CliRunner().invoke(bounces_group, ["unknown", "--fleet", str(fleet_file)])
    assert "554 xyzzy # plugh" in table.stdout
    config.spool.directory.rename(tmp_path / "elsewhere")
    nothing = CliRunner().invoke(bounces_group, ["unknown", "--fleet", str(fleet_file)])
    assert (nothing.exit_code, "every reply" in nothing.output) == (1, False)


@pytest.mark.parametrize(
    ("reply", "answer"),
    [
        ("550 5.1.1 User unknown", "bad-mailbox, hard, scope recipient, rule sendmail-user-unknown"),
        ("554 xyzzy", "other, soft, scope recipient, rule none"),
    ],
)
def test_a_reply_can_be_explained(reply: str, answer: str) -> None:
    assert CliRunner().invoke(bounces_group, ["explain", reply]).stdout.strip() == answer


@pytest.mark.parametrize("reply", ["", "  ", "250 2.0.0 ok", "354 go on"])
def test_what_is_no_refusal_is_not_explained(reply: str) -> None:
    assert CliRunner().invoke(bounces_group, ["explain", reply]).exit_code == 2
