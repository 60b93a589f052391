"""Two regions with copies: a region that dies is covered by the other, and gives up what that owns when it returns."""

import asyncio
import shutil
from collections import Counter
from pathlib import Path

import pytest

from engine.alerts.monitor import Monitor
from engine.cli.standing import cover_lines, idle_regions
from engine.failover.messages import Standing
from engine.metrics import gather
from engine.metrics.catalogue import Point
from engine.region.ports import RegionAway
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.values.message import Message
from engine.values.stream import Stream
from tests.support.covered import CoveredFleet
from tests.support.ray_fleet import two_regions
from tests.support.region import until
from tests.support.sinks import accepting_sink

BODY = (
    b"From: a@example.com\r\nTo: b@example.org\r\nSubject: x\r\nMessage-ID: <%d@example.com>\r\n\r\nhello\r\n"
)
NOWHERE = 1  # nothing listens there: mail waits
KEY = b"0123456789abcdef"


def mail(count: int, *, first: int = 0) -> list[Message]:
    return [
        Message("a@example.com", (f"user{n}@example.org",), BODY % n, Stream.MARKETING)
        for n in range(first, first + count)
    ]


def recipients(count: int) -> set[str]:
    return {f"user{n}@example.org" for n in range(count)}


@pytest.fixture
def sink(tmp_path: Path):
    with accepting_sink(tmp_path) as process:
        yield process


def assert_clean(fleet: CoveredFleet) -> None:
    for region in fleet.config.regions:
        path = Path(fleet.config.spool.directory) / region.name
        if path.exists():
            report = audit(path)
            assert report.is_clean, (region.name, report.problems)


AT_ONCE = {"quiet": "1ms"} | {key: {"after": "1ms"} for key in ("region", "replication", "degraded")}


def covered(tmp_path: Path, port: int, degraded: str = "refuse") -> CoveredFleet:
    sections = {"fleet": {"replicas": 1, "degraded": degraded}, "alerts": AT_ONCE}
    return CoveredFleet(two_regions(tmp_path, port, **sections))


@pytest.fixture(autouse=True)
def _figures_are_fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "FRESH_S", 0.0)


def test_mail_flows_and_the_standby_forgets_what_is_delivered(tmp_path: Path, sink: SinkProcess) -> None:
    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            receipt = await fleet.submit("eu", mail(300), KEY)
            assert sum(map(len, receipt.ids)) == 300
            assert not receipt.degraded
            again = await fleet.submit_when_live("us", mail(300), KEY)
            assert again.repeated
            assert again.ids == receipt.ids
            await until(lambda: fleet.spools["eu"].counts()["delivered"] == 300)
            await until(lambda: copies(fleet, "us") == 0)

    fleet = covered(tmp_path, sink.addresses["accept"][1])
    asyncio.run(run(fleet))
    assert_clean(fleet)
    assert set(Counter(sink.log().recipients()).values()) == {1}


def copies(fleet: CoveredFleet, region: str) -> int:
    env = fleet.spools[region]._env
    with env.read() as txn:
        return int(txn.stat(env.db["copies"])["entries"])


def test_a_region_and_its_disk_are_lost_and_its_mail_goes_out(tmp_path: Path, sink: SinkProcess) -> None:
    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            first = await fleet.submit("eu", mail(400), KEY)
            await fleet.kill("eu")
            shutil.move(Path(fleet.config.spool.directory) / "eu", tmp_path / "gone")
            second = await fleet.submit_anywhere(mail(400), KEY)  # the client has lost its answer
            assert second.ids == first.ids
            await until(lambda: fleet.standing("eu") is Standing.DEAD)
            await until(lambda: fleet.spools["us"].counts()["queued"] == 0)
            with pytest.raises(RegionAway, match="no standby"):
                await fleet.submit("us", mail(1, first=900), bytes(16))
            assert fleet.regions["us"].condition == "refusing"
            monitor = Monitor(fleet.config, fleet)
            await fleet.until_alerts(monitor, ("region", "eu", ""), ("replication", "us", ""))
            alone = "us: its standby, eu, is not in reach: new mail is refused"
            assert [line.partition(";")[0] for line in cover_lines(fleet.snapshot())] == [alone]
            assert idle_regions(fleet.snapshot()) == [
                "us refuses new mail: no standby region is within reach"
            ]
            await fleet.start("eu")  # on an empty disk
            await until(fleet.all_live)
            await fleet.until_alerts(monitor)
            await until(lambda: fleet.regions["us"].condition == "up")
            await until(lambda: not cover_lines(fleet.snapshot()) and not idle_regions(fleet.snapshot()))
            await fleet.submit("eu", mail(100, first=400), b"n" * 16)
            await until(lambda: fleet.spools["eu"].counts()["delivered"] == 100)

    fleet = covered(tmp_path, sink.addresses["accept"][1])
    asyncio.run(run(fleet))
    assert_clean(fleet)
    arrived = Counter(sink.log().recipients())
    assert set(arrived) == recipients(500)


