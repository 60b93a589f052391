"""Which regions may go on without the copies that they have kept."""

import asyncio

import pytest

from engine.region.leaving import CopiesNeeded, Leaving, Rest, obstacle


def test_regions_that_were_stopped_together_may_go_on() -> None:
    assert obstacle({"eu": Rest(7, True, (("us", 3),)), "us": Rest(7, True, (("eu", 5),))}) == ""


def test_a_fleet_that_has_never_kept_copies_waits_for_nothing() -> None:
    assert obstacle({"eu": Rest(), "us": Rest()}) == ""


def test_who_has_gone_on_already_holds_nobody_up() -> None:
    """Fleet died between two of them; or one was told to forget its copies: what is its own is on its disk."""
    assert obstacle({"eu": Rest(0, True), "us": Rest(7, True, (("eu", 5),))}) == ""


def test_a_new_region_of_whom_nobody_has_copies_is_none_whose_disk_is_lost() -> None:
    assert obstacle({"eu": Rest(7, True, (("us", 3),)), "us": Rest(7, True), "asia": Rest()}) == ""


def test_regions_that_were_stopped_at_different_times_may_not() -> None:
    why = obstacle({"eu": Rest(7, True), "us": Rest(8, True)})
    assert "eu, us have covered for each other, and were not stopped together" in why


@pytest.mark.parametrize(
    ("owner", "reason"), [("asia", "begins on an empty disk"), ("number 4", "is not in fleet.yaml")]
)
def test_the_last_copies_of_a_region_are_not_dropped(owner: str, reason: str) -> None:
    copies = ((owner, 3),)
    why = obstacle({"eu": Rest(7, True, copies), "us": Rest(7, True, copies), "asia": Rest()})
    holders = "eu holds copies of 3 of its messages and us holds copies of 3 of its messages"
    assert f"region {owner} {reason}, and {holders}" in why
    assert "set 1" in why


def test_who_waits_does_not_go_on_while_one_cannot_be_asked() -> None:
    asked: list[tuple[str, str]] = []

    async def ask(region: str, method: str) -> Rest:
        asked.append((region, method))
        return Rest(7, True) if region == "eu" else Rest()

    with pytest.raises(CopiesNeeded, match=r"eu have covered for us, and send nothing.*up --without"):
        asyncio.run(Leaving(["eu", "us", "asia"], ask).attempt(["us"]))
    assert asked == [("eu", "rest"), ("asia", "rest")]
    asyncio.run(Leaving(["us", "asia"], ask).attempt(["us"]))
