"""A region that waits until all may go on without copies says nothing about mail that another may own."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from engine.failover.handover import Inquire, Offer, Recall, Reply, Request, Terms
from engine.region import routing
from engine.region.ports import RegionAway
from engine.region.region import Region
from engine.routing.route import Failure
from engine.spool.store import Spool
from engine.values.reply import Reply as SmtpReply
from tests.e2e.test_back_without_copies import covered, leaving, with_queue
from tests.e2e.test_regions_cover import NOWHERE
from tests.support.ray_fleet import two_regions
from tests.support.region import start_region, until


class Peers:
    """Who gets requests, and answers none."""

    def __init__(self) -> None:
        self.asked: list[Request] = []

    async def hand_over(self, region: str, request: Request) -> Reply | None:
        self.asked.append(request)
        return None


@pytest.fixture(autouse=True)
def queue(tmp_path: Path) -> None:
    """Fifty messages are in eu, which was stopped in order."""
    asyncio.run(with_queue(covered(tmp_path), number=7))


def waiting(
    tmp_path: Path, scenario: Callable[[Region, Spool, Peers, Callable[[], Awaitable[None]]], Awaitable[None]]
) -> None:
    """Region eu waits. The last argument of the scenario lets it go on."""

    async def run() -> None:
        peers = Peers()
        config = two_regions(tmp_path, NOWHERE)
        region, spool, node = await start_region(config, "eu", handover=peers)
        async with asyncio.timeout(60):
            await scenario(region, spool, peers, leaving({"eu": (region, spool, node)}).attempt)
        await region.stop()
        spool.close()
        await node.stop()

    asyncio.run(run())


def ids(spool: Spool) -> list[int]:
    return [int.from_bytes(key[10:], "big") for key, _ in spool.due_rows(b"", 100)]


def test_it_says_so(tmp_path: Path) -> None:
    async def scenario(region: Region, spool: Spool, _: Peers, go_on: Callable[[], Awaitable[None]]) -> None:
        assert region.condition == "waiting"
        assert region.snapshot()["waits_for_all"]
        await go_on()
        assert region.condition == "up"
        assert not region.snapshot()["waits_for_all"]

    waiting(tmp_path, scenario)


def test_it_cancels_nothing(tmp_path: Path) -> None:
    async def scenario(region: Region, spool: Spool, _: Peers, go_on: Callable[[], Awaitable[None]]) -> None:
        with pytest.raises(RegionAway):
            await region.cancel(ids(spool))
        assert spool.counts()["queued"] == 50

    waiting(tmp_path, scenario)


def test_it_returns_nothing_to_its_sender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routing, "AWAY_S", 0.001)
    asked: list[str] = []

    async def route(_: object, domain: str) -> Failure:
        asked.append(domain)
        return Failure("bounced", SmtpReply(550, "5.1.2", "no such domain"))

    monkeypatch.setattr("engine.routing.router.Router.cached", lambda *_: None)
    monkeypatch.setattr("engine.routing.router.Router.route", route)

    async def scenario(region: Region, spool: Spool, _: Peers, go_on: Callable[[], Awaitable[None]]) -> None:
        await until(lambda: bool(asked))
        await region.note_alerts([])  # whatever was to be written before is written then
        await region.note_alerts([])
        assert spool.counts()["queued"] == 50
        await go_on()
        await until(lambda: spool.counts()["bounced"] == 50)

    waiting(tmp_path, scenario)


def test_it_gives_nothing_away(tmp_path: Path) -> None:
    async def scenario(
        region: Region, spool: Spool, peers: Peers, go_on: Callable[[], Awaitable[None]]
    ) -> None:
        handing = region.parts.handing
        await region.drain(True)
        handing._look_around()
        assert handing._giver.tick(region._clock.monotonic_ns()) == []
        assert peers.asked == []
        await go_on()
        await until(lambda: any(isinstance(request, Inquire) for request in peers.asked))

    waiting(tmp_path, scenario)


def test_it_takes_nothing(tmp_path: Path) -> None:
    async def scenario(region: Region, spool: Spool, _: Peers, go_on: Callable[[], Awaitable[None]]) -> None:
        terms = await region.hand_over(Inquire("us"))
        assert isinstance(terms, Terms)
        assert "without copies" in terms.refusal
        assert await region.hand_over(Recall("us", 0, 1, ((2 << 48, 1),))) is None
        assert await region.hand_over(Offer("us", 0, 1, terms.disk, ())) is None
        await go_on()
        after = await region.hand_over(Inquire("us"))
        assert isinstance(after, Terms)
        assert after.refusal == ""
        assert await region.hand_over(Recall("us", 0, 1, ())) is not None

    waiting(tmp_path, scenario)
