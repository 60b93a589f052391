"""The fleet's wiring on a real Ray cluster: two nodes, two regions, one sink. The fleet is started once."""

import asyncio
import http.client
import json
import os
import signal
import smtplib
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from click.testing import CliRunner

from engine.bounces.key_files import write_key
from engine.bounces.tokens import TokenKeys
from engine.bounces.unsubscribe import make_token
from engine.cli.main import build_cli
from engine.config.types import split_host
from engine.metrics.catalogue import Point
from engine.ops.free_port import free_port
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.spool.audit_moved import audit_moved
from engine.values.ids import region_of
from engine.values.message import Message, Receipt
from engine.values.stream import Stream
from engine.values.submission import encode_submission
from engine.values.suppression import Reason, decode_rows, encode_rows, make
from tests.support.prometheus import Scrape, read
from tests.support.ray_fleet import BODY, REGIONS, ClusterFleet, messages, pools_of, two_regions, until
from tests.support.sinks import accepting_sink

pytestmark = pytest.mark.ray
HOUR_MS = 3_600_000
BOUNCES = "bounce.example.com"
REPORTS = Path(__file__).parents[1] / "unit" / "bounces" / "reports"


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SinkProcess]:
    with accepting_sink(tmp_path_factory.mktemp("sink")) as process:
        yield process


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory, sink: SinkProcess) -> Iterator[ClusterFleet]:
    directory = tmp_path_factory.mktemp("fleet")
    write_key(directory / "key")
    config = two_regions(
        directory,
        sink.addresses["accept"][1],
        tokens={"keys": [{"id": 1, "file": str(directory / "key")}]},
        bounces={
            "return_paths": [{"domain": BOUNCES, "streams": ["notification"]}],
            "postmaster": {"forward": "ops@postmaster.example.org"},
        },
        unsubscribe={"links": [{"url": "https://news.example.com/u", "streams": ["notification"]}]},
        ingress={
            kind: {region: f"127.0.0.1:{free_port()}" for region in REGIONS} for kind in ("mail", "http")
        },
        metrics={"listen": {region: f"127.0.0.1:{free_port()}" for region in REGIONS}},
    )
    warming = config.sources[3].model_copy(update={"warmup": "standard"})
    config = config.model_copy(update={"sources": (*config.sources[:3], warming)})
    with ClusterFleet(config) as running:
        yield running


@pytest.fixture(scope="module")
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    with asyncio.Runner() as runner:
        yield runner.run


def state_of(fleet: ClusterFleet, message_id: int) -> Callable[[], Coroutine[Any, Any, object]]:
    async def state() -> object:
        return ((await fleet.client.status(message_id)) or {}).get("state")

    return state


async def await_state(fleet: ClusterFleet, message_id: int, wanted: str) -> None:
    state = state_of(fleet, message_id)

    async def reached() -> bool:
        return await state() == wanted

    await until(reached, f"{message_id:016x} did not become {wanted}")


async def deliver_in_every_region(fleet: ClusterFleet, domain: str = "example.org") -> list[Receipt]:
    """Four batches of 50, user0@ to user199@; of each message one is delivered when this returns."""
    batches = [messages(50, first=first, domain=domain) for first in (0, 50, 100, 150)]
    receipts = [await fleet.client.submit(batch) for batch in batches]
    assert {receipt.region for receipt in receipts} == {"eu", "us"}
    for receipt in receipts:
        assert not receipt.errors
        for ids in receipt.ids:
            await await_state(fleet, ids[0], "delivered")
    return receipts


def test_batches_go_to_every_region_and_are_delivered(
    fleet: ClusterFleet, sink: SinkProcess, run: Callable[..., Any]
) -> None:
    async def scenario() -> None:
        receipts = await deliver_in_every_region(fleet)
        for receipt in receipts:
            number = next(r.number for r in fleet.config.regions if r.name == receipt.region)
            assert {region_of(id_) for ids in receipt.ids for id_ in ids} == {number}

    run(scenario())
    arrived = sink.log().recipients()
    assert {arrived[f"user{n}@example.org"] for n in range(200)} == {1}


