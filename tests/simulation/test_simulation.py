"""The protocol keeps its promises in some hundred schedules, and the simulation would notice if it did not."""

import os
import subprocess
import sys

import pytest

from tests.simulation.census import ORDERS
from tests.simulation.mutations import MUTATIONS
from tests.simulation.schedule import run

SCHEDULES = 60
SHARDED_SCHEDULES = 15
GONE_SCHEDULES = 30
PAGED_SCHEDULES = 30
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
}
# these take a minute or more until they are found: `make soak` sets SENDFLEET_SOAK
FOUND_LATE: dict[str, tuple[int, tuple[str, ...]]] = {
    "keeps-stale-copies": (600, ()),
    "forgetful-fleet": (2500, ()),
}


# Schedules that broke a promise once, each with what was wrong then as a mutation (None: that breaks nothing in it any
# more, because a change of what is sent makes another schedule of the same seed). The rules themselves have tests in
# tests/unit/failover.
ONCE_BROKEN: dict[int, str | None] = {
    411: None,
    105722: None,
    108243: None,
    111942: None,
    116925: None,
    200897: None,
    302120: None,
    303453: None,
    401395: None,
    611459: None,
    4000236: None,
    4001403: None,
    6000587: None,
    7000344: "trusting-fleet",
    7025144: None,
    7029725: None,
    8000019: None,
    7028365: None,
    8003087: None,
    10022196: None,
    12012711: None,
    12071068: None,
    12110724: None,
    14003453: None,
    14061173: None,
    15053992: None,
    17050638: None,
    18031502: None,
    40019098: None,
    51005253: None,
    70009457: None,
}


@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_a_schedule_that_broke_a_promise_once_breaks_none(seed: int) -> None:
    assert run(seed).violation == ""
    mutation = ONCE_BROKEN[seed]
    if mutation is not None:
        assert run(seed, **MUTATIONS[mutation]).violation


def test_schedules_of_faults_keep_every_promise() -> None:
    results = [run(seed) for seed in range(SCHEDULES)]
    met = {order for result in results for order in result.orders}
    rare = {"fleet restarts amid adoption", "clock jumps amid adoption", "disk lost amid adoption"}
    assert set(ORDERS) - met <= rare
    failed = [result for result in results if result.violation]
    assert not failed, f"replay: python -m tests.simulation --seed {failed[0].seed} --trace\n{failed[0]}"


def test_so_do_schedules_of_regions_of_several_nodes() -> None:
    results = [run(seed, shards=True) for seed in range(SHARDED_SCHEDULES)]
    failed = [result for result in results if result.violation]
    assert not failed, (
        f"replay: python -m tests.simulation --shards --seed {failed[0].seed} --trace\n{failed[0]}"
    )


def test_so_do_those_in_which_one_region_does_not_come_back() -> None:
    """The others accept and send: one of them that returns meanwhile becomes the standby of who has none."""
    results = [run(seed, gone=True) for seed in range(50_000, 50_000 + GONE_SCHEDULES)]
    failed = [result for result in results if result.violation]
    assert not failed, (
        f"replay: python -m tests.simulation --gone --seed {failed[0].seed} --trace\n{failed[0]}"
    )


def test_so_do_those_in_which_keys_are_exported_in_several_entries() -> None:
    results = [run(seed, pages=True) for seed in range(70_000, 70_000 + PAGED_SCHEDULES)]
    failed = [result for result in results if result.violation]
    assert not failed, (
        f"replay: python -m tests.simulation --pages --seed {failed[0].seed} --trace\n{failed[0]}"
    )


def test_a_shard_that_changes_its_standby_while_it_has_mail_is_found() -> None:
    assert run(140, **MUTATIONS["moves-with-mail"]).violation


def test_a_key_whose_receipt_was_given_while_the_standby_was_silent_and_that_it_never_hears_of_is_found() -> (
    None
):
    assert run(186, **MUTATIONS["owes-no-keys"]).violation


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
