"""A region is drained: its peer takes what waits there, whoever is killed on the way; nothing is lost or sent twice."""

import asyncio
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from engine.failover.handover import Offer, Recall, Request
from engine.failover.messages import Standing
from engine.region.portions import FIRST
from engine.region.ports import RegionDraining
from engine.region.region import Region
from engine.region.sites import Terms
from engine.sink.process import SinkProcess
from engine.spool.audit import audit
from engine.spool.audit_moved import audit_moved
from engine.spool.store import Spool
from engine.values.stream import Stream
from tests.e2e.test_regions_cover import NOWHERE, copies, covered, mail, recipients
from tests.support.covered import CoveredFleet
from tests.support.draining import DrainingFleet
from tests.support.ray_fleet import two_regions, two_shards_and_a_region
from tests.support.region import until
from tests.support.sinks import accepting_sink
from tests.support.spools import assert_conserved

KEY = b"0123456789abcdef"


@pytest.fixture
def sink(tmp_path: Path):
    with accepting_sink(tmp_path) as process:
        yield process


def test_a_drained_region_is_empty_and_its_peer_sends_everything(tmp_path: Path) -> None:
    async def run(fleet: DrainingFleet) -> None:
        async with fleet:
            receipt = await fleet.submit("eu", mail(1200), KEY)
            assert await fleet.regions["eu"].drain(True)
            assert not await fleet.regions["eu"].drain(True)
            with pytest.raises(RegionDraining):
                await fleet.submit("eu", mail(1), bytes(16))
            assert (await fleet.submit("eu", mail(1200), KEY)).ids == receipt.ids
            await until(lambda: fleet.regions["eu"].condition == "drained")
            assert fleet.status("eu")["handed_over"] == 1200
            assert fleet.spools["us"].counts()["queued"] == 1200
            again = await fleet.submit("us", mail(1200), KEY)  # its key went along
            assert (again.repeated, again.ids) == (True, receipt.ids)

    fleet = DrainingFleet(two_regions(tmp_path, NOWHERE))
    asyncio.run(run(fleet))
    assert_conserved(fleet.path("eu"), moved=1200)
    assert_conserved(fleet.path("us"), queued=1200)


def test_a_shard_gives_its_mail_to_its_sibling_first_and_a_region_all_of_its_own_to_another(
    tmp_path: Path,
) -> None:
    async def run(fleet: DrainingFleet) -> None:
        async with fleet:
            await fleet.submit("eu-1", mail(1200), KEY)
            assert await fleet.regions["eu-1"].drain(True)
            await until(lambda: fleet.regions["eu-1"].condition == "drained")
            assert fleet.spools["eu-2"].counts()["queued"] == 1200
            assert await fleet.regions["eu-2"].drain(True)
            await until(lambda: fleet.regions["eu-2"].condition == "drained")
            assert fleet.spools["us"].counts()["queued"] == 1200

    fleet = DrainingFleet(two_shards_and_a_region(tmp_path, NOWHERE))
    asyncio.run(run(fleet))
    assert_conserved(fleet.path("eu-1"), moved=1200)
    assert_conserved(fleet.path("us"), queued=1200)


def assert_fleet_conserved(tmp_path: Path, *, has_copies: bool = False) -> None:
    """Every message counts in one region."""
    reports = {path.name: audit(path) for path in (tmp_path / "spool").iterdir()}
    assert not any(report.problems for report in reports.values())
    found = audit_moved(reports, all_here=True, has_copies=has_copies)
    assert (found.problems, found.twice) == ([], ())


@pytest.mark.parametrize("victim", ["eu", "us"])
@pytest.mark.parametrize("moment", ["offered", "taken", "asked"])
def test_either_side_is_killed_between_two_steps(
    tmp_path: Path, sink: SinkProcess, victim: str, moment: str
) -> None:
    """Killed when the offer is on the giver's disk alone; when it is on both; when the giver has asked again."""
    kills: list[str] = []

    async def run(fleet: DrainingFleet) -> None:
        async def killer() -> None:
            await until(lambda: bool(kills))
            await fleet.kill(victim)
            fleet.fault = lambda *_: None
            await fleet.start(victim)

        def fault(sender: str, receiver: str, request: Request, is_before: bool) -> None:
            point = {"offered": (Offer, True), "taken": (Offer, False), "asked": (Recall, False)}[moment]
            if kills or (moment == "asked" and isinstance(request, Offer) and not is_before):
                raise ConnectionError("lost")
            if isinstance(request, point[0]) and is_before is point[1]:
                kills.append(victim)
                raise ConnectionError("lost")

        async with fleet:
            for region in fleet.regions.values():
                region.parts.dispatcher.paused = True  # or it is all sent before anybody is killed
            await fleet.submit("eu", mail(60), KEY)
            fleet.fault = fault
            await fleet.regions["eu"].drain(True)
            await killer()
            for region in fleet.regions.values():
                region.parts.dispatcher.paused = False
                region.parts.dispatcher.wake_all()
            await until(lambda: fleet.regions["eu"].condition == "drained")
            await until(lambda: fleet.spools["us"].counts()["queued"] == 0)

    fleet = DrainingFleet(two_regions(tmp_path, sink.addresses["accept"][1]))
    asyncio.run(run(fleet))
    assert kills == [victim]
    assert_fleet_conserved(tmp_path)
    assert Counter(sink.log().recipients()) == Counter(recipients(60))


