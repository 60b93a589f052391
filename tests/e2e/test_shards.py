"""A provider's pool becomes two processes under load and one again, and at the sink no limit is ever exceeded."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from engine.config.schema import FleetConfig
from engine.region import resizing, sharding
from engine.region.ports import PoolName
from engine.region.region import Region
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import encode_submission
from tests.support.region import LocalNode, Meter, fleet, region_on, start_region, until

FIRST, SECOND = PoolName("default", 0), PoolName("default", 1)
SOURCES = 4
TOTAL = 5
BODY = b"From: a@example.com\r\nSubject: x\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decisions within a second, so that a test sees several."""
    monkeypatch.setattr(resizing, "LOOK_S", 0.1)
    monkeypatch.setattr(sharding, "GROW_AFTER_NS", 300_000_000)
    monkeypatch.setattr(sharding, "SHRINK_AFTER_NS", 600_000_000)


def messages(first: int, count: int) -> list[Message]:
    return [
        Message("a@example.com", (f"user{n}@example.org",), BODY % n, Stream.MARKETING)
        for n in range(first, first + count)
    ]


@dataclass(frozen=True)
class Limits:
    """What binds: the rate of each source (0: none), or its connections. `answer_ms`: how long an answer takes."""

    rate: int
    connections: int
    answer_ms: int
    count: int


BY_RATE = Limits(rate=40, connections=3, answer_ms=30, count=1500)
BY_CONNECTIONS = Limits(rate=0, connections=2, answer_ms=60, count=400)


def config_of(directory: Path, port: int, limits: Limits = BY_RATE) -> FleetConfig:
    sources = [
        {
            "name": f"eu-{n}",
            "region": "eu",
            "ip": f"127.0.0.{10 + n}",
            "ehlo": f"mta{n}.example.com",
            "streams": ["transactional", "notification", "marketing"],
        }
        for n in range(SOURCES)
    ]
    profile = {
        "rate": f"{limits.rate}/1s" if limits.rate else "unlimited",
        "max_connections": limits.connections,
        "max_connections_total": TOTAL,
    }
    return fleet(
        directory,
        port,
        sources=sources,
        providers={"default": profile},
        limits={"pool_shards": 2, "pool_busy": 0.5, "pool_credits": 200, "batch": 50},
    )


def sink(directory: Path, limits: Limits = BY_RATE) -> SinkProcess:
    config = directory / "personalities.yaml"
    config.write_text(f"personalities:\n  it: {{delay: {{final: {limits.answer_ms}ms}}}}\n")
    return SinkProcess(config, directory / "sink.log")


def set_load(node: LocalNode, share: float) -> None:
    for name in (FIRST, SECOND):
        node.meters.setdefault(name, Meter(share)).share = share


def shards(region: Region) -> int:
    outstanding: dict[str, int] = region.snapshot()["outstanding"]  # type: ignore[assignment]
    return len(outstanding)


def carried(node: LocalNode, name: PoolName) -> frozenset[int]:
    return node.pools[name]._tenure.sources or frozenset()


def is_settled(region: Region, node: LocalNode, count: int) -> bool:
    """So many processes, each carries something, and together they carry every source once."""
    names = [FIRST, SECOND][:count]
    if shards(region) != count or not all(name in node.pools for name in names):
        return False
    sources = [source for name in names for source in carried(node, name)]
    return all(carried(node, name) for name in names) and sorted(sources) == list(range(SOURCES))


def check_limits(server: SinkProcess, recipients: int, limits: Limits = BY_RATE) -> None:
    log = server.log()
    assert set(log.recipients()) == {f"user{n}@example.org" for n in range(recipients)}
    clients = {client for client, _ in log.clients()}
    assert len(clients) == SOURCES
    for client in clients:
        assert not limits.rate or log.max_in_window(0.99, client=client) <= limits.rate
        assert log.max_connections(client=client) <= limits.connections
    assert log.max_connections() <= TOTAL


