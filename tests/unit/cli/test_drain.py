"""drain, undrain, and what `status` says of it."""

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from engine.cli.drain import build_drain, drain_line, need_line
from engine.cli.main import build_cli
from engine.cli.terminal import CommandGroup
from engine.cli.top import _place
from engine.config.load import parse_fleet
from tests.support.fleets import shards_data
from tests.unit.cli.support import FLEET, MemoryFleet, invoke


def snapshot(condition: str, left: int = 0, **status: Any) -> dict[str, Any]:
    hand_over = {
        "condition": condition,
        "left": left,
        "offered": {},
        "takers": ["us"],
        "refusals": {},
        **status,
    }
    return {"fleet": "demo", "regions": {"eu": {"hand_over": hand_over}, "us": {}}}


def wait(fleet: MemoryFleet, states: list[dict[str, Any]], *options: str) -> Result:
    """`drain eu --wait` on a clock that moves by one second and one state with each look."""
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += 1.0
        fleet.state = states[min(int(now), len(states) - 1)]

    fleet.state = states[0]
    drain, _ = build_drain(lambda path: fleet, read=lambda path: fleet.config, sleep=sleep, now_s=lambda: now)
    group = CommandGroup(commands={"drain": drain})
    return CliRunner().invoke(group, ["drain", "eu", "--wait", *options])


def test_drain_and_undrain() -> None:
    fleet = MemoryFleet()
    result = invoke("drain", "eu", fleet=fleet)
    assert (result.exit_code, fleet.draining) == (0, {"eu"})
    assert "being drained already" in invoke("drain", "eu", fleet=fleet).stderr
    assert invoke("undrain", "eu", fleet=fleet).exit_code == 0
    assert invoke("drain", "eu", fleet=fleet).exit_code == 0
    assert invoke("drain", "eu", "--end", fleet=fleet).stdout == "region eu takes mail again\n"
    again = invoke("undrain", "eu", fleet=fleet)
    assert (again.exit_code, again.stderr) == (1, "error: region eu is not being drained\n")
    wrong = invoke("drain", "mars", fleet=fleet)
    assert (wrong.exit_code, "allowed are eu, us" in wrong.stderr) == (1, True)


@pytest.mark.parametrize("command", [("drain",), ("drain", "--end"), ("undrain",)])
def test_a_name_that_is_none_is_told_also_if_no_fleet_runs(command: tuple[str, ...]) -> None:
    def nothing_runs(path: Path) -> MemoryFleet:
        raise ConnectionError("no fleet runs here")

    cli = build_cli(nothing_runs)
    wrong = CliRunner().invoke(cli, [*command, "mars", "--fleet", str(FLEET)])
    assert (wrong.exit_code, wrong.stderr) == (1, "error: region 'mars': allowed are eu, us\n")
    right = CliRunner().invoke(cli, [*command, "eu", "--fleet", str(FLEET)])
    assert (right.exit_code, right.stderr) == (1, "error: no fleet runs here\n")


@pytest.mark.parametrize("options", [("--timeout", "5"), ("--end", "--wait"), ("--wait", "--timeout", "-1")])
def test_options_that_make_no_sense_together(options: tuple[str, ...]) -> None:
    assert invoke("drain", "eu", *options, fleet=MemoryFleet()).exit_code == 2


def test_wait_returns_when_nothing_is_left_and_says_how_far_it_is() -> None:
    states = [snapshot("draining", 900, offered={"us": 500}), snapshot("draining", 400), snapshot("drained")]
    result = wait(MemoryFleet(), states)
    assert (result.exit_code, result.stdout) == (0, "region eu: drained\n")
    assert result.stderr.splitlines() == [
        "region eu: draining, 900 left, 500 offered to us",
        "region eu: draining, 400 left",
    ]


def test_wait_goes_on_over_a_region_that_does_not_answer() -> None:
    silent = {"fleet": "demo", "regions": {"eu": {"region": "eu", "error": "no answer"}}}
    result = wait(MemoryFleet(), [snapshot("draining", 1), silent, snapshot("drained")])
    assert (result.exit_code, "region eu: no answer" in result.stderr) == (0, True)


def test_wait_fails_when_time_is_up_or_somebody_has_ended_it() -> None:
    stuck = snapshot("draining", 7, takers=[], refusals={"us": "it is being drained itself"})
    result = wait(MemoryFleet(), [stuck], "--timeout", "3")
    assert result.exit_code == 1
    assert (
        "not drained after 3 s: draining, 7 left, us takes nothing: it is being drained itself"
        in result.stderr
    )
    result = wait(MemoryFleet(), [snapshot("draining", 7), snapshot("up")])
    assert (result.exit_code, "not being drained any more" in result.stderr) == (1, True)