def test_each_actor_runs_on_a_node_of_its_region(fleet: ClusterFleet, run: Callable[..., Any]) -> None:
    """An actor's process is a child of its node's raylet."""
    run(deliver_in_every_region(fleet, "placed.example.org"))  # pools start on first use
    regions = run(fleet.client.snapshot())["regions"]
    raylet_of = {name: psutil.Process(region["pid"]).ppid() for name, region in regions.items()}
    assert len(set(raylet_of.values())) == 2
    for region, raylet in raylet_of.items():
        pids = [run(pools_of(region))["default.0"]]
        names = [source.name for source in fleet.config.sources if source.region == region]
        pids += [run(fleet.client.source(name))["pid"] for name in names]
        assert [psutil.Process(pid).ppid() for pid in pids] == [raylet] * 3


def test_the_same_key_is_accepted_once(
    fleet: ClusterFleet, sink: SinkProcess, run: Callable[..., Any]
) -> None:
    key = b"once and only on"

    async def scenario() -> None:
        batch = messages(20, domain="once.example.org")
        first = await fleet.client.submit(batch, key=key)
        again = await fleet.client.submit(batch, key=key)
        assert not first.repeated
        assert again.repeated
        assert (again.region, again.ids) == (first.region, first.ids)
        for ids in first.ids:
            await await_state(fleet, ids[0], "delivered")

    run(scenario())
    arrived = sink.log().recipients()
    assert [arrived[f"user{n}@once.example.org"] for n in range(20)] == [1] * 20


def test_a_bad_item_is_refused_alone(fleet: ClusterFleet, run: Callable[..., Any]) -> None:
    async def scenario() -> None:
        batch = [*messages(2, domain="good.example.org"), Message("a@example.com", ("bad address",), b"x")]
        receipt = await fleet.client.submit(batch)
        assert [error.index for error in receipt.errors] == [2]
        assert [len(ids) for ids in receipt.ids] == [1, 1, 0]

    run(scenario())


def test_status_of_what_nobody_accepted_is_none(fleet: ClusterFleet, run: Callable[..., Any]) -> None:
    async def scenario() -> None:
        assert await fleet.client.status((1 << 48) + 999_999) is None
        assert await fleet.client.status((77 << 48) + 1) is None

    run(scenario())


def test_events_tell_what_became_of_a_message(fleet: ClusterFleet, run: Callable[..., Any]) -> None:
    async def scenario() -> None:
        await fleet.client.submit(messages(1, domain="events.example.org"))

        async def found() -> list[dict[str, Any]]:
            lines = [json.loads(line) async for line in fleet.client.events()]
            return [line for line in lines if line.get("recipient") == "user0@events.example.org"]

        await until(found, "no event")
        (event,) = await found()
        assert event["event"] == "delivered"
        assert event["possible_duplicate"] is False

    run(scenario())


def test_a_scheduled_message_can_be_cancelled(
    fleet: ClusterFleet, sink: SinkProcess, run: Callable[..., Any]
) -> None:
    async def scenario() -> None:
        later = Message(
            "a@example.com",
            ("never@example.org",),
            BODY % 1,
            Stream.MARKETING,
            send_at_ms=int(time.time() * 1000) + HOUR_MS,
        )
        receipt = await fleet.client.submit([later])
        (id_,) = receipt.ids[0]
        assert (await fleet.client.status(id_))["state"] == "queued"
        assert await fleet.client.cancel([id_]) == 1
        assert (await fleet.client.status(id_))["state"] == "cancelled"
        assert await fleet.client.cancel([id_]) == 0

    run(scenario())
    assert sink.log().recipients()["never@example.org"] == 0


