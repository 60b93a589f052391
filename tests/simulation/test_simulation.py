"""The protocol keeps its promises in some hundred schedules, and the simulation would notice if it did not."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tests.simulation.__main__ as simulation
from tests.simulation.census import ORDERS
from tests.simulation.mutations import MUTATIONS
from tests.simulation.replay import OPTIONS, replay_command
from tests.simulation.schedule import Result, run

RECORDED = Path(__file__).parents[2] / "bench" / "results" / "failover_simulation.json"

SCHEDULES = 60
SHARDED_SCHEDULES = 15
GONE_SCHEDULES = 30
PAGED_SCHEDULES = 30
CLOCK_SCHEDULES = 30
# how many schedules may be needed to notice that a rule is missing, and of what faults (figures: docs/failover.md)
FOUND_WITHIN: dict[str, tuple[int, tuple[str, ...]]] = {
    "no-fence": (30, ()),
    "receipt-before-copy": (60, ("disk", "loss")),
    "no-lease-check": (30, ()),
    "accepts-without-asking": (60, ()),
    "adopts-from-suspects": (30, ()),
    "haste-fleet": (60, ()),
    "forgets-promises": (120, ()),
    "keeps-keys-to-itself": (45, ()),
    "crowded-fleet": (100, ("freeze", "fleet")),
    "counts-by-its-clock": (45, ()),
    "timed-fleet": (10, ()),
    "outbidding-fleet": (20, ()),
    "never-gives-way": (60, ()),
}
# these take a minute or more until they are found: `make soak` sets SENDFLEET_SOAK
FOUND_LATE: dict[str, tuple[int, tuple[str, ...]]] = {
    "keeps-stale-copies": (600, ()),
    "forgetful-fleet": (2500, ()),
}


# Schedules that broke a promise once, by seed, with the options under which they did. The rules themselves have tests
# in tests/unit/failover.
PLAIN: dict[str, bool] = {}
PAGES = {"pages": True}
SHARDS = {"shards": True}
ONCE_BROKEN: dict[int, dict[str, bool]] = {
    411: PLAIN,
    105722: PLAIN,
    108243: PLAIN,
    111942: PLAIN,
    116925: PLAIN,
    200897: PLAIN,
    302120: PLAIN,
    303453: PLAIN,
    401395: PLAIN,
    611459: PLAIN,
    4000236: PLAIN,
    4001403: PLAIN,
    5007396: PLAIN,
    6000587: PLAIN,
    7000344: PLAIN,
    7025144: PLAIN,
    7028365: PLAIN,
    7029725: PLAIN,
    8000019: PLAIN,
    8003087: PLAIN,
    10022196: PLAIN,
    12012711: PLAIN,
    12071068: PLAIN,
    12110724: PLAIN,
    14003453: PLAIN,
    14061173: PLAIN,
    14062776: PLAIN,
    15053992: PLAIN,
    17050638: PLAIN,
    18031502: PLAIN,
    23001644: SHARDS,
    40019098: PLAIN,
    41020080: PAGES,
    51005253: PAGES,
    70009457: PLAIN,
    71004782: PAGES,
    92015136: PLAIN,
    96007678: PLAIN,
    98001474: PLAIN,
    98005734: PLAIN,
    98006077: PLAIN,
    98006885: PLAIN,
    98008014: PLAIN,
    98009241: PLAIN,
    98010059: PLAIN,
    98010716: PLAIN,
    98012195: PLAIN,
    98013112: PLAIN,
    98013711: PLAIN,
    99000558: PAGES,
    99001956: PAGES,
    99002705: PAGES,
    99004726: PAGES,
    99006665: PAGES,
    99007150: PAGES,
    99008568: PAGES,
    99009293: PAGES,
    99009332: PAGES,
    99013789: PAGES,
}
# Those of them that still break with what was wrong then, as a mutation. The others do not any more, because a change
# of what is sent makes another schedule of the same seed.
STILL_FOUND_BY = {7000344: "trusting-fleet"}


def shown(failed: Result, **options: bool) -> str:
    return f"replay: {replay_command(failed.seed, **options)}\n{failed}"


@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_a_schedule_that_broke_a_promise_once_breaks_none(seed: int) -> None:
    result = run(seed, **ONCE_BROKEN[seed])
    assert result.violation == "", shown(result, **ONCE_BROKEN[seed])


@pytest.mark.parametrize("seed", STILL_FOUND_BY)
def test_it_still_breaks_with_what_was_wrong_then(seed: int) -> None:
    assert run(seed, **{**ONCE_BROKEN[seed], **MUTATIONS[STILL_FOUND_BY[seed]]}).violation


def test_every_schedule_that_is_recorded_as_broken_is_kept_with_its_options() -> None:
    runs = json.loads(RECORDED.read_text())["runs"]
    broken = {seed: {"pages": True} if r.get("pages") else {} for r in runs for seed in r["broken_seeds"]}
    assert broken
    assert {seed: ONCE_BROKEN.get(seed) for seed in broken} == broken


@pytest.mark.parametrize("mutation", ["moves-with-mail", ""])
def test_the_replay_that_is_printed_shows_the_same(
    mutation: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It names all options under which the schedule was found."""
    if not mutation:
        monkeypatch.setattr(simulation, "run", lambda seed, **options: found(seed, options))
    wanted = ["--mutation", mutation] if mutation else ["--shards", "--pages", "--gone", "--clocks"]
    assert simulation.main(["--first", "140", "--schedules", "1", *wanted]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if "replay: " in line)
    words = line.partition("python -m tests.simulation ")[2].split()
    assert set(wanted) <= set(words)
    words.remove("--trace")
    assert simulation.main(words) == 1
    assert not mutation or repr(run(140, **MUTATIONS[mutation]).violation) in capsys.readouterr().out


