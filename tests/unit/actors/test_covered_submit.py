"""Where a client turns when regions are silent or refuse: how often, and to whom."""

import asyncio
from typing import Any

import pytest

from actors import submitting
from actors.region_calls import RegionCalls
from actors.submitting import Submitting
from engine.config.load import parse_fleet
from engine.region.ports import RegionAway
from engine.values.message import Message
from tests.support.fleets import fleet_data

REGIONS = ("eu", "us", "asia")
MAIL = [Message("a@example.com", ("b@example.org",), b"Subject: x\r\n\r\nx\r\n")]


class Region:
    """Its answers, in order; the last one goes on. "silent": none comes."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.again: list[bool] = []  # of each call
        self.open = 0
        self.most_open = 0

    async def call(self, method: str, header: bytes, blob: bytes, again: bool, *, timeout_s: float) -> bytes:
        assert method == "accept"
        self.again.append(again)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            if answer == "silent":
                await asyncio.Event().wait()
            if answer == "away":
                raise RegionAway("not now")
            return b"receipt"
        finally:
            self.open -= 1


def client_of(**regions: Region) -> Any:
    first = fleet_data()["sources"][0]
    config = parse_fleet(
        fleet_data(
            fleet={"replicas": 1},
            regions=[{"name": name, "number": n} for n, name in enumerate(REGIONS, 1)],
            sources=[
                {**first, "name": f"{name}-1", "region": name, "ip": f"127.0.0.{20 + n}"}
                for n, name in enumerate(REGIONS)
            ],
        )
    )
    calls: Any = regions
    return Submitting(config, RegionCalls(config, calls, fleet=calls))


@pytest.fixture(autouse=True)
def _in_haste(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(submitting, "SILENCE_S", 0.001)
    monkeypatch.setattr(submitting, "AGAIN_S", 0.001)
    monkeypatch.setattr(submitting, "SLOWER", 1.0)


def test_a_region_that_has_the_batch_in_hand_is_not_asked_once_more() -> None:
    async def go() -> None:
        regions = {
            "eu": Region("silent"),
            "us": Region("silent"),
            "asia": Region(*["away"] * 40, "accepts"),
        }
        client = client_of(**regions)
        assert await client._submit_covered(bytes(16), b"header", b"blob", ()) == b"receipt"
        assert [len(region.again) for region in regions.values()] == [1, 1, 41]
        assert all(region.open == 0 for region in regions.values())

    asyncio.run(go())


def test_only_the_first_region_is_told_that_nobody_else_may_have_it() -> None:
    async def go() -> None:
        regions = {name: Region("away", "away", "accepts") for name in REGIONS}
        await client_of(**regions)._submit_covered(bytes(16), b"header", b"blob", ())
        first, *others = sorted((region for region in regions.values()), key=lambda region: all(region.again))
        assert first.again[0] is False
        assert all(first.again[1:])
        assert all(all(region.again) for region in others)

    asyncio.run(go())


def test_regions_that_are_all_slow_are_given_more_time(monkeypatch: pytest.MonkeyPatch) -> None:
    client = client_of(**{name: Region("accepts") for name in REGIONS})
    assert client._silence_s() == 0.001
    client._usual_s = 0.2
    assert client._silence_s() == 0.8
    client._usual_s = 60.0
    assert client._silence_s() == submitting.MAX_DELAY_S


def test_what_is_usual_is_learnt_from_answers() -> None:
    async def go() -> None:
        client = client_of(**{name: Region("accepts") for name in REGIONS})
        client._usual_s = 1.0
        for _ in range(100):
            await client._submit_covered(bytes(16), b"header", b"blob", ())
        assert client._usual_s < 0.1

    asyncio.run(go())