def test_operators_speak_with_the_owners_of_sources(fleet: ClusterFleet, run: Callable[..., Any]) -> None:
    async def scenario() -> None:
        client = fleet.client
        with pytest.raises(ValueError, match="no warm-up"):
            await client.order("eu-1", "pause", "default")
        with pytest.raises(ValueError, match="allowed are eu-1"):
            await client.source("eu-9")
        assert await client.order("us-2", "skip", "default", 3)
        assert await client.order("us-2", "pause", "default")
        assert not await client.order("us-2", "pause", "default")
        plan = next(p for p in (await client.source("us-2"))["warmup"] if p["site"] == "default")
        assert (plan["stage"], plan["phase"], plan["day_cap"]) == (3, "paused", 2000)
        assert not await client.order("eu-1", "cancel", "default", "no-such-rule")

        async def enforced() -> bool:
            """The region has heard of the order: it grants the new stage's cap."""
            rows = (await client.snapshot())["regions"]["us"]["allowances"]
            return any((r["source"], r["site"], r["daily_cap"]) == ("us-2", "default", 2000) for r in rows)

        await until(enforced, "the order did not reach the region")

    run(scenario())


def test_a_message_is_traced(fleet: ClusterFleet, run: Callable[..., Any]) -> None:
    async def scenario() -> None:
        receipt = await fleet.client.submit(messages(1, domain="traced.example.org"))
        (id_,) = receipt.ids[0]
        await await_state(fleet, id_, "delivered")
        found = await fleet.client.trace(
            id_, recipient="user0@traced.example.org", stream=int(Stream.MARKETING), tenant="default"
        )
        assert found["region"] == receipt.region
        assert {row["source"] for row in found["paths"]} == {f"{receipt.region}-1", f"{receipt.region}-2"}
        assert await fleet.client.trace((77 << 48) + 1) is None

    run(scenario())


def test_a_region_that_is_killed_restarts_from_its_spool(
    fleet: ClusterFleet, sink: SinkProcess, run: Callable[..., Any]
) -> None:
    """Mail that was due later survives, the epoch moves on, and nobody has to call the region for it to go on."""

    async def scenario() -> None:
        before = (await fleet.client.snapshot())["regions"]
        due_ms = int(time.time() * 1000) + 2000
        batch = [
            Message(
                "a@example.com",
                (f"user{n}@later.example.org",),
                BODY % n,
                Stream.MARKETING,
                send_at_ms=due_ms,
            )
            for n in range(40)
        ]
        receipts = [await fleet.client.submit(batch[:20]), await fleet.client.submit(batch[20:])]
        assert {receipt.region for receipt in receipts} == {"eu", "us"}
        os.kill(before["eu"]["pid"], signal.SIGKILL)

        async def all_there() -> bool:
            arrived = sink.log().recipients()
            return all(arrived[f"user{n}@later.example.org"] for n in range(40))

        await until(all_there, "mail of the killed region did not go out")
        after = (await fleet.client.snapshot())["regions"]
        assert after["eu"]["epoch"] == before["eu"]["epoch"] + 1
        assert after["us"]["epoch"] == before["us"]["epoch"]
        assert after["eu"]["pid"] != before["eu"]["pid"]

    run(scenario())
    arrived = sink.log().recipients()
    assert {arrived[f"user{n}@later.example.org"] for n in range(40)} == {1}


