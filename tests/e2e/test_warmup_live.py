"""Days of warm-up in seconds, against a real sink: by its own count and time no cap is exceeded, and each is used up.

The clock of the region and its pools is put forward to the moment at which the next message may go. What the sink saw
is counted on that clock: an acceptance has the time that the clock showed then.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.config.schema import FleetConfig
from engine.region import region as region_module
from engine.region.region import Region
from engine.region.sites import DAY_MS
from engine.sink.log import SinkLog, max_in_window
from engine.sink.process import SinkProcess
from engine.smtp.opener import Opened, OpenFailure, SessionOpener, Target
from engine.spool.audit import audit
from engine.spool.store import Spool
from engine.values.message import Message
from engine.values.stream import Stream
from engine.values.submission import decode_receipt, encode_submission
from engine.warmup.plan import Phase
from tests.support import region as region_support
from tests.support.days import HOUR_S, Days, Run
from tests.support.region import LocalNode, fleet, region_on, start_region, until

BODY = b"From: a@example.com\r\nTo: b@example.org\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"
PROVIDERS = ("google", "outlook")
STAGES = ((3, 2), (5, 3), (9, 4))  # a day, an hour
NOISE_S = 5  # of the sink's times on the clock that is put forward: real milliseconds are as long on it


def messages(count: int, domain: str, first: int = 0) -> list[Message]:
    return [
        Message("a@example.com", (f"user{n}@{domain}",), BODY % n, Stream.MARKETING)
        for n in range(first, first + count)
    ]


async def submit(region: Region, batch: list[Message], key: bytes) -> None:
    assert not decode_receipt(await region.accept(*encode_submission(batch, key))).errors


def config_of(tmp_path: Path, server: SinkProcess, **sections: Any) -> FleetConfig:
    routes = [
        {"domains": [f"{name}.test"], "hosts": [f"127.0.0.1:{address[1]}"], "provider": name}
        for name, address in server.addresses.items()
    ]
    return fleet(
        tmp_path,
        25,
        routes=routes,
        tls={
            "exceptions": [
                {"provider": name, "mode": "disabled", "reason": "loopback test"} for name in server.addresses
            ]
        },
        retry={"marketing": {"first": "1s", "max": "1s", "expire": "30d"}},
        **sections,
    )


def sink(tmp_path: Path, **personalities: str) -> SinkProcess:
    config = tmp_path / "personalities.yaml"
    rows = "".join(f"  {name}: {text}\n" for name, text in personalities.items())
    config.write_text(f"personalities:\n{rows}")
    return SinkProcess(config, tmp_path / "sink.log")


def per_day(log: SinkLog, clock: Days) -> Counter[tuple[str, str, int]]:
    """Acceptances by client, personality and day."""
    return Counter(
        (row.client, row.personality, clock.showed_ms(row.at_ns) // DAY_MS) for row in log.acceptances
    )


# -- several days


def check_hours(log: SinkLog, clock: Days) -> None:
    """No sliding hour holds more than the hourly cap of the later of the days that it touches."""
    for client, personality in log.clients():
        rows = [clock.showed_ms(row.at_ns) for row in log.select(client=client, personality=personality)]
        first_day = min(rows) // DAY_MS
        for stage, (_, hour) in enumerate(STAGES):
            until_ms = (first_day + stage + 1) * DAY_MS
            times = sorted(at_ms * 1_000_000 for at_ms in rows if at_ms < until_ms)
            assert max_in_window(times, (HOUR_S - NOISE_S) * 10**9) <= hour, (client, personality, stage)


def test_no_cap_is_exceeded_and_each_is_used_up(tmp_path: Path) -> None:
    """Two new sources at two providers. The first day's mail comes in the evening, and more than the days can carry."""
    stages = [{"day": day, "hour": hour} for day, hour in STAGES]
    clock = Days()
    each = 2 * sum(day for day, _ in STAGES) + 7
    with sink(tmp_path, **dict.fromkeys(PROVIDERS, "{}")) as server:
        config = config_of(
            tmp_path,
            server,
            providers={name: {"rate": "unlimited"} for name in PROVIDERS},
            warmup={"tables": {"short": {"stages": stages}}},
        )
        sources = tuple(source.model_copy(update={"warmup": "short"}) for source in config.sources)
        config = config.model_copy(update={"sources": sources})
        clock.to_time_of_day(20)
        first_day = clock.wall_ms() // DAY_MS

        async def run() -> None:
            region, spool, node = await start_region(config, clock=clock)
            live = Run(region, clock)
            for number, name in enumerate(PROVIDERS):
                await submit(region, messages(each, f"{name}.test"), bytes([number]) * 16)
            await until(lambda: len(region.parts.sites) == 2)
            for _ in STAGES:
                await live.to_the_end_of_the_day()
            assert {plan.phase for owner in node.owners.values() for plan in owner.warmup.plans.values()} == {
                Phase.FINISHED
            }
            region.parts.dispatcher.wake_all()
            await until(lambda: spool.counts()["queued"] == 0)  # what the caps had held
            region.check()
            await node.stop()
            await region.stop()
            spool.close()

        asyncio.run(run())
        log = server.log()
    found = per_day(log, clock)
    clients = {client for client, _ in log.clients()}
    assert len(clients) == 2
    for stage, (cap, _) in enumerate(STAGES):
        for client in clients:
            for name in PROVIDERS:
                assert found[client, name, first_day + stage] == cap
    check_hours(log, clock)
    assert set(log.recipients().values()) == {1}
    assert log.total == 2 * each
    report = audit(tmp_path / "spool" / "eu")
    assert report.is_clean, report.problems


