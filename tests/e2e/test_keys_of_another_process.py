"""What was submitted under a key is accepted once by regions that cover for each other, whichever of them is away when
another process submits it again: a message's own key, and the key of a batch."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from actors import submitting
from actors.region_calls import RegionCalls
from actors.submitting import Submitting
from engine.failover.messages import Standing
from engine.region.ports import RegionAway
from engine.values.message import Message, Receipt
from engine.values.submission import batch_key_of
from engine.values.suppression import Reason, Suppression, encode_rows
from tests.support.covered import CoveredFleet
from tests.support.ray_fleet import fleet_of
from tests.support.region import until

NOWHERE = 1  # nothing listens there: mail waits
REGIONS = ("eu", "us", "ap")


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, the region that is asked first answers."""
    monkeypatch.setattr(submitting, "SILENCE_S", 20.0)


class Direct:
    """A region as a client calls it; ConnectionError as long as it is not there."""

    def __init__(self, fleet: CoveredFleet, name: str) -> None:
        self._fleet = fleet
        self._name = name

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        region = self._fleet.regions.get(self._name)
        if region is None:
            raise ConnectionError(f"{self._name} is not there")
        header, blob, again = args
        assert method == "accept"
        return await region.accept(header, blob, again=again)

    ask = call


class NoFleet:
    """It says nothing."""

    async def call(self, method: str, *args: Any, timeout_s: float) -> Any:
        raise ConnectionError("Fleet is not there")

    ask = call


def process_of(fleet: CoveredFleet) -> Submitting:
    """A client that has just been started."""
    actors = {name: Direct(fleet, name) for name in REGIONS}
    return Submitting(fleet.config, RegionCalls(fleet.config, actors, NoFleet()))


def message(key: str, recipient: str = "b@example.org") -> Message:
    return Message("a@example.com", (recipient,), b"Subject: x\r\n\r\nx\r\n", key=key)


def names_of(fleet: CoveredFleet, home: str) -> tuple[str, bytes]:
    """A message's key and a batch key of which this region is asked first, and next one that has no copies of it."""
    calls = RegionCalls(fleet.config, {}, None)  # type: ignore[arg-type]
    third = next(name for name in REGIONS if name not in (home, fleet.standby(home)))

    def goes(key: bytes) -> bool:
        return calls.ranked(key, ())[:2] == [home, third]

    own = next(
        f"order-{n}" for n in range(999) if goes(batch_key_of("key", message("").tenant, f"order-{n}"))
    )
    return own, next(n.to_bytes(16, "big") for n in range(999) if goes(n.to_bytes(16, "big")))


async def submit(fleet: CoveredFleet, own: str, key: bytes) -> list[Receipt]:
    """As another process would: it knows already that a region which is not there does not answer."""
    client = process_of(fleet)
    for name in REGIONS:
        if name not in fleet.regions:
            client._regions.avoid(name)
    return [
        await client.submit([message(own)]),
        await client.submit([message("", f"u{n}@example.org") for n in range(3)], key=key),
    ]


def ids_of(receipts: Sequence[Receipt]) -> list[Any]:
    return [receipt.ids for receipt in receipts]


def test_a_key_is_known_when_its_region_is_dead_and_after_its_return(tmp_path: Path) -> None:
    async def go() -> None:
        async with fleet:
            await fleet.submit_when_live("us", [message("")], b"any" + bytes(13))
            own, key = names_of(fleet, "us")
            first = await submit(fleet, own, key)
            assert {receipt.region for receipt in first} == {"us"}
            await fleet.kill("us")
            assert ids_of(await submit(fleet, own, key)) == ids_of(
                first
            )  # it is not even known to be dead yet
            await until(lambda: fleet.standing("us") is Standing.DEAD)
            assert ids_of(await submit(fleet, own, key)) == ids_of(first)
            await fleet.start("us")
            await until(fleet.all_live)
            again = await submit(fleet, own, key)
            assert ids_of(again) == ids_of(first)
            assert all(receipt.repeated for receipt in again)

    fleet = CoveredFleet(fleet_of(REGIONS, tmp_path, NOWHERE, fleet={"replicas": 1}))
    asyncio.run(go())


def test_a_key_that_was_used_while_its_region_was_dead_is_known_when_that_returns(tmp_path: Path) -> None:
    async def go() -> None:
        async with fleet:
            own, key = names_of(fleet, "us")
            await fleet.kill("us")
            await until(lambda: fleet.standing("us") is Standing.DEAD)
            first = await submit(fleet, own, key)
            assert "us" not in {receipt.region for receipt in first}
            await fleet.start("us")
            await until(fleet.all_live)
            await asyncio.sleep(2.5)  # as long as a region asks for every batch, after its return
            assert ids_of(await submit(fleet, own, key)) == ids_of(first)

    fleet = CoveredFleet(fleet_of(REGIONS, tmp_path, NOWHERE, fleet={"replicas": 1}))
    asyncio.run(go())


