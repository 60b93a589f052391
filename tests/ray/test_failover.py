"""Ray's head dies and returns; a pool and a source hang; a shard of a region is cut off, its node frozen, and killed
with its disk: it is covered by its sibling, not by the other region, and a campaign that is being sent goes on.

All under load. Every message that got a receipt arrives; what arrives twice is marked. Submissions go on meanwhile.
SENDFLEET_FAILOVER_ROUNDS repeats the freezing; `make soak` sets it.
"""

import asyncio
import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from engine.campaign.chunks import cut_chunks
from engine.campaign.recipients import Recipient
from engine.campaign.sender import CampaignSender
from engine.config.schema import FleetConfig
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.values.message import CampaignTemplate
from engine.values.stream import Stream
from tests.support.ray_fleet import ClusterFleet, messages, pools_of, two_shards_and_a_region, until
from tests.support.sinks import accepting_sink

pytestmark = [pytest.mark.ray, pytest.mark.crash]

ROUNDS = int(os.environ.get("SENDFLEET_FAILOVER_ROUNDS", "1"))
BATCH = 20
PAUSE_S = 0.05
FROZEN_S = 2.0
VICTIM, PEER, OTHER = "eu-2", "eu-1", "us"
CAMPAIGN = 1500
TEMPLATE = CampaignTemplate("c", "default", Stream.MARKETING, "b@example.com", "f@example.com", "s", "text")
CHUNKS = list(
    cut_chunks(
        [Recipient(n + 2, f"c{n}@example.org", ()) for n in range(CAMPAIGN)],
        tenant=TEMPLATE.tenant,
        campaign=TEMPLATE.campaign,
        field_names=(),
        refuse=lambda row: None,
        size=10,
    )
)


@pytest.fixture
def sink(tmp_path: Path) -> Iterator[SinkProcess]:
    with accepting_sink(tmp_path) as process:
        yield process


class Load:
    """Submits small batches, one after the other, and remembers what got a receipt and how long that took."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.acknowledged: set[str] = set()
        self.degraded = 0
        self.seconds: list[float] = []
        self._going = True
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        first = 0
        while self._going:
            batch = messages(BATCH, first=first)
            began = time.monotonic()
            receipt = await self._client.submit(batch)
            self.seconds.append(time.monotonic() - began)
            assert not receipt.errors
            self.degraded += receipt.degraded
            self.acknowledged.update(message.recipients[0] for message in batch)
            first += BATCH
            await asyncio.sleep(PAUSE_S)

    async def stop(self) -> None:
        self._going = False
        await self._task


def processes_of(node: Any) -> list[psutil.Process]:
    """The raylet of a node and all that it started: the region, its pools and sources."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return [*raylet.children(recursive=True), raylet]


def net_of(config: FleetConfig, region: str) -> str:
    """What the addresses of its sources begin with."""
    return next(str(source.ip) for source in config.sources if source.region == region).rpartition(".")[0]


async def lose_the_head(fleet: ClusterFleet, load: Load, sink: SinkProcess) -> None:
    """Ray's head (GCS) dies and Fleet hangs, so nobody leases, until its witness kills it and the head is back; a pool
    dies, and its spare takes over."""
    from actors.names import region_actor
    from actors.ray_calls import NamedActor

    async def arrived(region: str, recipients: set[str]) -> bool:
        rows = await asyncio.to_thread(lambda: sink.log().acceptances)
        net = net_of(fleet.config, region)
        return any(row.recipient in recipients and row.client.startswith(net) for row in rows)

    async def both_send() -> bool:
        return all([await arrived(region, load.acknowledged) for region in (VICTIM, PEER)])

    await until(both_send, "not every region sends")
    before = await fleet.client.snapshot()
    pools: dict[str, int] = {}

    async def has_spare() -> bool:
        nonlocal pools
        pools = await pools_of(VICTIM)
        return set(pools) == {"default.0", ""}

    await until(has_spare, "no pool with a spare")
    fleet.kill_head()
    os.kill(int(before["pid"]), signal.SIGSTOP)
    os.kill(pools["default.0"], signal.SIGKILL)
    old, degraded = set(load.acknowledged), load.degraded
    began = time.monotonic()

    async def accepts_and_sends() -> bool:
        """For longer than any lease that Fleet gave."""
        new = load.acknowledged - old
        return time.monotonic() - began > 3.0 and len(new) > 10 * BATCH and await arrived(VICTIM, new)

    await until(accepts_and_sends, "without the head mail does not go on")
    assert (await pools_of(VICTIM))["default.0"] == pools[""]
    victim = NamedActor(region_actor(VICTIM))
    assert int(await victim.call("ping")) == before["regions"][VICTIM]["pid"], (
        "a region that waits for a pool answers"
    )
    assert load.degraded == degraded
    fleet.return_head()
    new = load.acknowledged - old

    async def everything_arrives() -> bool:
        return new <= set(await asyncio.to_thread(lambda: sink.log().recipients()))

    await until(everything_arrives, "what waited for a pool was not sent when the head was back")

    async def is_watched() -> dict[str, Any] | None:
        try:
            return dict(await fleet.client.snapshot())
        except (ConnectionError, TimeoutError):
            return None

    await until(is_watched, "Fleet is not started again")
    after = await fleet.client.snapshot()
    assert after["pid"] != before["pid"]
    for region in (VICTIM, PEER):
        assert after["regions"][region]["pid"] == before["regions"][region]["pid"]
    source = next(p for p in processes_of(fleet.nodes[VICTIM]) if _title(p).startswith("ray::EgressIpActor"))
    source.kill()

    async def is_replaced() -> bool:
        return len(sources_of(fleet, VICTIM)) == 2

    await until(is_replaced, "a source that dies is not started again")