def test_status_shows_it() -> None:
    fleet = MemoryFleet()
    fleet.state = snapshot("draining", 12)
    fleet.state["regions"]["eu"]["outstanding"] = {"default.0": 4, "google.0": 3}
    assert "eu: draining, 12 left, 7 at its pools" in invoke("status", fleet=fleet).stdout
    fleet.state = snapshot("drained")
    assert "eu: drained\n" in invoke("status", fleet=fleet).stdout
    fleet.state = snapshot("up")
    assert "drain" not in invoke("status", fleet=fleet).stdout
    fleet.state = {
        "fleet": "demo",
        "health": {"eu": "drained, down"},
        "regions": {"eu": {"error": "no answer"}},
    }
    assert "eu: drained, and does not answer" in invoke("status", fleet=fleet).stdout


def test_nobody_within_reach_is_said() -> None:
    region = snapshot("draining", 3, takers=[])["regions"]["eu"]
    assert drain_line(region) == "draining, 3 left, no other region is within reach"
    assert (
        drain_line(snapshot("draining")["regions"]["eu"])
        == "draining, its keys are on their way to the others"
    )


def sharded(**sections: Any) -> MemoryFleet:
    fleet = MemoryFleet()
    fleet.config = parse_fleet(shards_data(**sections))
    return fleet


def test_a_region_is_drained_with_all_its_shards_and_a_shard_alone() -> None:
    fleet = sharded()
    result = invoke("drain", "eu", fleet=fleet)
    assert (result.exit_code, fleet.draining) == (0, {"eu-1", "eu-2"})
    assert result.stdout.count("is being drained") == 2
    assert invoke("undrain", "eu-1", fleet=fleet).exit_code == 0
    assert fleet.draining == {"eu-2"}
    result = invoke("undrain", "eu", fleet=fleet)
    assert (result.exit_code, fleet.draining) == (0, set())
    assert invoke("undrain", "eu", fleet=fleet).exit_code == 1


def test_waiting_for_a_region_is_waiting_for_each_of_its_shards() -> None:
    fleet = sharded()
    done, busy = snapshot("drained")["regions"]["eu"], snapshot("draining", 7)["regions"]["eu"]
    states: list[dict[str, Any]] = [
        {"fleet": "demo", "regions": {"eu-1": first, "eu-2": second}}
        for first, second in ((busy, busy), (done, busy), (done, done))
    ]
    result = wait(fleet, states)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-2:] == ["region eu-1: drained", "region eu-2: drained"]


def test_with_copies_the_shards_of_a_region_are_drained_one_after_the_other() -> None:
    fleet = sharded(fleet={"replicas": 1})
    result = invoke("drain", "eu", fleet=fleet)
    assert (result.exit_code, fleet.draining) == (1, set())
    assert "drain one of eu-1, eu-2, stop its node" in result.stderr
    assert invoke("drain", "eu-2", fleet=fleet).exit_code == 0


def test_status_and_top_say_of_which_region_a_shard_is() -> None:
    fleet = sharded()
    counts = {"counts": {"accepted": 3}}
    fleet.state = {"fleet": "demo", "shard_of": {"eu-1": "eu"}, "regions": {"eu-1": counts, "us": counts}}
    lines = invoke("status", fleet=fleet).stdout.splitlines()
    assert any(line.split()[:2] == ["eu/eu-1", "3"] for line in lines)
    assert any(line.split()[:2] == ["us", "3"] for line in lines)
    assert _place("eu-1", {"eu-1": "eu"}) == "eu/eu-1"
    assert _place("us", {"eu-1": "eu"}) == "us"


def test_a_region_in_need_says_of_what_and_who_is_asked() -> None:
    need = {"in_need": [], "overloaded": [], "handed_over": 40}
    assert need_line(snapshot("up", **need)["regions"]["eu"]) is None
    assert need_line({}) is None
    rows = [[f"mx{n}.example", 2, "shop", 60 * n, "rate"] for n in range(1, 6)]
    line = need_line(snapshot("up", **{**need, "overloaded": rows})["regions"]["eu"])
    assert line == (
        "is overloaded: mail to mx1.example, mx2.example, mx3.example and 2 more has waited for 5 min, "
        "asks us to take it, 40 handed over"
    )
    blocked = snapshot("up", takers=[], **{**need, "in_need": [["google", 2, "shop"]]})
    assert need_line(blocked["regions"]["eu"]) == (
        "cannot send to google for long, no other region takes anything, 40 handed over"
    )
    fleet = MemoryFleet()
    fleet.state = blocked
    result = invoke("status", fleet=fleet)
    assert "eu: cannot send to google for long" in result.stdout


def test_an_order_reaches_the_shards_that_answer() -> None:
    class Silent(MemoryFleet):
        async def drain(self, region: str, *, end: bool = False) -> bool:
            if region == "eu-1":
                raise ConnectionError("it is away")
            return await super().drain(region, end=end)

    fleet = Silent()
    fleet.config = parse_fleet(shards_data())
    result = invoke("drain", "eu", fleet=fleet)
    assert (result.exit_code, fleet.draining) == (1, {"eu-2"})
    assert "eu-2 has the order, but not eu-1: it is away: repeat it" in result.stderr
