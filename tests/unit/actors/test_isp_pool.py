"""The shell of a pool: no report is lost while its region cannot settle it."""

import asyncio
from collections import deque

import pytest

from actors import isp_pool
from actors.isp_pool import IspPoolActor
from engine.region.ports import PoolName
from engine.spool.errors import SpoolError, SpoolFull


class Region:
    """Cannot settle for a while, and says why."""

    def __init__(self, *failures: Exception) -> None:
        self.failures = list(failures)
        self.settled: list[bytes] = []

    async def settle(self, report: bytes) -> int:
        if self.failures:
            raise self.failures.pop(0)
        self.settled.append(report)
        return len(self.settled)


class Engine:
    def __init__(self) -> None:
        self.acknowledged: list[int] = []

    async def acknowledge(self, sequence: int) -> None:
        self.acknowledged.append(sequence)


class Started(IspPoolActor):
    def __init__(self, region: Region, engine: Engine) -> None:
        self._name, self._region = PoolName("default"), "eu"
        self._link = region  # type: ignore[assignment]
        self._engine = engine  # type: ignore[assignment]
        self._reports = deque()
        self._wake = asyncio.Event()


def test_a_region_whose_disk_is_full_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was delivered would be sent a second time if the pool gave up."""
    monkeypatch.setattr(isp_pool, "FULL_DELAY_S", 0.0)
    monkeypatch.setattr(isp_pool, "REPEAT_DELAY_S", 0.0)

    async def go() -> None:
        region = Region(SpoolFull("disk", 0, 100), SpoolError("not written"), ConnectionError("starts again"))
        engine = Engine()
        pool = Started(region, engine)
        sender = asyncio.ensure_future(pool._send_reports())
        for report in (b"one", b"two"):
            pool._report(report)
        async with asyncio.timeout(20):
            while len(engine.acknowledged) < 2 and not sender.done():
                await asyncio.sleep(0)
        assert region.settled == [b"one", b"two"]
        assert engine.acknowledged == [1, 2]
        sender.cancel()

    asyncio.run(go())