def sources_of(fleet: ClusterFleet, region: str) -> set[int]:
    """Process ids of their owners."""
    processes = processes_of(fleet.nodes[region])
    return {p.pid for p in processes if _title(p).startswith("ray::EgressIpActor")}


async def stop_a_pool_and_a_source(fleet: ClusterFleet, region: str) -> tuple[int, int]:
    """SIGSTOP of the pool that sends, and of one of the sources' owners; their process ids."""
    hung = (await pools_of(region))["default.0"], min(sources_of(fleet, region))
    for pid in hung:
        os.kill(pid, signal.SIGSTOP)
    return hung


async def replaced(
    fleet: ClusterFleet, region: str, hung: tuple[int, int], load: Load, sink: SinkProcess
) -> None:
    """Those that hang are gone, others are there, and what the pool held is sent."""
    pool, source = hung

    async def another_is_fed() -> bool:
        return (await pools_of(region)).get("default.0") not in (None, pool)

    await until(another_is_fed, "a pool that hangs is not replaced")
    assert not psutil.pid_exists(pool)
    known = set(load.acknowledged)

    async def everything_arrives() -> bool:
        return known <= set(await asyncio.to_thread(lambda: sink.log().recipients()))

    await until(everything_arrives, "what the pool that hung held was not sent")

    async def both_sources() -> bool:
        found = sources_of(fleet, region)
        return len(found) == 2 and source not in found

    await until(both_sources, "a source that hangs is not replaced")


async def cut_off(fleet: ClusterFleet) -> None:
    """As `sendfleet drill --scenario partition --on-live` does it, and judges it."""
    from actors.drill.cuts import Cut
    from actors.drill.fleets import LiveFleet
    from engine.drill.scenarios import SCENARIOS

    live = LiveFleet(fleet.config)
    fault = Cut(live, SCENARIOS["partition"])
    assert fault.region == VICTIM
    await fault.make()
    await until(fault.is_detected, "the region that is cut off was not called dead")
    await fault.heal()
    assert fault.extra == {
        "a region that is called dead sends nothing": True,
        "it returns": True,
        "it accepts again": None,  # the load is not the drill's
    }
    await live.refresh()
    own = {source.name for source in fleet.config.sources if source.region == VICTIM}
    assert own & {arrival.source for arrival in live.arrivals()}, "it sent nothing before either"


def _title(process: psutil.Process) -> str:
    try:
        return process.cmdline()[0]
    except (psutil.Error, IndexError):
        return ""


def sender_to(fleet: ClusterFleet) -> CampaignSender:
    region_of = {entry.name: entry.region for entry in fleet.config.regions}
    return CampaignSender(fleet.client, list(region_of), region_of=region_of)


