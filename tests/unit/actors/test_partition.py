"""A region that a drill cuts off: which calls are lost, and that it ends by itself."""

import asyncio
from typing import Any

import pytest

from actors.partition import BOTH, IN, LONGEST_S, OUT, Lost, PartedLink, Partition
from actors.peer_messages import packed
from actors.refused import unwrapped
from actors.region import RegionActor


class Peers:
    """What a region says to its peers."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    async def tell(self, region: str, sender: str, messages: Any) -> None:
        self.heard.append(region)

    async def hand_over(self, region: str, request: Any) -> None:
        self.heard.append(region)


class Engine:
    """What a region hears."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    def beat(self, beat: Any) -> str:
        self.heard.append("beat")
        return "reply"

    def hear(self, sender: str, messages: Any) -> None:
        self.heard.append(sender)

    async def hand_over(self, request: Any) -> str:
        self.heard.append("hand-over")
        return "reply"


class Region(RegionActor):
    """The actor around such an engine, with a clock that the test sets."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.engine = Engine()
        self._name = "us"
        self._partition = Partition(lambda: self.now_s)

    async def _engine(self) -> Any:
        return self.engine


async def hears(region: Region) -> tuple[list[str], int]:
    """Which calls arrive, and of how many the answer gets back."""
    region.engine.heard.clear()
    answers = 0
    beat: Any = None
    for call in (region.beat(beat), region.hear("eu", packed([])), region.hand_over(beat)):
        try:
            unwrapped(await call)
            answers += 1
        except Lost:
            continue
    return list(region.engine.heard), answers


async def says(region: Region) -> tuple[list[str], int]:
    peers: Any = Peers()
    link = PartedLink(peers, region._partition)
    message: Any = None
    answers = 0
    for call in (link.tell("eu", "us", message), link.hand_over("ap", message)):
        try:
            await call
            answers += 1
        except Lost:
            continue
    return peers.heard, answers


ALL_HEARD = ["beat", "eu", "hand-over"]


@pytest.mark.parametrize(
    ("way", "heard", "said"),
    [
        (BOTH, ([], 0), ([], 0)),
        (IN, ([], 0), (["eu", "ap"], 1)),  # the answer to the hand-over is lost
        (OUT, (ALL_HEARD, 1), ([], 0)),  # `hear` has no answer that could be lost
    ],
)
def test_what_is_lost_and_that_it_ends_by_itself(way: str, heard: Any, said: Any) -> None:
    async def go() -> None:
        region = Region()
        assert await hears(region) == (ALL_HEARD, 3)
        assert await says(region) == (["eu", "ap"], 2)
        await region.cut(5.0, way)
        assert await hears(region) == heard
        assert await says(region) == said
        region.now_s += 5.0
        assert await hears(region) == (ALL_HEARD, 3)
        assert await says(region) == (["eu", "ap"], 2)

    asyncio.run(go())


def test_it_can_be_ended_at_once() -> None:
    async def go() -> None:
        region = Region()
        await region.cut(5.0, BOTH)
        await region.cut(0, BOTH)
        assert await hears(region) == (ALL_HEARD, 3)

    asyncio.run(go())


@pytest.mark.parametrize(
    ("seconds", "way", "text"),
    [
        (5.0, "sideways", "way: 'sideways', allowed are both, in, out"),
        (LONGEST_S + 1, BOTH, "seconds: 61, allowed is 0 to 60"),
        (-1.0, BOTH, "seconds: -1, allowed is 0 to 60"),
        (float("nan"), BOTH, "seconds: nan, allowed is 0 to 60"),
    ],
)
def test_nobody_is_cut_off_for_long(seconds: float, way: str, text: str) -> None:
    async def go() -> None:
        region = Region()
        with pytest.raises(ValueError, match=text):
            await region.cut(seconds, way)
        assert await hears(region) == (ALL_HEARD, 3)

    asyncio.run(go())