def test_a_region_that_returns_gives_up_what_was_adopted(tmp_path: Path) -> None:
    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            receipt = await fleet.submit("eu", mail(50), KEY)
            fleet.cut = {("", "eu"), ("eu", "us"), ("us", "eu")}
            await until(lambda: fleet.spools["us"].counts()["queued"] == 50)
            assert fleet.regions["eu"].parts.term() is None
            monitor = Monitor(fleet.config, fleet)
            await fleet.until_alerts(
                monitor, ("region", "eu", "lease"), ("replication", "eu", ""), ("replication", "us", "")
            )
            assert cover_lines(fleet.snapshot())[0].startswith("eu: no lease: it sends nothing")
            assert "eu is dead" in idle_regions(fleet.snapshot())
            with pytest.raises((RegionAway, TimeoutError)):
                async with asyncio.timeout(0.5):
                    await fleet.submit("eu", mail(1, first=99), bytes(16))
            fleet.cut.clear()
            await until(fleet.all_live)
            status = fleet.spools["eu"].status(receipt.ids[0][0])
            assert status is not None
            assert status["state"] == "moved"
            assert fleet.spools["eu"].counts()["moved"] == 50

    fleet = covered(tmp_path, NOWHERE)
    asyncio.run(run(fleet))
    assert_clean(fleet)
    assert sum(r.counts["queued"] for r in map(audit, Path(fleet.config.spool.directory).iterdir())) <= 51


def test_a_region_that_starts_says_nothing_of_what_its_peer_has_given_up(tmp_path: Path) -> None:
    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            await fleet.submit("eu", mail(50), KEY)
            await fleet.kill("eu")
            await until(lambda: fleet.spools["us"].counts()["expired"] == 50)
            fleet.cut = {("", "eu")}
            await fleet.start("eu")  # where all of it is queued, and its time is over
            await asyncio.sleep(2)  # long enough to look at it, without a lease
            assert fleet.spools["eu"].counts()["queued"] == 50
            fleet.cut.clear()
            await until(fleet.all_live)
            await until(lambda: fleet.spools["eu"].counts()["queued"] == 0)
            assert fleet.spools["eu"].counts()["moved"] == 50
            assert fleet.spools["eu"].counts()["expired"] == 0

    config = two_regions(
        tmp_path, NOWHERE, fleet={"replicas": 1}, retry={"marketing": {"first": "500ms", "expire": "2s"}}
    )
    asyncio.run(run(CoveredFleet(config)))


def test_without_a_peer_it_may_accept_and_says_so_and_catches_up(tmp_path: Path) -> None:
    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            await fleet.kill("us")
            await until(lambda: fleet.standing("us") is Standing.DEAD)
            monitor = Monitor(fleet.config, fleet)
            await monitor.look()
            assert (await fleet.submit_anywhere(mail(20), KEY)).degraded
            assert (
                await fleet.submit("eu", mail(20), KEY)
            ).degraded  # asked for again: it is still on one disk
            assert fleet.regions["eu"].snapshot()["failover"]["degraded_receipts"] == 1  # type: ignore[index]
            await until(lambda: fleet.regions["eu"].condition == "up")  # it takes mail
            assert not idle_regions(fleet.snapshot())
            said = "; ".join(cover_lines(fleet.snapshot()))
            assert said.startswith(
                "eu: its standby, us, is not in reach: new mail is accepted without a copy"
            )
            assert "degraded receipts since its start: 1" in said
            assert Point("sendfleet.failover.degraded", (), 1) in fleet.regions["eu"].figures()
            await fleet.until_alerts(
                monitor, ("region", "us", ""), ("replication", "eu", ""), ("degraded", "eu", "")
            )
            told = [event for _, events in fleet.spools["eu"].read_outbox(1000) for event in events]
            assert any(
                row[1] == "alert" and row[2]["alert"] == "replication" and row[2]["state"] == "firing"
                for row in told
                if len(row) == 3
            )
            await fleet.start("us")
            await until(fleet.all_live)
            assert copies(fleet, "us") == 20
            for region in ("eu", "us"):
                receipt = await fleet.submit(region, mail(20), KEY, again=True)
                assert (receipt.repeated, receipt.degraded) == (True, False)

    fleet = covered(tmp_path, NOWHERE, "accept_local")
    asyncio.run(run(fleet))
    assert_clean(fleet)


def test_who_starts_with_a_clock_that_was_set_back_is_heard_and_obeyed(tmp_path: Path) -> None:
    """First the region, on its disk, then Fleet, then the region on an empty disk, and then both."""

    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            ids = set((await fleet.submit("eu", mail(10), KEY)).ids)
            for turn, who in enumerate(("region", "fleet", "disk", "all"), 1):
                fleet.behind_s += 3600
                if who != "fleet":
                    await fleet.kill("eu")
                    if who == "disk":
                        await until(lambda: fleet.spools["us"].counts()["queued"] == 20)
                        shutil.move(Path(fleet.config.spool.directory) / "eu", tmp_path / "gone")
                    await fleet.start("eu")
                if who in ("fleet", "all"):
                    fleet.restart_fleet()
                await until(fleet.all_live)
                ids.update((await fleet.submit("eu", mail(5, first=5 * turn + 5), bytes([turn]) * 16)).ids)
            assert len(ids) == 30

    fleet = covered(tmp_path, NOWHERE)
    asyncio.run(run(fleet))
    assert_clean(fleet)


def test_a_fleet_that_starts_again_in_the_middle_stops_nothing(tmp_path: Path, sink: SinkProcess) -> None:
    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            await fleet.submit("eu", mail(100), KEY)
            epoch = fleet.regions["eu"].parts.term()
            fleet.restart_fleet()
            await fleet.submit("us", mail(100, first=100), b"z" * 16)
            await until(lambda: sum(s.counts()["delivered"] for s in fleet.spools.values()) == 200)
            await until(fleet.all_live)
            assert fleet.regions["eu"].parts.term() == epoch

    fleet = covered(tmp_path, sink.addresses["accept"][1])
    asyncio.run(run(fleet))
    assert_clean(fleet)
