"""From `replicas: 1` back to 0: no message that two disks hold is sent by both."""

import asyncio
import inspect
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from engine.cli.forget_copies import forget_copies_command
from engine.config.schema import FleetConfig
from engine.failover.messages import Standing
from engine.metrics.catalogue import Point
from engine.region.leaving import CopiesNeeded, Leaving
from engine.region.region import Region
from engine.sink.process import SinkProcess
from engine.spool.errors import CopiesInDoubt
from engine.spool.records import MAYBE_SENT
from engine.spool.store import Spool
from engine.values.clock import SteadyClock
from tests.e2e.test_regions_cover import KEY, NOWHERE, mail, recipients
from tests.support.covered import CoveredFleet
from tests.support.ray_fleet import two_regions
from tests.support.region import LocalNode, start_region, until
from tests.support.sinks import accepting_sink


@pytest.fixture
def sink(tmp_path: Path):
    with accepting_sink(tmp_path) as process:
        yield process


def covered(tmp_path: Path) -> FleetConfig:
    return two_regions(tmp_path, NOWHERE, fleet={"replicas": 1})


async def until_at_rest(fleet: CoveredFleet) -> None:
    """The regions hear that all are live with the beat after Fleet has seen it."""
    covers = [region.parts.cover for region in fleet.regions.values()]
    await until(lambda: all(cover is not None and cover.machine.is_at_rest() for cover in covers))


async def stop(fleet: CoveredFleet, number: int) -> None:
    """As `sendfleet down`: Fleet first."""
    fleet._beating.cancel()
    for name in list(fleet.regions):
        region, spool, node = fleet.regions.pop(name), fleet.spools.pop(name), fleet.nodes.pop(name)
        await region.pause()
        await node.stop()
        await region.stop(number)
        spool.close()


async def with_queue(config: FleetConfig, *, number: int) -> None:
    """Fifty messages wait in eu, all is live, and stopped in order."""
    fleet = CoveredFleet(config)
    async with fleet:
        await fleet.submit("eu", mail(50), KEY)
        await until_at_rest(fleet)
        await stop(fleet, number)


async def adopted(config: FleetConfig, *, number: int) -> None:
    """Fifty messages wait in eu, which is killed; us adopts them and is stopped in order."""
    fleet = CoveredFleet(config)
    async with fleet:
        await fleet.submit("eu", mail(50), KEY)
        await fleet.kill("eu")
        await until(lambda: fleet.standing("eu") is Standing.DEAD)
        await until(lambda: fleet.spools["us"].counts()["queued"] == 50)
        await stop(fleet, number)


WAITING = Point("sendfleet.region.waiting", (), 1)
Started = dict[str, tuple[Region, Spool, LocalNode]]


def leaving(started: Started) -> Leaving:
    """What Fleet has, joined directly."""

    async def ask(name: str, method: str) -> Any:
        found = getattr(started[name][0], method)()
        return await found if inspect.isawaitable(found) else found

    return Leaving(list(started), ask)


async def end(started: Started) -> None:
    for region, spool, node in started.values():
        await node.stop()
        await region.stop()
        spool.close()


async def send_alone(config: FleetConfig, *names: str) -> None:
    """As Fleet lets regions go on; returns when all is sent."""
    started = {}
    for name in names:
        started[name] = await start_region(config, name)
    await leaving(started).attempt()
    assert all(WAITING._replace(value=0) in region.figures() for region, _, _ in started.values())
    await until(lambda: all(spool.counts()["queued"] == 0 for _, spool, _ in started.values()))
    await end(started)


def queued(config: FleetConfig, name: str) -> Spool:
    number = next(region.number for region in config.regions if region.name == name)
    return Spool.open(config.spool.directory / name, region_number=number, clock=SteadyClock())


def copies(config: FleetConfig, name: str) -> dict[str, int]:
    spool = queued(config, name)
    found = spool.copies({region.name: region.number for region in config.regions})
    spool.close()
    return found


def test_nobody_starts_without_copies_while_what_was_adopted_is_on_two_disks(tmp_path: Path) -> None:
    asyncio.run(adopted(covered(tmp_path), number=7))
    without = two_regions(tmp_path, NOWHERE)
    for name in ("eu", "us"):
        with pytest.raises(
            CopiesInDoubt, match=rf"replicas: 0: region {name} .* `replicas: 1`.*only 1 is allowed"
        ):
            asyncio.run(start_region(without, name))


def test_what_is_to_be_done_depends_on_how_it_has_run_since() -> None:
    """Copies of before a time with 0 are of mail that was sent since: with 1 they could be adopted, and sent again."""
    told = str(CopiesInDoubt("us"))
    with_1, with_0 = told.split("If it has run with 0 since, under an earlier release")
    assert "If it has run with 1 until now" in with_1
    assert "set it, `sendfleet up`" in with_1
    assert "do not set 1" in with_0
    assert "`sendfleet forget-copies`" in with_0