def lose_the_answer(sender: str, receiver: str, request: Request, is_before: bool) -> None:
    """What was offered is taken, and the giver does not hear of it."""
    if isinstance(request, Recall) or (isinstance(request, Offer) and not is_before):
        raise ConnectionError("lost")


def test_with_copies_they_follow_the_new_owner(tmp_path: Path) -> None:
    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            await fleet.submit_when_live("eu", mail(700), KEY)
            await fleet.regions["eu"].drain(True)
            await until(lambda: fleet.regions["eu"].condition == "drained")
            assert fleet.spools["us"].counts()["queued"] == 700
            await until(lambda: copies(fleet, "us") == 0)
            assert copies(fleet, "eu") == 700
            await fleet.regions["eu"].drain(False)
            await fleet.submit_when_live("eu", mail(1, first=700), bytes(16))

    fleet = covered(tmp_path, NOWHERE)
    asyncio.run(run(fleet))
    assert_conserved(tmp_path / "spool" / "eu", moved=700, queued=1)
    assert_conserved(tmp_path / "spool" / "us", queued=700)


def test_with_copies_a_region_of_shards_is_emptied_one_after_the_other(tmp_path: Path) -> None:
    """As docs/operations.md says: the next shard gives its mail to another region when the first is down."""

    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            await until(lambda: (fleet.standby("eu-1"), fleet.standby("eu-2")) == ("eu-2", "eu-1"))
            await fleet.submit_when_live("eu-1", mail(300), KEY)
            await fleet.regions["eu-1"].drain(True)
            await until(lambda: fleet.regions["eu-1"].condition == "drained")
            assert fleet.spools["eu-2"].counts()["queued"] == 300
            await fleet.kill("eu-1")
            await until(lambda: fleet.standby("eu-2") == "us")
            await fleet.regions["eu-2"].drain(True)
            await until(lambda: fleet.regions["eu-2"].condition == "drained")
            assert fleet.spools["us"].counts()["queued"] == 300

    config = two_shards_and_a_region(tmp_path, NOWHERE, fleet={"replicas": 1})
    asyncio.run(run(CoveredFleet(config)))
    assert_fleet_conserved(tmp_path, has_copies=True)


@pytest.mark.parametrize("victim", ["eu", "us"])
def test_with_copies_a_region_dies_while_it_is_not_known_who_has_them(
    tmp_path: Path, sink: SinkProcess, victim: str
) -> None:
    async def run(fleet: CoveredFleet) -> None:
        async with fleet:
            for region in fleet.regions.values():
                region.parts.dispatcher.paused = True
            await fleet.submit("eu", mail(300), KEY)
            fleet.fault = lose_the_answer
            await fleet.regions["eu"].drain(True)
            await until(lambda: fleet.spools["us"].counts()["queued"] == 300)
            await fleet.kill(victim)
            await until(lambda: fleet.standing(victim) is Standing.DEAD)
            fleet.fault = lambda *_: None
            (survivor,) = fleet.regions.values()
            survivor.parts.dispatcher.paused = False
            survivor.parts.dispatcher.wake_all()
            await until(lambda: survivor._spool.counts()["queued"] == 0)
            await fleet.start(victim)
            await until(fleet.all_live)
            await until(lambda: all(spool.counts()["queued"] == 0 for spool in fleet.spools.values()))

    fleet = covered(tmp_path, sink.addresses["accept"][1])
    asyncio.run(run(fleet))
    survivor = "us" if victim == "eu" else "eu"
    assert_conserved(tmp_path / "spool" / survivor, delivered=300)
    assert_conserved(tmp_path / "spool" / victim, moved=300)
    assert_fleet_conserved(tmp_path, has_copies=True)
    assert Counter(sink.log().recipients()) == Counter(recipients(300))


def suspend(region: Region, minutes: int) -> None:
    """Its sources at the only site, for so many minutes; 0 ends it."""
    (site,) = {site.name for site in region.parts.sites.opened()}
    until_ms = round(time.time() * 1000) + minutes * 60_000
    change = region.parts.enforcement.suspensions
    for source in region.parts.sites.sources.values():
        if minutes:
            change.order(source.name, site, until_ms, "blocked")
        else:
            change.relax(source.name, site, 0)


