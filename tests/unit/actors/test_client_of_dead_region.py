"""The client while a region is dead: another one has adopted its messages, and any takes suppressions."""

import asyncio
from typing import Any

import pytest

from actors import region_calls
from actors.client import AsyncClient
from engine.config.load import parse_fleet
from engine.spool.errors import SpoolFull
from engine.values.suppression import Reason, Suppression, encode_rows
from tests.support.fleets import fleet_data

REGIONS = ("eu", "us", "asia")
ID = 1 << 48 | 7  # of eu
ROW = Suppression("x@example.org", "", -1, Reason.MANUAL, 1)


class Region:
    """Its answers by method; what it has none for, it does not answer. `error`: it raises that."""

    def __init__(self, error: Exception | None = None, **answers: Any) -> None:
        self.error = error
        self.answers = answers
        self.calls: list[str] = []

    async def call(self, method: str, *args: Any, timeout_s: float = 0.0) -> Any:
        self.calls.append(method)
        if self.error is not None:
            raise self.error
        if method not in self.answers:
            raise ConnectionError("the actor is away")
        return self.answers[method]

    ask = call


def client_of(replicas: int = 1, **regions: Region) -> AsyncClient:
    first = fleet_data()["sources"][0]
    client = AsyncClient(
        parse_fleet(
            fleet_data(
                fleet={"replicas": replicas},
                regions=[{"name": name, "number": n} for n, name in enumerate(REGIONS, 1)],
                sources=[
                    {**first, "name": f"{name}-1", "region": name, "ip": f"127.0.0.{20 + n}"}
                    for n, name in enumerate(REGIONS)
                ],
            )
        )
    )
    client._regions.actors = regions  # type: ignore[assignment]
    return client


def test_what_another_region_has_adopted_is_cancelled_there() -> None:
    client = client_of(eu=Region(), us=Region(cancel=0), asia=Region(cancel=1))
    assert asyncio.run(client.cancel([ID])) == 1


def test_what_nobody_could_cancel_may_wait_in_the_region_that_does_not_answer() -> None:
    client = client_of(eu=Region(), us=Region(cancel=1), asia=Region(cancel=0))
    with pytest.raises(ConnectionError, match="1 messages are cancelled; 1 may wait in a region"):
        asyncio.run(client.cancel([ID, ID + 1]))


def test_messages_of_other_regions_are_cancelled_all_the_same() -> None:
    regions = {"eu": Region(), "us": Region(cancel=0), "asia": Region(cancel=0)}
    with pytest.raises(ConnectionError):
        asyncio.run(client_of(**regions).cancel([ID, 2 << 48 | 9]))
    assert regions["us"].calls == ["cancel", "cancel"]


def test_many_are_cancelled_in_parts_and_who_is_silent_is_asked_once() -> None:
    regions = {"eu": Region(), "us": Region(cancel=1000), "asia": Region(cancel=1000)}
    assert asyncio.run(client_of(**regions).cancel(range(ID, ID + 6000))) == 6000
    assert [len(region.calls) for region in regions.values()] == [1, 3, 3]


@pytest.mark.parametrize("own", [Region(), Region(trace=None)], ids=["dead", "on an empty disk"])
def test_what_another_region_has_adopted_is_traced_there(own: Region) -> None:
    there = {"status": {"state": "queued"}, "region": "asia"}
    client = client_of(eu=own, us=Region(trace=None), asia=Region(trace=there))
    assert asyncio.run(client.trace(ID)) == there


def test_a_message_that_only_a_dead_region_may_know_is_not_unknown() -> None:
    client = client_of(eu=Region(), us=Region(trace=None), asia=Region(trace=None))
    with pytest.raises(ConnectionError, match="the regions that know it do not answer"):
        asyncio.run(client.trace(ID))
    none = client_of(**{name: Region(trace=None) for name in REGIONS})
    assert asyncio.run(none.trace(ID)) is None


def test_without_copies_only_its_region_is_asked_for_what_it_never_accepted() -> None:
    regions = {name: Region(trace=None) for name in REGIONS}
    assert asyncio.run(client_of(0, **regions).trace(ID)) is None
    assert [len(region.calls) for region in regions.values()] == [1, 0, 0]


def begin_with_eu(client: AsyncClient) -> None:
    """The next call begins with eu."""
    client._regions._next = len(REGIONS) - 1


@pytest.mark.parametrize("error", [ConnectionError("away"), TimeoutError(), SpoolFull("disk", 1, 2)])
def test_any_region_takes_suppressions(error: Exception) -> None:
    regions = {"eu": Region(error), "us": Region(suppress=1), "asia": Region(suppress=0)}
    client = client_of(**regions)
    begin_with_eu(client)
    assert asyncio.run(client.suppress([ROW])) == 1
    assert regions["asia"].calls == ["suppress"]


def test_a_region_that_does_not_answer_is_told_of_no_further_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hears of them later, from the region that has them."""
    monkeypatch.setattr("actors.client.PAGE", 1)
    regions = {"eu": Region(suppress=1), "us": Region(), "asia": Region(suppress=1)}
    client = client_of(**regions)
    begin_with_eu(client)
    monkeypatch.setattr(client._regions, "order", lambda key, first: list(REGIONS))
    assert asyncio.run(client.suppress([ROW] * 3)) == 3
    assert [len(region.calls) for region in regions.values()] == [3, 1, 3]


def test_suppressions_that_no_region_can_write() -> None:
    client = client_of(**{name: Region(SpoolFull("disk", 1, 2)) for name in REGIONS})
    with pytest.raises(SpoolFull):
        asyncio.run(client.suppress([ROW]))


def test_suppressions_when_no_region_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(region_calls, "GIVE_UP_S", 0.0)
    client = client_of(**{name: Region() for name in REGIONS})
    with pytest.raises(ConnectionError, match="the outcome of suppress is unknown"):
        asyncio.run(client.suppress([ROW]))


@pytest.mark.parametrize("address", ["", "x@example.org"])
def test_any_region_shows_the_suppression_list(address: str) -> None:
    rows = encode_rows([ROW])
    answers = {"suppressions": (b"", rows), "suppressions_of": rows}
    client = client_of(eu=Region(), us=Region(**answers), asia=Region(**answers))
    begin_with_eu(client)

    async def listed() -> list[Suppression]:
        return [row async for row in client.suppressions(address)]

    assert asyncio.run(listed()) == [ROW]
