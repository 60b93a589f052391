"""The client, with real regions of this process behind it instead of actors."""

import asyncio
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from actors import client as client_module
from actors.client import AsyncClient, Client, connect
from engine.config.load import parse_fleet
from engine.config.schema import FleetConfig
from engine.failover.handover import Reply, Request
from engine.region.region import Region
from engine.spool.store import Spool
from engine.values.message import CampaignChunk, CampaignTemplate, Message, Receipt
from engine.values.stream import Stream
from engine.values.submission import MalformedBatch
from tests.support.fleets import fleet_data
from tests.support.region import LocalNode, start_region

REGIONS = ("eu", "us", "asia")


class Direct:
    """A region as the client calls it. `away`: it does not answer."""

    def __init__(self, region: Region) -> None:
        self.region = region
        self.away = False
        self.calls = 0

    async def call(self, method: str, *args: Any, timeout_s: float = 0.0) -> Any:
        self.calls += 1
        if self.away:
            raise ConnectionError("the actor is away")
        if method == "message_status":
            return self.region.status(*args)
        return await getattr(self.region, method)(*args)

    ask = call


class Between:
    """How regions hand over to each other."""

    def __init__(self, direct: dict[str, Direct]) -> None:
        self._direct = direct

    async def hand_over(self, region: str, request: Request) -> Reply | None:
        reply: Reply | None = await self._direct[region].call("hand_over", request)
        return reply


class FleetActor:
    """What Fleet knows of the regions."""

    def __init__(self) -> None:
        self.known: dict[str, str] = {}

    async def call(self, method: str, *, timeout_s: float) -> dict[str, str]:
        return self.known


class Fleet:
    """Three regions that accept and send nothing, and a client. `shard_of`: by name, the region of a shard."""

    def __init__(self, directory: Path, shard_of: dict[str, str] | None = None) -> None:
        first = fleet_data()["sources"][0]
        parts = {name: {"shard_of": region} for name, region in (shard_of or {}).items()}
        self.config: FleetConfig = parse_fleet(
            fleet_data(
                spool={"directory": str(directory / "spool"), "map_size": "64MiB", "min_free": "1MiB"},
                events={"directory": str(directory / "events")},
                regions=[
                    {"name": name, "number": n, **parts.get(name, {})} for n, name in enumerate(REGIONS, 1)
                ],
                sources=[
                    {**first, "name": f"{name}-1", "region": name, "ip": f"127.0.0.{20 + n}"}
                    for n, name in enumerate(REGIONS)
                ],
                routes=[{"domains": ["*"], "hosts": ["127.0.0.1:1"]}],
            )
        )
        self.opened: list[tuple[Region, Spool, LocalNode]] = []

    async def __aenter__(self) -> "Fleet":
        self.client = AsyncClient(self.config)
        self.direct: dict[str, Direct] = {}
        self.actor = FleetActor()
        for name in REGIONS:
            opened = await start_region(self.config, name, handover=Between(self.direct))
            opened[0].parts.dispatcher.paused = True
            self.opened.append(opened)
            self.direct[name] = Direct(opened[0])
        self.client._regions.actors = self.direct  # type: ignore[assignment]
        self.client._regions.fleet = self.client._fleet = self.actor  # type: ignore[assignment]
        return self

    async def __aexit__(self, *_: object) -> None:
        for region, spool, node in self.opened:
            await node.stop()
            await region.stop()
            spool.close()

    def accepted(self) -> int:
        return sum(spool.counts()["accepted"] for _, spool, _ in self.opened)


def message(key: str = "", recipient: str = "b@example.org", **fields: Any) -> Message:
    return Message("a@example.com", (recipient,), b"Subject: x\r\n\r\nx\r\n", key=key, **fields)


