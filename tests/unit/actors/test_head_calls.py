"""Calls that wait for Ray's head, without Ray."""

import asyncio
import threading

import pytest

from actors.head_calls import HeadCalls

LONG_S = 30.0


def test_the_loop_goes_on_while_the_head_is_away() -> None:
    back = threading.Event()

    async def both() -> list[str]:
        calls = HeadCalls()
        said: list[str] = []

        def ask() -> str:
            assert back.wait(LONG_S)
            return "answer"

        async def waits() -> None:
            said.append(await calls.run("look up", ask, LONG_S))

        task = asyncio.create_task(waits())
        await asyncio.sleep(0)
        said.append("the loop")
        back.set()
        await task
        return said

    assert asyncio.run(both()) == ["the loop", "answer"]


def test_who_asks_again_waits_for_the_same_call() -> None:
    back = threading.Event()
    asked = []

    def ask() -> int:
        asked.append(1)
        assert back.wait(LONG_S)
        return 7

    async def run() -> None:
        calls = HeadCalls()
        with pytest.raises(TimeoutError, match="region:eu: the head of Ray gave no answer within 0 s"):
            await calls.run("region:eu", ask, 0.0)
        assert calls.waiting() == 1
        again = [asyncio.create_task(calls.run("region:eu", ask, LONG_S)) for _ in range(2)]
        await asyncio.sleep(0)
        back.set()
        assert await asyncio.gather(*again) == [7, 7]
        assert calls.waiting() == 0
        assert await calls.run("region:eu", ask, LONG_S) == 7

    asyncio.run(run())
    assert len(asked) == 2  # the one that was waited for, and the one after its answer


def test_what_the_call_raises_comes_out() -> None:
    def ask() -> None:
        raise ValueError("no actor of that name")

    async def run() -> None:
        calls = HeadCalls()
        for _ in range(2):
            with pytest.raises(ValueError, match="no actor of that name"):
                await calls.run("fleet", ask, LONG_S)
        assert calls.waiting() == 0

    asyncio.run(run())


def test_what_waits_is_bounded() -> None:
    back = threading.Event()

    async def run() -> None:
        calls = HeadCalls(most=1)
        first = asyncio.create_task(calls.run("one", lambda: back.wait(LONG_S), LONG_S))
        await asyncio.sleep(0)
        with pytest.raises(ConnectionError, match="two: 1 calls wait for the head of Ray already"):
            await calls.run("two", lambda: None, LONG_S)
        back.set()
        assert await first

    asyncio.run(run())
