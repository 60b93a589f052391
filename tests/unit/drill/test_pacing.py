"""The pace of a load on a clock that does not move: what begins, what waits, what is left out."""

import asyncio
from itertools import count

import pytest

from engine.drill.pacing import MAX_OPEN, Pace


def test_an_answer_that_does_not_come_holds_nothing_up_within_bounds() -> None:
    async def run() -> tuple[list[int], int]:
        begun: list[int] = []
        answer = asyncio.Event()
        enough = asyncio.Event()
        times = count(0.0, 1.0)  # each look at the clock finds it a second later: every batch is due

        async def submit(number: int) -> None:
            begun.append(number)
            await answer.wait()

        def now_s() -> float:
            if pace.skipped >= 3:
                enough.set()
            return next(times)

        pace = Pace(submit, 1.0, began_s=0.0, now_s=now_s)
        pace.start()
        await enough.wait()
        answer.set()
        await pace.stop()
        return begun, pace.skipped

    begun, skipped = asyncio.run(run())
    assert begun[:MAX_OPEN] == list(range(MAX_OPEN))
    assert skipped >= 3


def test_what_a_batch_raises_is_not_forgotten() -> None:
    async def run() -> None:
        raised = asyncio.Event()

        async def submit(number: int) -> None:
            if number == 1:
                raised.set()
                raise KeyError("a fault of the load itself")

        pace = Pace(submit, 0.0, began_s=0.0)
        pace.start()
        await raised.wait()
        await pace.stop()

    with pytest.raises(KeyError, match="a fault of the load itself"):
        asyncio.run(run())


def test_one_that_never_began_stops() -> None:
    async def run() -> int:
        pace = Pace(lambda number: asyncio.sleep(0), 1.0, began_s=0.0)
        await pace.stop()
        return pace.skipped

    assert asyncio.run(run()) == 0