def test_mail_that_cannot_be_sent_here_for_long_goes_to_a_region_that_can_and_stays_there(
    tmp_path: Path, sink: SinkProcess
) -> None:
    """Its sources are suspended at the site. What another region has accepted is not given on, nor back."""

    async def run(fleet: DrainingFleet) -> None:
        async with fleet:
            eu, us = fleet.regions["eu"], fleet.regions["us"]
            counts = {name: spool.counts for name, spool in fleet.spools.items()}
            await fleet.submit("eu", mail(1, first=1001), b"e" * 16)
            await fleet.submit("us", mail(1, first=1002), b"u" * 16)
            await until(lambda: all(count()["delivered"] for count in counts.values()))
            suspend(eu, 5)
            suspend(us, 5)
            await fleet.submit("eu", mail(600), KEY)
            await until(lambda: fleet.status("eu")["takers"] == ["us"])
            assert counts["us"]()["accepted"] == 1  # it was asked, and could not send it either
            us.parts.dispatcher.paused = True
            suspend(us, 0)
            await until(lambda: counts["us"]()["queued"] == 600)
            await until(lambda: counts["eu"]()["queued"] == 0)
            suspend(us, 5)
            suspend(eu, 0)
            await fleet.submit("us", mail(3, first=600), bytes(16))
            await until(lambda: counts["eu"]()["delivered"] == 4)  # its own go there
            assert (counts["us"]()["queued"], counts["us"]()["moved"]) == (600, 3)
            suspend(us, 0)
            us.parts.dispatcher.paused = False
            us.parts.dispatcher.wake_all()
            await until(lambda: counts["us"]()["queued"] == 0)
            assert eu.condition == us.condition == "up"

    fleet = DrainingFleet(two_regions(tmp_path, sink.addresses["accept"][1], fleet={"hand_over_after": "1s"}))
    asyncio.run(run(fleet))
    assert_fleet_conserved(tmp_path)
    assert Counter(sink.log().recipients()) == Counter(
        recipients(603) | {"user1001@example.org", "user1002@example.org"}
    )


def test_mail_in_need_goes_to_a_sibling_if_it_can_send_it_and_else_to_another_region(
    tmp_path: Path, sink: SinkProcess
) -> None:
    async def run(fleet: DrainingFleet) -> None:
        async with fleet:
            counts = {name: spool.counts for name, spool in fleet.spools.items()}
            for number, name in enumerate(fleet.regions):
                await fleet.submit(name, mail(1, first=1000 + number), name.ljust(16).encode())
            await until(lambda: all(count()["delivered"] for count in counts.values()))
            suspend(fleet.regions["eu-1"], 5)
            await fleet.submit("eu-1", mail(600), KEY)
            await until(lambda: counts["eu-2"]()["delivered"] == 601)
            suspend(fleet.regions["eu-2"], 5)
            giver = fleet.regions["eu-1"].parts.handing._giver
            await until(lambda: not giver.paths_of("eu-2"))  # it says so itself, within a second
            await fleet.submit("eu-1", mail(600, first=600), bytes(16))
            await until(lambda: counts["us"]()["delivered"] == 601)

    port = sink.addresses["accept"][1]
    fleet = DrainingFleet(two_shards_and_a_region(tmp_path, port, fleet={"hand_over_after": "1s"}))
    asyncio.run(run(fleet))
    assert_fleet_conserved(tmp_path)


def noted(spool: Spool, kind: str) -> list[dict[str, Any]]:
    """The fields of the events of a kind."""
    return [row[-1] for _, rows in spool.read_outbox(100) for row in rows if kind in row]


def test_mail_that_waits_too_long_in_an_overloaded_region_goes_to_one_with_headroom(
    tmp_path: Path, sink: SinkProcess
) -> None:
    """The sources of eu send one message in ten seconds each, those of us as fast as they can."""

    def slow(region: Region) -> None:
        (site,) = region.parts.sites.opened()
        for source in site.sources:
            region.parts.sites.change(site, source, Terms(interval_us=10_000_000))

    async def run(fleet: DrainingFleet) -> None:
        async with fleet:
            counts = {name: spool.counts for name, spool in fleet.spools.items()}
            await fleet.submit("eu", mail(1, first=1001), b"e" * 16)
            await until(lambda: counts["eu"]()["delivered"] == 1)
            slow(fleet.regions["eu"])
            await fleet.submit("eu", mail(100), KEY)
            await until(lambda: bool(fleet.status("eu")["overloaded"]))
            ((_, stream, tenant, _, held_by),) = fleet.status("eu")["overloaded"]
            assert (stream, tenant, held_by) == (Stream.MARKETING, "default", "rate")
            await until(lambda: counts["eu"]()["queued"] == 0)
            await until(lambda: counts["us"]()["queued"] == 0)
            spool = fleet.spools["eu"]
            await until(lambda: [row["state"] for row in noted(spool, "hand_over")] == ["began", "ended"])
            assert noted(spool, "handed_over")[0]["messages"] == FIRST
            assert fleet.status("us")["handed_over"] == 0
            assert counts["us"]()["accepted"] == counts["eu"]()["moved"] > 90

    fleet = DrainingFleet(
        two_regions(
            tmp_path,
            sink.addresses["accept"][1],
            fleet={"hand_over_after": "1h", "hand_over_overloaded": "1s"},
        )
    )
    asyncio.run(run(fleet))
    assert_fleet_conserved(tmp_path)
    assert Counter(sink.log().recipients()) == Counter(recipients(100) | {"user1001@example.org"})