def test_what_has_the_same_key_in_one_batch_is_one_message(tmp_path: Path) -> None:
    async def go() -> None:
        async with fleet:
            client = process_of(fleet)
            batch = [message("k"), message(""), message("k"), message("k", "other@example.org"), message("n")]
            receipt = await client.submit(batch)
            assert [len(ids) for ids in receipt.ids] == [1, 1, 1, 0, 1]
            assert receipt.ids[0] == receipt.ids[2]
            assert [(error.index, error.field, error.value) for error in receipt.errors] == [(3, "key", "k")]
            key = batch_key_of("key", message("").tenant, "k")
            (owner,) = (n for n in REGIONS if fleet.spools[n].status(receipt.ids[0][0]) is not None)
            third = next(n for n in REGIONS if n not in (owner, fleet.standby(owner)))
            with pytest.raises(RegionAway, match="another knows"):
                await fleet.submit(third, [message("k", "other@example.org")], key, again=True)
            other = await client.submit([message("k", "other@example.org")])
            assert [(error.index, error.field) for error in other.errors] == [(0, "key")]
            assert other.ids == ((),)
            assert sum(spool.counts()["accepted"] for spool in fleet.spools.values()) == 3

    fleet = CoveredFleet(fleet_of(REGIONS, tmp_path, NOWHERE, fleet={"replicas": 1}))
    asyncio.run(go())


def test_what_a_key_stands_for_is_said_by_the_region(tmp_path: Path) -> None:
    """Not by the client, which knows neither what is one address nor whether the first message is accepted."""

    async def go() -> None:
        async with fleet:
            client = process_of(fleet)
            batch = [
                message("one", "c@example.org"),
                message("one", "c@EXAMPLE.org"),
                message("two", "no address"),
                message("two"),
            ]
            receipt = await client.submit(batch)
            assert receipt.ids[0] == receipt.ids[1] != ()
            assert [(error.index, error.value) for error in receipt.errors] == [(2, "no address")]
            assert len(receipt.ids[3]) == 1

    fleet = CoveredFleet(fleet_of(REGIONS, tmp_path, NOWHERE, fleet={"replicas": 1}))
    asyncio.run(go())


def test_a_receipt_that_is_asked_for_again_names_what_is_suppressed(tmp_path: Path) -> None:
    async def go() -> None:
        async with fleet:
            row = Suppression("b@example.org", "", -1, Reason.MANUAL, 1)
            for region in fleet.regions.values():
                await region.suppress(encode_rows([row]), spread=False)
            client = process_of(fleet)
            batch = [message(""), message("", "free@example.org")]
            first = await client.submit(batch, key=b"k" * 16)
            assert first.suppressed == first.ids[0]
            again = await client.submit(batch, key=b"k" * 16)
            assert (again.repeated, again.ids, again.suppressed) == (True, first.ids, first.suppressed)

    fleet = CoveredFleet(fleet_of(REGIONS, tmp_path, NOWHERE, fleet={"replicas": 1}))
    asyncio.run(go())


def test_of_two_processes_that_use_a_key_at_once_one_gets_the_receipt_and_the_other_is_refused(
    tmp_path: Path,
) -> None:
    """For other recipients; for the same ones both get the same ids, and it counts once."""

    async def go() -> None:
        async with fleet:
            one, two = process_of(fleet), process_of(fleet)
            first, second = await asyncio.gather(
                one.submit([message("k", "ann@example.org")]), two.submit([message("k", "bob@example.org")])
            )
            refused, taken = sorted((first, second), key=lambda receipt: len(receipt.errors), reverse=True)
            assert [(error.index, error.field, error.value) for error in refused.errors] == [(0, "key", "k")]
            assert (refused.ids, taken.errors, len(taken.ids[0])) == (((),), (), 1)
            both = await asyncio.gather(one.submit([message("n")]), two.submit([message("n")]))
            assert both[0].ids == both[1].ids != ((),)
            assert sorted(receipt.repeated for receipt in both) == [False, True]
            assert sum(spool.counts()["accepted"] for spool in fleet.spools.values()) == 2

    fleet = CoveredFleet(fleet_of(REGIONS, tmp_path, NOWHERE, fleet={"replicas": 1}))
    asyncio.run(go())