# -- granted on one day, sent on the next

CAP = 6


class Doorkeeper(SessionOpener):
    """Opens no session before `door` is set."""

    door: asyncio.Event

    async def __call__(self, target: Target, *, timeout_s: float) -> Opened | OpenFailure:
        await self.door.wait()
        return await super().__call__(target, timeout_s=timeout_s)


@pytest.fixture
def evening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Days, SinkProcess, FleetConfig]]:
    """One source with a cap of 6 a day, shortly before midnight."""
    monkeypatch.setattr(region_support, "SessionOpener", Doorkeeper)
    clock = Days()
    with sink(tmp_path, google="{}") as server:
        config = config_of(
            tmp_path,
            server,
            providers={"google": {"rate": "unlimited", "daily_cap": CAP}},
            limits={"batch": 2},
        )
        clock.to_time_of_day(23.9)
        yield clock, server, config.model_copy(update={"sources": config.sources[:1]})


def run_over_midnight(
    evening: tuple[Days, SinkProcess, FleetConfig],
    midnight: Callable[[Region, Spool, LocalNode], Awaitable[Region]],
) -> list[int]:
    """All of the cap waits for a session when midnight comes; returns what the sink got per day."""
    clock, server, config = evening
    first_day = clock.wall_ms() // DAY_MS

    async def run() -> None:
        Doorkeeper.door = asyncio.Event()
        region, spool, node = await start_region(config, clock=clock)
        await submit(region, messages(30, "google.test"), bytes(16))
        await until(lambda: sum(len(pool._jobs) for pool in node.pools.values()) == CAP)
        for pool in node.pools.values():
            pool._hold_ns = HOUR_S * 10**9  # what waits here is sent after midnight, and not given back
        clock.to_time_of_day(1 / HOUR_S)
        region = await midnight(region, spool, node)
        await until(lambda: spool.counts()["delivered"] >= CAP)
        region.parts.dispatcher.wake_all()
        await asyncio.sleep(0.5)  # more would come now
        assert clock.wall_ms() // DAY_MS == first_day + 1
        clock.to_time_of_day(1 / HOUR_S)
        region.parts.dispatcher.wake_all()
        await until(lambda: spool.counts()["delivered"] >= 2 * CAP)
        region.check()
        await node.stop()
        await region.stop()
        spool.close()

    asyncio.run(run())
    found = per_day(server.log(), clock)
    ((client, _),) = server.log().clients()
    return [found[client, "google", first_day + day] for day in range(3)]


def test_what_waits_at_midnight_counts_for_the_day_on_which_it_is_sent(
    evening: tuple[Days, SinkProcess, FleetConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody looks at the clock before the answers come."""
    monkeypatch.setattr(region_module, "TICK_S", 3600.0)

    async def midnight(region: Region, spool: Spool, node: LocalNode) -> Region:
        Doorkeeper.door.set()
        return region

    assert run_over_midnight(evening, midnight) == [0, CAP, CAP]


def test_what_is_sent_while_the_region_is_away_counts_too(
    evening: tuple[Days, SinkProcess, FleetConfig],
) -> None:
    """The region's process ends before midnight, its pool sends after it, and the region starts again."""
    _, server, _ = evening

    async def midnight(region: Region, spool: Spool, node: LocalNode) -> Region:
        (pool,) = node.pools.values()
        heard, pool.reports.send = pool.reports.send, lambda report: None
        await region.stop()
        Doorkeeper.door.set()
        await until(lambda: server.log().total == CAP)
        spool.epoch += 1  # as another opening makes it
        pool.reports.send = heard
        return await region_on(node, spool)

    assert run_over_midnight(evening, midnight) == [0, CAP, CAP]
