"""A region's background tasks: one that fails makes the region fail, one that is ended does not."""

import asyncio

import pytest

from engine.region.background import Background
from engine.region.ports import RegionFailed


async def fail(reason: str) -> None:
    raise ValueError(reason)


async def wait() -> None:
    await asyncio.Event().wait()


def test_the_first_task_that_fails_is_what_callers_are_told() -> None:
    async def run() -> None:
        background = Background("eu")
        background.check()
        for reason in ("the disk", "and then this"):
            background.spawn(fail(reason))
        await background.wait_failed()
        with pytest.raises(RegionFailed, match=r"region eu has failed: .*the disk") as raised:
            background.check()
        assert isinstance(raised.value.__cause__, ValueError)

    asyncio.run(run())


def test_stop_ends_what_runs_and_that_is_no_failure() -> None:
    async def run() -> None:
        background = Background("eu")
        tasks = [background.spawn(wait()) for _ in range(2)]
        await background.stop()
        assert all(task.cancelled() for task in tasks)
        background.check()

    asyncio.run(run())