@pytest.mark.parametrize("limits", [BY_RATE, BY_CONNECTIONS])
def test_limits_hold_over_a_split_and_a_merge_and_nothing_is_lost(tmp_path: Path, limits: Limits) -> None:
    """The answers take a while, so sources and connections are in use whenever they are moved."""
    count = limits.count
    with sink(tmp_path, limits) as server:

        async def run() -> None:
            config = config_of(tmp_path, server.addresses["it"][1], limits)
            region, spool, node = await start_region(config)
            set_load(node, 0.9)
            await region.accept(*encode_submission(messages(0, count), bytes(16)))
            await until(lambda: is_settled(region, node, 2))
            assert {len(carried(node, name)) for name in (FIRST, SECOND)} == {SOURCES // 2}
            totals = [total.limit for pool in node.pools.values() for total in pool._gates.totals.values()]
            assert sum(totals) <= TOTAL
            before = spool.counts()["delivered"]
            await until(lambda: spool.counts()["delivered"] > before + count // 10)
            assert node.pools[SECOND].stats()["outcomes"]["delivered"] > 10  # type: ignore[index]
            set_load(node, 0.01)
            await until(lambda: is_settled(region, node, 1))
            assert node.pools[SECOND].stopping
            set_load(node, 0.9)
            await until(lambda: is_settled(region, node, 2))
            assert spool.counts()["queued"] > 0  # all of that happened under load
            await until(lambda: spool.counts()["queued"] == 0, 60)
            assert spool.counts()["delivered"] == count
            region.check()
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
        check_limits(server, count, limits)
        assert set(server.log().recipients().values()) == {1}
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems


def test_a_process_that_dies_takes_nothing_along_and_the_other_goes_on(tmp_path: Path) -> None:
    """Killed at rest, and in the middle of a split: what it had goes out again, marked, and no rate is exceeded."""
    count = 700
    with sink(tmp_path) as server:

        async def run() -> None:
            region, spool, node = await start_region(config_of(tmp_path, server.addresses["it"][1]))
            set_load(node, 0.9)
            await region.accept(*encode_submission(messages(0, count), bytes(16)))
            await until(lambda: SECOND in node.pools)
            node.kill_pool(FIRST)
            await until(lambda: is_settled(region, node, 2))
            before = spool.counts()["delivered"]
            await until(lambda: spool.counts()["delivered"] > before + 100)
            node.kill_pool(SECOND)
            await until(lambda: is_settled(region, node, 2))
            await until(lambda: spool.counts()["queued"] == 0, 60)
            region.check()
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
        check_limits(server, count)
        twice = {name for name, times in server.log().recipients().items() if times > 1}
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems
    assert report.counts["delivered"] == count
    assert len(twice) < 50


def test_a_region_that_starts_again_goes_on_with_the_processes_it_finds(tmp_path: Path) -> None:
    """Each says what it carries; that stays so, without a pause and without a limit exceeded."""
    count = 900
    with sink(tmp_path) as server:

        async def run() -> None:
            region, spool, node = await start_region(config_of(tmp_path, server.addresses["it"][1]))
            set_load(node, 0.9)
            await region.accept(*encode_submission(messages(0, count), bytes(16)))
            await until(lambda: is_settled(region, node, 2))
            set_load(node, 0.4)  # neither more nor fewer
            before = [carried(node, name) for name in (FIRST, SECOND)]
            await region.stop()
            spool.epoch += 1  # as another opening makes it
            region = await region_on(node, spool)
            assert shards(region) == 2
            await until(lambda: spool.counts()["delivered"] > 300)
            assert [carried(node, name) for name in (FIRST, SECOND)] == before
            # and once more in the middle of a merge
            set_load(node, 0.01)
            await until(lambda: carried(node, SECOND) != before[1])
            await region.stop()
            spool.epoch += 1
            set_load(node, 0.4)
            region = await region_on(node, spool)
            await until(lambda: is_settled(region, node, shards(region)))
            await until(lambda: spool.counts()["queued"] == 0, 60)
            assert spool.counts()["delivered"] == count
            region.check()
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
        check_limits(server, count)
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems


def test_one_source_cannot_be_shared_and_stays_alone(tmp_path: Path) -> None:
    with sink(tmp_path) as server:
        config = config_of(tmp_path, server.addresses["it"][1])
        alone = config.model_copy(update={"sources": config.sources[:1]})

        async def run() -> None:
            region, spool, node = await start_region(alone)
            set_load(node, 1.0)
            await region.accept(*encode_submission(messages(0, 60), bytes(16)))
            await until(lambda: spool.counts()["queued"] == 0, 60)
            assert shards(region) == 1
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
