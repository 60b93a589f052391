"""The shell of a region: what it says only after the disk has said it."""

import asyncio
from concurrent.futures import Future

import pytest

from actors.region import RegionActor


class SlowSpool:
    """Commits when the test says so."""

    def __init__(self) -> None:
        self.commit: Future[None] = Future()

    def put_state(self, key: str, value: bytes) -> "Future[None]":
        assert (key, value) == ("source/a", b"state")
        return self.commit


def region_on(spool: SlowSpool) -> RegionActor:
    class Started(RegionActor):
        def __init__(self) -> None:
            self._spool = spool  # type: ignore[assignment]

        async def _engine(self) -> None:  # type: ignore[override]
            pass

    return Started()


def test_a_sources_state_is_on_disk_before_its_owner_answers() -> None:
    async def go() -> None:
        spool = SlowSpool()
        put = asyncio.ensure_future(region_on(spool).put_state("source/a", b"state"))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not put.done()
        spool.commit.set_result(None)
        await put

    asyncio.run(go())


def test_a_state_that_could_not_be_written_is_an_error() -> None:
    async def go() -> None:
        spool = SlowSpool()
        spool.commit.set_exception(OSError("no space"))
        with pytest.raises(OSError, match="no space"):
            await region_on(spool).put_state("source/a", b"state")

    asyncio.run(go())