def test_a_message_with_a_key_is_accepted_once_by_the_whole_fleet(tmp_path: Path) -> None:
    async def go() -> None:
        async with Fleet(tmp_path) as fleet:
            receipts = [await fleet.client.submit([message("invoice 7")]) for _ in range(6)]
            assert {receipt.ids for receipt in receipts} == {receipts[0].ids}
            other = AsyncClient(fleet.config)
            other._regions.actors = fleet.client._regions.actors
            assert (await other.submit([message(), message("invoice 7")])).ids[1] == receipts[0].ids[0]
            assert fleet.accepted() == 2

    asyncio.run(go())


def test_with_copies_a_region_is_asked_once_for_a_part_of_a_campaign() -> None:
    """If it is silent, the sender asks another one."""

    class Silent:
        def __init__(self) -> None:
            self.calls: list[tuple[str, int]] = []

        async def call(self, method: str, *args: Any, timeout_s: float = 0.0) -> Any:
            self.calls.append((method, len(args)))
            raise ConnectionError("the actor is away")

    async def go() -> None:
        config = parse_fleet(fleet_data())
        covered = config.model_copy(update={"fleet": config.fleet.model_copy(update={"replicas": 1})})
        client, silent = AsyncClient(covered), Silent()
        client._regions.actors = {"eu": silent}  # type: ignore[dict-item]
        template = CampaignTemplate("c", "t", Stream.MARKETING, "b@example.com", "f@example.com", "s", "x")
        chunk = CampaignChunk("c", "t", 0, bytes(16), (), ("a@example.org",), ((),))
        for call in (
            client.put_campaign("eu", template, ()),
            client.progress("eu", "t", "c"),
            client.accept_chunk("eu", 1, chunk, again=True),
        ):
            with pytest.raises(ConnectionError, match="the actor is away"):
                await call
        assert silent.calls == [("put_campaign", 1), ("progress", 2), ("accept_chunk", 2)]

    asyncio.run(go())


def test_a_batch_of_keys_has_one_receipt_in_its_order(tmp_path: Path) -> None:
    async def go() -> None:
        async with Fleet(tmp_path) as fleet:
            batch = [message(f"key {n}" if n % 4 else "", f"u{n}@example.org") for n in range(40)]
            batch[7] = message("key 7", "no address")
            receipt: Receipt = await fleet.client.submit(batch, key=b"k" * 16)
            assert [len(ids) for ids in receipt.ids] == [int(n != 7) for n in range(40)]
            assert [(error.index, error.value) for error in receipt.errors] == [(7, "no address")]
            assert receipt.region.split(",") == sorted(REGIONS)
            statuses = [await _status(fleet, ids[0]) for ids in receipt.ids if ids]
            wanted = [f"u{n}@example.org" for n in range(40) if n != 7]
            assert [status["recipient"] for status in statuses] == wanted
            again = await fleet.client.submit(batch, key=b"k" * 16)
            assert again.repeated
            assert again.ids == receipt.ids
            assert fleet.accepted() == 39

    asyncio.run(go())


def test_a_key_that_stands_for_another_message_is_refused_by_itself(tmp_path: Path) -> None:
    """Its ids would be those of the other one, and nobody would know that it was never accepted."""

    async def go() -> None:
        async with Fleet(tmp_path) as fleet:
            first = await fleet.client.submit([message("k")])
            batch = [message("k", "other@example.org"), message("new", "c@example.org"), message("k")]
            for _ in range(2):
                receipt = await fleet.client.submit(batch, key=b"k" * 16)
                assert [(error.index, error.field, error.value) for error in receipt.errors] == [
                    (0, "key", "k")
                ]
                assert receipt.ids[0] == ()
                assert len(receipt.ids[1]) == 1
                assert receipt.ids[2] == first.ids[0]
            twice = [message("p", "one@example.org"), message("p", "two@example.org")]
            assert [error.index for error in (await fleet.client.submit(twice)).errors] == [1]
            assert fleet.accepted() == 3
            await fleet.client.submit([message()] * 2, key=b"b" * 16)
            with pytest.raises(MalformedBatch, match="another batch, of 2 messages"):
                await fleet.client.submit([message()] * 3, key=b"b" * 16)

    asyncio.run(go())


async def _status(fleet: Fleet, id_: int) -> dict[str, Any]:
    found = fleet.opened[(id_ >> 48) - 1][0].status(id_)
    assert found is not None
    return found