def test_who_was_stopped_in_order_sends_what_it_has_once_all_have_dropped_copies(
    tmp_path: Path, sink: SinkProcess
) -> None:
    asyncio.run(with_queue(covered(tmp_path), number=7))
    without = two_regions(tmp_path, sink.addresses["accept"][1])

    async def hold() -> None:
        region, spool, node = await start_region(without, "eu")
        assert region.rest().number == 7
        assert WAITING in region.figures()
        assert region.parts.term() is None  # it sends nothing before the others are known to be at rest
        await region.stop()
        spool.close()
        await node.stop()

    asyncio.run(hold())
    asyncio.run(send_alone(without, "eu", "us"))
    arrived = Counter(sink.log().recipients())
    assert set(arrived) == recipients(50)
    assert set(arrived.values()) == {1}
    for name in ("eu", "us"):
        spool = queued(without, name)
        assert spool.rest() is None
        with spool._env.read() as txn:
            assert txn.stat(spool._env.db["copies"])["entries"] == 0
        spool.close()


def test_copies_of_a_region_whose_disk_is_lost_are_kept_until_they_are_sent(
    tmp_path: Path, sink: SinkProcess
) -> None:
    asyncio.run(with_queue(covered(tmp_path), number=7))
    shutil.rmtree(covered(tmp_path).spool.directory / "eu")
    without = two_regions(tmp_path, NOWHERE)

    async def refused() -> None:
        started = {name: await start_region(without, name) for name in ("eu", "us")}
        with pytest.raises(
            CopiesNeeded, match=r"region eu begins on an empty disk, and us holds copies of 50 .*set 1"
        ):
            await leaving(started).attempt()
        assert started["us"][0].rest().number == 7
        await end(started)

    asyncio.run(refused())

    async def covers_again() -> None:
        fleet = CoveredFleet(two_regions(tmp_path, sink.addresses["accept"][1], fleet={"replicas": 1}))
        async with fleet:
            await until(lambda: len(set(sink.log().recipients())) == 50)

    asyncio.run(covers_again())
    assert set(sink.log().recipients()) == recipients(50)


def test_copies_of_a_region_that_is_not_in_fleet_yaml_are_kept(tmp_path: Path) -> None:
    asyncio.run(with_queue(covered(tmp_path), number=7))
    without = two_regions(tmp_path, NOWHERE)
    config = without.model_copy(
        update={
            "regions": tuple(region for region in without.regions if region.name == "us"),
            "sources": tuple(source for source in without.sources if source.region == "us"),
        }
    )

    async def refused() -> None:
        started = {"us": await start_region(config, "us")}
        with pytest.raises(CopiesNeeded, match=r"number 1 is not in fleet\.yaml, and us holds copies of 50"):
            await leaving(started).attempt()
        await end(started)

    asyncio.run(refused())
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    told = CliRunner().invoke(forget_copies_command, ["--fleet", str(path)], input="n\n")
    assert told.exit_code == 1
    whose = "copies of 50 messages of region number 1, which is not in fleet.yaml, are dropped"
    assert whose in " ".join(told.output.split())
    assert copies(config, "us") == {"number 1": 50}
    told = CliRunner().invoke(forget_copies_command, ["--fleet", str(path)], input="y\n")
    assert told.exit_code == 0, told.output
    assert copies(config, "us") == {}


def test_a_mark_of_rest_ends_when_copies_are_kept_again(tmp_path: Path) -> None:
    """us alone starts with copies, as when eu does not come up: it may have adopted what eu has."""
    config = covered(tmp_path)
    asyncio.run(with_queue(config, number=7))

    async def again() -> None:
        fleet = CoveredFleet(config)
        await fleet.start("us")
        await fleet.kill("us")

    asyncio.run(again())
    with pytest.raises(CopiesInDoubt, match="region us"):
        asyncio.run(start_region(two_regions(tmp_path, NOWHERE), "us"))


def test_from_0_to_1_and_back_what_was_queued_stays_with_its_region(
    tmp_path: Path, sink: SinkProcess
) -> None:
    without = two_regions(tmp_path, NOWHERE)

    async def queue() -> None:
        fleet = CoveredFleet(without)
        await fleet.start("eu")
        await fleet.submit("eu", mail(20), KEY)
        await fleet.kill("eu")

    async def copied(number: int) -> None:
        fleet = CoveredFleet(covered(tmp_path))
        async with fleet:
            with fleet.spools["us"]._env.read() as txn:
                assert txn.stat(fleet.spools["us"]._env.db["copies"])["entries"] == 20
            await until_at_rest(fleet)
            await stop(fleet, number)

    asyncio.run(queue())
    asyncio.run(copied(7))
    asyncio.run(send_alone(two_regions(tmp_path, sink.addresses["accept"][1]), "eu", "us"))
    assert Counter(sink.log().recipients()) == Counter(recipients(20))


def test_told_to_forget_copies_both_send_and_all_is_marked(tmp_path: Path) -> None:
    asyncio.run(adopted(covered(tmp_path), number=7))
    without = two_regions(tmp_path, NOWHERE)
    path = tmp_path / "fleet.yaml"
    path.write_text(yaml.safe_dump(without.model_dump(mode="json", exclude_defaults=True)))
    result = CliRunner().invoke(forget_copies_command, ["--fleet", str(path), "--yes"])
    assert result.exit_code == 0, result.output
    assert "region eu: goes on without copies" in result.output
    for name in ("eu", "us"):
        spool = queued(without, name)
        assert spool.rest() is None
        due = [row[0] for row in spool.due_rows(b"", 1000)]
        assert len(due) == 50
        for key in due:
            record = spool.message(int.from_bytes(key[10:], "big"))
            assert record is not None
            assert record.flags & MAYBE_SENT
        spool.close()