def send_signal(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def marked(config: FleetConfig) -> set[str]:
    found = set()
    for path in Path(config.events.directory).glob("*/events-*.jsonl"):
        for line in path.read_text().splitlines():
            event = json.loads(line)
            if event["event"] == "delivered" and event["possible_duplicate"]:
                found.add(event["recipient"])
    return found


def test_the_head_dies_then_a_shard_is_cut_off_freezes_and_dies(tmp_path: Path, sink: SinkProcess) -> None:
    config = two_shards_and_a_region(
        tmp_path,
        sink.addresses["accept"][1],
        fleet={"replicas": 1, "degraded": "accept_local"},
    )

    async def standing(fleet: ClusterFleet) -> str:
        snapshot = await fleet.client.snapshot()
        return str(snapshot["standing"][VICTIM]["standing"])

    async def run(fleet: ClusterFleet) -> Load:
        async def is_live() -> bool:
            snapshot = await fleet.client.snapshot()
            cover = snapshot["regions"][VICTIM].get("failover", {})
            return snapshot["standing"][VICTIM]["standing"] == "live" and cover.get("standby_complete")

        async def is_dead() -> bool:
            return await standing(fleet) == "dead"

        load = Load(fleet.client)
        await lose_the_head(fleet, load, sink)
        await until(is_live, "the region did not return to Fleet's lease")
        hung = await stop_a_pool_and_a_source(fleet, OTHER)
        await cut_off(fleet)
        for _ in range(ROUNDS):
            await asyncio.sleep(1.0)
            victims = processes_of(fleet.nodes[VICTIM])
            send_signal(victims, signal.SIGSTOP)
            try:
                await until(is_dead, "the frozen region was not called dead")
                await asyncio.sleep(FROZEN_S)
            finally:
                send_signal(victims, signal.SIGCONT)
            await until(is_live, "the region did not return")
        await replaced(fleet, OTHER, hung, load, sink)
        await load.stop()
        return load

    async def kill(fleet: ClusterFleet) -> set[str]:
        async def has_copies_at_its_sibling() -> bool:
            cover = (await fleet.client.snapshot())["regions"][VICTIM].get("failover", {})
            return bool(cover.get("standby") == PEER and cover.get("standby_complete"))

        await until(has_copies_at_its_sibling, "the copies of a shard do not come home")
        batch = []

        async def the_victim_has_many() -> bool:
            part = messages(50, first=1_000_000 + len(batch))
            batch.extend(part)
            receipt = await fleet.client.submit(part, region=VICTIM)  # who was silent lately is asked last
            if receipt.region == VICTIM:
                of_victim.update(message.recipients[0] for message in part)
            return len(of_victim) >= 200

        await until(the_victim_has_many, "a shard that is asked for does not take it")
        campaign = sender_to(fleet)
        sending = asyncio.ensure_future(campaign.send(TEMPLATE, (), CHUNKS))

        async def is_on_its_way() -> bool:
            return campaign.report.chunks_accepted > 5

        await until(is_on_its_way, "no part of the campaign is accepted")
        send_signal(processes_of(fleet.nodes[VICTIM]), signal.SIGKILL)
        shutil.move(Path(config.spool.directory) / VICTIM, tmp_path / "gone")
        more = messages(100, first=2_000_000)
        await fleet.client.submit(more)
        report = await sending
        assert report.total == CAMPAIGN
        again = await sender_to(fleet).send(TEMPLATE, (), CHUNKS)
        assert (again.accepted, again.skipped) == (0, CAMPAIGN)
        to = [recipient for cut in CHUNKS for recipient in cut.chunk.recipients]
        return {*to, *(message.recipients[0] for message in (*batch, *more))}

    async def drained(fleet: ClusterFleet, wanted: set[str]) -> None:
        async def all_arrived() -> bool:
            return wanted <= set(await asyncio.to_thread(lambda: sink.log().recipients()))

        await until(all_arrived, "acknowledged mail is missing at the sink")

    async def everything(fleet: ClusterFleet) -> set[str]:
        load = await run(fleet)
        wanted = load.acknowledged | await kill(fleet)
        await drained(fleet, wanted)
        return wanted

    of_victim: set[str] = set()
    with ClusterFleet(config) as fleet:
        wanted = asyncio.run(everything(fleet))
    for name in (PEER, OTHER):
        report = audit(Path(config.spool.directory) / name)
        assert report.is_clean, report.problems
    clients = {row.client for row in sink.log().acceptances if row.recipient in of_victim}
    assert {c.rpartition(".")[0] for c in clients} <= {net_of(config, VICTIM), net_of(config, PEER)}
    arrived = Counter(sink.log().recipients())
    assert wanted <= set(arrived)
    twice = {recipient for recipient, count in arrived.items() if count > 1}
    assert twice <= marked(config), f"sent twice without a mark: {sorted(twice - marked(config))[:10]}"