def test_the_spare_takes_the_place_of_a_pool_that_is_killed(
    fleet: ClusterFleet, run: Callable[..., Any]
) -> None:
    """And another spare comes, also after the spare itself was killed. A killed region finds its pool and its spare."""

    async def with_spare(*others: int) -> dict[str, int]:
        """Pids of the pool and of a spare that is none of these."""

        async def is_there() -> bool:
            pools = await pools_of("eu")
            return set(pools) == {"default.0", ""} and pools[""] not in others

        await until(is_there, "no pool with a spare")
        return await pools_of("eu")

    async def delivers(domain: str) -> None:
        receipt = await fleet.client.submit(messages(20, domain=domain), region="eu")
        await asyncio.gather(*(await_state(fleet, ids[0], "delivered") for ids in receipt.ids))

    async def scenario() -> None:
        await delivers("before.example.org")
        before = await with_spare()
        os.kill(before["default.0"], signal.SIGKILL)
        await delivers("killed.example.org")
        after = await with_spare(before[""])
        assert after["default.0"] == before[""]
        os.kill(after[""], signal.SIGKILL)
        again = await with_spare(after[""])
        assert again["default.0"] == after["default.0"]
        region = (await fleet.client.snapshot())["regions"]["eu"]["pid"]
        os.kill(region, signal.SIGKILL)
        await delivers("later.example.org")
        assert await with_spare() == again
        assert (await fleet.client.snapshot())["regions"]["eu"]["pid"] != region
        names = set(await fleet.client.usage())
        assert {"pool:eu:default.0", "pool:us:default.0", "gateway:eu", "region:us", "fleet"} <= names
        assert len([name for name in names if name.startswith("spare:eu:")]) == 1

    run(scenario())


def test_a_suppression_made_anywhere_holds_everywhere(fleet: ClusterFleet, run: Callable[..., Any]) -> None:
    """From the client it is in every region at once; what one region makes itself is passed on to the other."""

    async def listed(region: str, address: str) -> bool:
        actor = fleet.client._regions.actors[region]
        return bool(decode_rows(await actor.call("suppressions_of", address)))

    async def scenario() -> None:
        rows = [make("listed@example.org", reason=Reason.MANUAL, at_ms=1)]
        assert await fleet.client.suppress(rows) == 1
        assert [await listed(region, "listed@example.org") for region in ("eu", "us")] == [True, True]
        assert [row.address async for row in fleet.client.suppressions()] == ["listed@example.org"]
        batch = [Message("a@example.com", ("Listed@example.org",), BODY % 1, Stream.MARKETING)]
        for _ in range(2):  # one for each region
            receipt = await fleet.client.submit(batch)
            assert receipt.suppressed == receipt.ids[0]
        own = [make("bounced@example.org", reason=Reason.HARD_BOUNCE, at_ms=1)]
        await fleet.client._regions.actors["eu"].call("suppress", encode_rows(own), True)
        await until(lambda: listed("us", "bounced@example.org"), "the other region did not hear of it")
        for region, peer in (("eu", "us"), ("us", "eu")):  # with its new disk it has asked for the list
            state = await fleet.client._regions.actors[region].call("get_state", f"suppression/asked/{peer}")
            assert state == b""

    run(scenario())


def test_a_bounce_that_comes_to_any_gateway_finds_its_region(
    fleet: ClusterFleet, run: Callable[..., Any]
) -> None:
    """Through real gateways: a report comes to the gateway of the region that did not send the message."""
    keys = TokenKeys.read(fleet.config.tokens)
    report = (REPORTS / "qmail.eml").read_bytes()

    async def scenario() -> None:
        for number in range(2):  # one for each region
            recipient = f"late{number}@example.org"
            message = Message("a@example.com", (recipient,), BODY % number, Stream.NOTIFICATION)
            receipt = await fleet.client.submit([message])
            ((id_,),) = receipt.ids
            await await_state(fleet, id_, "delivered")
            (other,) = {"eu", "us"} - {receipt.region}
            path = f"{keys.sign_return_path(id_, round(time.time() * 1000))}@{BOUNCES}"
            _, port = split_host(fleet.config.ingress.mail[other])
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                about = report.replace(b"anna@example.org", recipient.encode())
                await asyncio.to_thread(client.sendmail, "", [path, f"postmaster@{BOUNCES}"], about)
            data = await fleet.client._regions.actors[receipt.region].call("suppressions_of", recipient)
            assert [(row.message_id, row.reason) for row in decode_rows(data)] == [(id_, Reason.HARD_BOUNCE)]
        gateways = (await fleet.client.snapshot())["gateways"]
        assert {gateway["reports"]["acted"] for gateway in gateways.values()} == {1}
        assert {gateway["postmaster"]["forwarded"] for gateway in gateways.values()} == {1}

    run(scenario())