def test_new_mail_does_not_wait_for_a_region_that_is_silent(tmp_path: Path) -> None:
    async def go() -> None:
        async with Fleet(tmp_path) as fleet:
            fleet.direct["us"].away = True
            stuck = [asyncio.ensure_future(fleet.client.submit([message()])) for _ in range(3)]
            await asyncio.wait(stuck, timeout=20.0, return_when=asyncio.FIRST_COMPLETED)
            while sum(task.done() for task in stuck) < 2:
                await asyncio.sleep(0.01)
            for _ in range(6):
                assert (await fleet.client.submit([message()])).region != "us"
            fleet.direct["us"].away = False
            assert {(await task).region for task in stuck} == set(REGIONS)

    asyncio.run(go())


def key_of(client: AsyncClient, region: str, number: int = 0) -> bytes:
    """A batch key that goes to this region first."""
    keys = (n.to_bytes(16, "big") for n in range(1000 * number, 1000 * (number + 1)))
    return next(key for key in keys if client._regions.order(key, ())[0] == region)


async def drained(fleet: Fleet, region: str) -> None:
    while fleet.direct[region].region.condition != "drained":
        await asyncio.sleep(0.01)


def test_a_region_that_is_drained_is_passed_over_and_its_mail_is_found_elsewhere(tmp_path: Path) -> None:
    async def go() -> None:
        async with Fleet(tmp_path) as fleet:
            client = fleet.client
            key = key_of(client, "us")
            before = await client.submit([message(), message()], key=key)
            own = [message(f"key {n}", f"u{n}@example.org") for n in range(30)]
            with_keys = await client.submit(own)
            assert await client.drain("us")
            assert not await client.drain("us")
            assert {(await client.submit([message()])).region for _ in range(9)} == {"eu", "asia"}
            again = await client.submit([message(), message()], key=key)
            assert (again.repeated, again.ids) == (True, before.ids)
            assert (await client.submit(own)).ids == with_keys.ids
            await drained(fleet, "us")
            assert (await client.submit(own)).ids == with_keys.ids
            (id_, other) = (ids[0] for ids in before.ids)
            assert ((await client.status(id_)) or {})["state"] == "queued"
            assert ((await client.trace(id_)) or {})["region"] != "us"
            assert await client.cancel([id_]) == 1
            assert ((await client.status(id_)) or {})["state"] == "cancelled"
            fleet.direct["us"].away = True
            fleet.actor.known = {"us": "drained, down"}
            again = await client.submit([message(), message()], key=key)  # as if its answer had been lost
            assert [ids[0] for ids in again.ids] == [id_, other]

    asyncio.run(go())


def test_what_was_accepted_in_a_drained_regions_stead_is_known_to_it_afterwards(tmp_path: Path) -> None:
    async def go() -> None:
        async with Fleet(tmp_path) as fleet:
            client = fleet.client
            await client.drain("us")
            await drained(fleet, "us")
            key = key_of(client, "us")
            batch = [message("own key"), message()]
            receipt = await client.submit(batch, key=key)
            assert "us" not in receipt.region
            plain = await client.submit([message()], key=key_of(client, "us", 1))
            assert await client.drain("us", end=True)
            assert not await client.drain("us", end=True)
            assert (await client.submit(batch, key=key)).ids == receipt.ids
            again = await client.submit([message()], key=key_of(client, "us", 1))
            assert (again.region, again.repeated, again.ids) == ("us", True, plain.ids)
            assert (await client.submit([message()], key=key_of(client, "us", 2))).region == "us"

    asyncio.run(go())


def test_only_regions_that_there_are_can_be_drained(tmp_path: Path) -> None:
    async def go() -> None:
        async with Fleet(tmp_path) as fleet:
            with pytest.raises(ValueError, match="'mars': allowed are eu, us, asia"):
                await fleet.client.drain("mars")

    asyncio.run(go())


