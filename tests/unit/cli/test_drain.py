"""drain, undrain, and what `status` says of it."""

from typing import Any

import pytest
from click.testing import CliRunner, Result

from engine.cli.drain import build_drain, drain_line
from engine.cli.terminal import CommandGroup
from tests.unit.cli.support import MemoryFleet, invoke


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
    drain, _ = build_drain(lambda path: fleet, sleep=sleep, now_s=lambda: now)
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