def test_each_gateway_shows_what_its_region_does(fleet: ClusterFleet, run: Callable[..., Any]) -> None:
    """Figures of the region, its pool, its sources and their processes, each asked by name; Fleet sees the same."""

    async def scenario() -> None:
        for number in range(2):  # one for each region
            batch = messages(10, domain=f"{number}.metrics.example.org")
            receipt = await fleet.client.submit(batch)
            await asyncio.gather(*(await_state(fleet, ids[0], "delivered") for ids in receipt.ids))
        snapshot = await fleet.client.snapshot()
        for region in REGIONS:
            host, port = split_host(fleet.config.metrics.listen[region])
            assert snapshot["gateways"][region]["metrics"]["port"] == port
            status, text = await asyncio.to_thread(read, host, port)
            assert status == 200
            found = Scrape(text)
            counts = snapshot["regions"][region]["counts"]
            for word in ("accepted", "delivered"):
                assert (
                    found.total("sendfleet_ledger_messages_total", region=region, word=word) == counts[word]
                )
            assert found.total("sendfleet_pools", provider="default") == 1
            limits = found.rows("sendfleet_sessions_limit", provider="default")
            assert {labels["source"] for labels, _ in limits} <= {f"{region}-1", f"{region}-2"}
            assert limits
            actors = {labels["actor"] for labels, _ in found.rows("process_memory_usage_bytes")}
            assert actors == {"region", "pool:default.0", "sources", "gateway"}
            assert found.total("system_memory_limit_bytes") > 0
            assert ("us-2" in text) == (region == "us")
            if region == "us":
                assert found.total("sendfleet_warmup_cap", provider="default", source="us-2") > 0

        async def all_up() -> bool:
            up = Point("sendfleet.region.up", (), 1)
            regions = (await fleet.client.figures())["regions"]
            return set(regions) == set(REGIONS) and all(up in points for points in regions.values())

        await until(all_up, "a region that was killed before is still told as down")
        figures = await fleet.client.figures()
        assert {alert["alert"] for alert in figures["alerts"]} <= {
            "cpu",
            "lag",
            "memory",
        }  # of a busy machine

    run(scenario())


def test_a_killed_gateway_comes_back_and_takes_requests(fleet: ClusterFleet, run: Callable[..., Any]) -> None:
    keys = TokenKeys.read(fleet.config.tokens)
    token = make_token(
        keys,
        tenant="default",
        stream=int(Stream.NOTIFICATION),
        address="Leaver@example.org",
        message_id=1,
        accepted_ms=round(time.time() * 1000),
    )
    host, port = split_host(fleet.config.ingress.http["eu"])

    def post() -> int:
        connection = http.client.HTTPConnection(host, port, timeout=30)
        connection.request("POST", f"/u/{token}", "List-Unsubscribe=One-Click")
        return connection.getresponse().status

    async def gateway() -> dict[str, Any]:
        return dict((await fleet.client.snapshot())["gateways"]["eu"])

    async def scenario() -> None:
        before = (await gateway())["pid"]
        os.kill(before, signal.SIGKILL)

        async def is_back() -> bool:
            return (await gateway()).get("pid", before) != before

        await until(is_back, "the gateway did not come back")
        assert await asyncio.to_thread(post) == 200
        data = await fleet.client._regions.actors["eu"].call("suppressions_of", "leaver@example.org")
        assert [row.reason for row in decode_rows(data)] == [Reason.UNSUBSCRIBE]

    run(scenario())