def test_ids_that_nobody_accepted_are_not_cancelled(tmp_path: Path) -> None:
    async def go() -> None:
        async with Fleet(tmp_path) as fleet:
            receipt = await fleet.client.submit([message()])
            assert await fleet.client.cancel([99 << 48 | 1, 0, *receipt.ids[0], 1 << 48 | 12345]) == 1
            assert await fleet.client.cancel([]) == 0

    asyncio.run(go())


def test_a_batch_of_nothing(tmp_path: Path) -> None:
    async def go() -> None:
        async with Fleet(tmp_path) as fleet:
            receipt = await fleet.client.submit([])
            assert (receipt.ids, receipt.errors) == ((), ())

    asyncio.run(go())


def test_events_of_the_plain_client(tmp_path: Path) -> None:
    fleet = Fleet(tmp_path)
    folder = tmp_path / "events" / "eu"
    folder.mkdir(parents=True)
    (folder / "events-000001.jsonl").write_bytes(b'{"seq":1}\n{"seq":2}\n{"se')
    client = Client(fleet.config)
    assert list(client.events()) == [b'{"seq":1}\n', b'{"seq":2}\n']
    client._loop.close()


def test_a_region_that_is_asked_for_gets_the_mail_over_all_its_shards(tmp_path: Path) -> None:
    async def go() -> None:
        async with Fleet(tmp_path, {"eu": "west", "us": "west"}) as fleet:
            client = fleet.client
            found = [(await client.submit([message()], region="west")).region for _ in range(6)]
            assert set(found) == {"eu", "us"}
            assert {(await client.submit([message()], region="us")).region for _ in range(4)} == {"us"}
            assert {(await client.submit([message()])).region for _ in range(6)} == set(REGIONS)
            own = [message(f"key {n}") for n in range(12)]
            receipt = await client.submit(own, region="west")
            assert receipt.region == "eu,us"
            assert (await AsyncClient.submit(client, own, region="west")).ids == receipt.ids
            with pytest.raises(ValueError, match="'mars': allowed are west, eu, us, asia"):
                await client.submit([message()], region="mars")

    asyncio.run(go())


def test_what_a_shard_does_not_take_goes_to_its_siblings_first(tmp_path: Path) -> None:
    async def go() -> None:
        async with Fleet(tmp_path, {"eu": "west", "us": "west"}) as fleet:
            client = fleet.client
            for number in range(20):
                order = client._regions.order(number.to_bytes(16, "big"), ())
                assert order[0] == "asia" or order[2] == "asia"
            assert await client.drain("us")
            assert {(await client.submit([message()], region="west")).region for _ in range(4)} == {"eu"}
            assert {(await client.submit([message()], key=key_of(client, "us"))).region} == {"eu"}
            assert await client.drain("eu")
            assert (await client.submit([message()], region="west")).region == "asia"

    asyncio.run(go())


def test_connect_says_at_once_that_no_fleet_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        os, "environ", dict(os.environ)
    )  # what is prepared for a fleet is not for the next test
    data = fleet_data()
    data["spool"] = {"directory": str(tmp_path / "spool")}
    config = parse_fleet(data)
    with pytest.raises(ConnectionError, match=f"no fleet {config.fleet.name} runs on this machine"):
        connect(config)
    monkeypatch.setattr(client_module, "RAY_CAME_FIRST", True)
    with pytest.raises(RuntimeError, match=r"import actors\.client first"):
        connect(config)


def test_what_is_no_message_is_named() -> None:
    client = AsyncClient(parse_fleet(fleet_data()))
    good = Message(sender="a@example.com", recipients=("b@example.org",), body=b"x")
    for batch, words in (
        ([good, "text"], r"batch\[1\]: str: allowed is a Message"),
        ([replace(good, body="text")], r"batch\[0\]\.body: str: allowed are bytes"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TypeError, match=words):
            asyncio.run(client.submit(batch))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"batch\[0\]\.stream: 'bulk': allowed are <Stream\.TRANSACTIONAL: 0>"
    ):
        asyncio.run(client.submit([replace(good, stream="bulk")]))  # type: ignore[arg-type]
