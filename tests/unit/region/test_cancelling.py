"""A cancellation that does not take place leaves nothing behind that is on disk and forgotten."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import Future

import pytest

from engine.region.cancelling import Cancelling
from engine.spool.errors import SpoolFull
from tests.unit.region.test_windows import World


class Store:
    """A spool whose answers are given by the test: how many were cancelled, or why none."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []
        self.answers: list[Future[int]] = []

    def cancel(self, ids: Sequence[int]) -> "Future[int]":
        self.asked.append(list(ids))
        self.answers.append(Future())
        return self.answers[-1]


class Scene:
    """Three messages, the first of which is on the wire."""

    def __init__(self) -> None:
        self.world = World()
        self.store = Store()
        self.settled: list[list[int]] = []
        self.cancelling = Cancelling(
            scheduler=self.world.scheduler,
            windows=self.world.windows,
            spool=self.store,
            is_offered=lambda id_: id_ == 9,
            settled=self.settled.append,
        )
        now_ms = self.world.clock.wall_ms()
        self.keys = [self.world.put(id_, now_ms) for id_ in (1, 2, 3)]
        self.world.scheduler.take(0, self.world.clock.monotonic_ns(), 1)

    def outcome(self, answer: int | Exception, then: Sequence[bytes] = ()) -> int:
        """Of the cancellation of all, with these keys gone from the disk."""

        async def run() -> int:
            task = asyncio.create_task(self.cancelling.cancel([1, 2, 3, 3, 9]))
            await asyncio.sleep(0)
            assert all(map(self.world.windows.is_settling, self.store.asked[-1]))
            for key in then:
                del self.world.disk.rows[key]
            if isinstance(answer, Exception):
                self.store.answers[-1].set_exception(answer)
            else:
                self.store.answers[-1].set_result(answer)
            return await task

        return asyncio.run(run())


def test_what_waits_is_cancelled_and_neither_what_is_on_the_wire_nor_what_is_offered() -> None:
    scene = Scene()
    assert scene.outcome(2, scene.keys[1:]) == 2
    assert scene.store.asked == [[2, 3]]
    assert scene.settled == [[2, 3]]
    assert scene.world.all_taken() == []


def test_what_could_not_be_cancelled_is_sent_after_all() -> None:
    scene = Scene()
    with pytest.raises(SpoolFull):
        scene.outcome(SpoolFull("map", 1, 1))
    assert not scene.world.windows.is_settling(2)
    assert scene.world.all_taken() == [2, 3]


def test_what_stays_on_disk_for_its_damage_is_not_forgotten() -> None:
    scene = Scene()
    assert scene.outcome(1, scene.keys[1:2]) == 1
    assert scene.world.all_taken() == [3]