def test_a_region_is_drained_by_the_command_and_takes_mail_again(
    fleet: ClusterFleet, sink: SinkProcess, run: Callable[..., Any], tmp_path: Path
) -> None:
    """2,000 messages wait; the other region takes them all, and sends those that fall due."""
    client, later = fleet.client, 1900
    path = tmp_path / "fleet.yaml"
    path.write_text(fleet.config.model_dump_json(exclude_unset=True))
    batch = [
        replace(message, send_at_ms=int(time.time() * 1000) + (HOUR_MS if n < later else 4000))
        for n, message in enumerate(messages(2000, domain="drained.example.org"))
    ]

    def sendfleet(*arguments: str) -> str:
        environment = {"SENDFLEET_FLEET": str(path)}
        result = CliRunner().invoke(build_cli(lambda path: client), [*arguments], env=environment)
        assert result.exit_code == 0, result.output
        return result.output

    async def submit() -> list[int]:
        parts = [encode_submission(batch[n : n + 200], os.urandom(16)) for n in range(0, len(batch), 200)]
        receipts = [await client.submit_encoded("eu", *part) for part in parts]
        return [ids[0] for receipt in receipts for ids in receipt.ids]

    async def taken(ids: list[int]) -> None:
        assert {
            (await client.submit(messages(1, domain="elsewhere.example.org"))).region for _ in range(4)
        } == {"us"}
        assert ((await client.status(ids[0])) or {})["state"] == "queued"
        assert await client.cancel(ids[:later]) == later

        async def all_there() -> bool:
            arrived = sink.log().recipients()
            return all(arrived[f"user{n}@drained.example.org"] for n in range(later, len(batch)))

        await until(all_there, "mail that was handed over did not go out")

    async def eu_takes_mail() -> bool:
        return "eu" in [
            (await client.submit(messages(1, domain="again.example.org"))).region for _ in range(2)
        ]

    ids = run(submit())
    assert "region eu: drained" in sendfleet("drain", "eu", "--wait", "--timeout", "60")
    assert "eu: drained" in sendfleet("status")
    eu = run(client.snapshot())["regions"]["eu"]
    assert eu["counts"]["queued"] == 0
    assert eu["hand_over"]["handed_over"] >= later
    run(taken(ids))
    reports = {r.name: audit(fleet.config.spool.directory / r.name) for r in fleet.config.regions}
    assert [report.problems for report in reports.values()] == [[], []]
    assert audit_moved(reports, all_here=True, has_copies=False).problems == []
    assert "takes mail again" in sendfleet("undrain", "eu")
    run(until(eu_takes_mail, "the region does not take mail again"))
    arrived = sink.log().recipients()
    assert [arrived[f"user{n}@drained.example.org"] for n in range(len(batch))] == [0] * later + [1] * 100


def test_a_fleet_that_was_stopped_is_started_anew_on_the_same_cluster(
    fleet: ClusterFleet, run: Callable[..., Any]
) -> None:
    """As on a cluster that outlives its fleet: nothing of the former one is left. The last test of this fleet."""
    from actors.client import AsyncClient
    from actors.deploy import actor_names, start_fleet, stop_fleet

    before = {name: region["pid"] for name, region in run(fleet.client.snapshot())["regions"].items()}
    stop_fleet(fleet.config)
    assert actor_names() == []
    start_fleet(fleet.config, "")
    fleet.client = AsyncClient(fleet.config)

    async def scenario() -> None:
        receipts = [await fleet.client.submit(messages(1, domain=f"{n}.anew.example.org")) for n in range(2)]
        for receipt in receipts:
            await await_state(fleet, receipt.ids[0][0], "delivered")
        after = {name: region["pid"] for name, region in (await fleet.client.snapshot())["regions"].items()}
        assert set(before) == set(after)
        assert not set(before.values()) & set(after.values())

    run(scenario())
