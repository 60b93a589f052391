"""What a region says to its peers: how many calls that takes, in what order it arrives, and what is dropped."""

import asyncio
from collections.abc import Sequence

from engine.failover.messages import Ack, Copy, Data, Message
from engine.region.outgoing import CALL_BYTES, CALLS, WAITING, Outgoing


class Peer:
    """A peer that hears when `free` is set."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.calls: list[list[Message]] = []
        self.is_away = False

    async def tell(self, region: str, sender: str, messages: Sequence[Message]) -> None:
        assert (region, sender) == ("us", "eu")
        self.calls.append(list(messages))
        await self.free.wait()
        if self.is_away:
            raise ConnectionError("it is away")

    def heard(self) -> list[Message]:
        return [message for call in self.calls for message in call]


class Region:
    """What says it."""

    def __init__(self) -> None:
        self.peer = Peer()
        self._tasks: set[asyncio.Task[None]] = set()
        self.outgoing = Outgoing("eu", self.peer, self._spawn)
        self.said: list[Message] = []

    def _spawn(self, work) -> None:
        self._tasks.add(asyncio.ensure_future(work))

    def say(self, count: int, *, size: int = 0) -> None:
        for _ in range(count):
            number = len(self.said)
            message = Data(1, number, Copy((), bytes(size))) if size else Ack(1, number)
            self.said.append(message)
            self.outgoing.say("us", message)

    async def turns(self, count: int = 3) -> None:
        for _ in range(count):
            await asyncio.sleep(0)

    async def ended(self) -> None:
        self.peer.free.set()
        while not all(task.done() for task in self._tasks):
            await asyncio.sleep(0)
        for task in self._tasks:
            task.result()


def test_what_is_said_in_one_turn_is_one_call() -> None:
    async def go() -> None:
        region = Region()
        region.say(50)
        await region.turns()
        assert region.peer.calls == [region.said]
        await region.ended()

    asyncio.run(go())


def test_a_peer_that_is_slow_takes_no_more_calls_for_what_waits_meanwhile() -> None:
    async def go() -> None:
        region = Region()
        for _ in range(100):
            region.say(5)
            await region.turns()
        assert len(region.peer.calls) == CALLS
        await region.ended()
        assert len(region.peer.calls) == CALLS + 1
        assert region.peer.heard() == region.said
        region.say(1)
        await region.turns()
        assert len(region.peer.calls) == CALLS + 2

    asyncio.run(go())


def test_a_call_is_of_bounded_size_and_what_is_left_does_not_wait_for_it() -> None:
    async def go() -> None:
        region = Region()
        region.say(2 * CALLS, size=CALL_BYTES // 2)
        region.say(1, size=2 * CALL_BYTES)
        await region.turns(10)
        assert len(region.peer.calls) == CALLS
        await region.ended()
        assert [len(call) for call in region.peer.calls] == [1] * (2 * CALLS + 1)
        assert region.peer.heard() == region.said

    asyncio.run(go())


def test_what_waits_is_bounded() -> None:
    async def go() -> None:
        region = Region()
        for _ in range(CALLS):
            region.say(1)
            await region.turns()
        region.say(WAITING + 7)
        assert region.outgoing.dropped == 7
        await region.ended()
        assert region.peer.heard() == region.said[:-7]

    asyncio.run(go())


def test_a_call_that_fails_loses_what_it_carries_and_nothing_else() -> None:
    async def go() -> None:
        region = Region()
        region.peer.is_away = True
        region.say(3)
        await region.turns()
        await region.ended()
        region.peer.is_away = False
        region.say(2)
        await region.turns()
        assert region.peer.calls == [region.said[:3], region.said[3:]]

    asyncio.run(go())