def found(seed: int, options: dict[str, Any]) -> Result:
    """What breaks under all options together only."""
    options.pop("trace", None)
    violation = "broken" if options == dict.fromkeys(OPTIONS, True) else ""
    return Result(seed, violation, (), accepted=0, sent_twice=0, events=0, drained_ms=-1)


def test_schedules_of_faults_keep_every_promise() -> None:
    results = [run(seed) for seed in range(SCHEDULES)]
    met = {order for result in results for order in result.orders}
    rare = {
        "crash or freeze amid adoption",
        "fleet restarts amid adoption",
        "clock jumps amid adoption",
        "disk lost amid adoption",
    }
    assert set(ORDERS) - met <= rare
    failed = [result for result in results if result.violation]
    assert not failed, shown(failed[0])


def test_so_do_schedules_of_regions_of_several_nodes() -> None:
    results = [run(seed, shards=True) for seed in range(SHARDED_SCHEDULES)]
    failed = [result for result in results if result.violation]
    assert not failed, shown(failed[0], shards=True)


def test_so_do_those_in_which_one_region_does_not_come_back() -> None:
    """The others accept and send: one of them that returns meanwhile becomes the standby of who has none."""
    results = [run(seed, gone=True) for seed in range(50_000, 50_000 + GONE_SCHEDULES)]
    failed = [result for result in results if result.violation]
    assert not failed, shown(failed[0], gone=True)


def test_so_do_those_in_which_keys_are_exported_in_several_entries() -> None:
    results = [run(seed, pages=True) for seed in range(70_000, 70_000 + PAGED_SCHEDULES)]
    failed = [result for result in results if result.violation]
    assert not failed, shown(failed[0], pages=True)


def test_so_do_those_in_which_clocks_are_set_back_and_a_fleet_goes_on_beside_the_next() -> None:
    results = [run(seed, clocks=True) for seed in range(CLOCK_SCHEDULES)]
    failed = [result for result in results if result.violation]
    assert not failed, shown(failed[0], clocks=True)


def test_a_shard_that_changes_its_standby_while_it_has_mail_is_found() -> None:
    assert run(140, **MUTATIONS["moves-with-mail"]).violation


@pytest.mark.parametrize("name", FOUND_WITHIN)
def test_a_broken_protocol_is_found(name: str) -> None:
    schedules, faults = FOUND_WITHIN[name]
    assert any(run(seed, only=faults, **MUTATIONS[name]).violation for seed in range(schedules))


@pytest.mark.skipif("SENDFLEET_SOAK" not in os.environ, reason="takes minutes; part of make soak")
@pytest.mark.parametrize("name", FOUND_LATE)
def test_a_protocol_that_is_broken_in_rare_cases_is_found(name: str) -> None:
    schedules, faults = FOUND_LATE[name]
    assert any(run(seed, only=faults, **MUTATIONS[name]).violation for seed in range(schedules))


def test_a_seed_is_the_same_schedule_in_every_process() -> None:
    seen = set()
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "tests.simulation", "--seed", "27", "--trace"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        seen.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)
    assert len(seen) == 1
