"""One question for a domain, whoever waits for it; who is taken away meanwhile is not told the answer."""

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

from engine.delivery.job import Job
from engine.delivery.ports import Routes
from engine.delivery.unrouted import Unrouted


class SlowRoutes:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.let = asyncio.Event()

    async def route(self, domain: str) -> str:
        self.asked.append(domain)
        await self.let.wait()
        return f"route of {domain}"


class Record:
    def __init__(self, recipient: str) -> None:
        self.recipient = recipient
        self.options = None


def job(id_: int, domain: str) -> Job:
    record = Record(f"someone@{domain}")
    return Job(id_, 0, site=domain, source=0, batch=1, epoch=1, record=cast("Any", record), held_ns=0, term=0)


async def scenario() -> None:
    tasks: list[asyncio.Task[None]] = []
    told: list[tuple[list[int], str]] = []

    def spawn(coroutine: Coroutine[Any, Any, None]) -> None:
        tasks.append(asyncio.get_running_loop().create_task(coroutine))

    routes = SlowRoutes()
    unrouted = Unrouted(
        routes=cast("Routes", routes),
        found=lambda jobs, route: told.append(([one.id for one in jobs], route)),
        spawn=spawn,
    )
    for id_, domain in ((1, "a.example"), (2, "a.example"), (3, "b.example"), (4, "a.example")):
        unrouted.add(job(id_, domain))
    assert [one.id for one in unrouted.take(lambda one: one.id in (2, 3))] == [2, 3]
    assert unrouted.take(lambda one: one.id in (2, 3)) == []
    unrouted.add(job(5, "b.example"))  # its question has not ended
    routes.let.set()
    await asyncio.gather(*tasks)
    assert routes.asked == ["a.example", "b.example"]
    assert sorted(told) == [([1, 4], "route of a.example"), ([5], "route of b.example")]
    unrouted.add(job(6, "a.example"))  # asked anew
    assert [one.id for one in unrouted.take_all()] == [6]
    await asyncio.gather(*tasks)
    assert (len(routes.asked), told[2:]) == (3, [([], "route of a.example")])


def test_who_waits_is_told_and_who_was_taken_is_not() -> None:
    asyncio.run(scenario())
