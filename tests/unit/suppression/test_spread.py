"""Regions that pass their suppressions on: at least once, over lost answers and restarts, to newcomers too."""

import asyncio
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.spool.store import Spool, SpoolOptions
from engine.suppression import spread
from engine.suppression.spread import Spread
from engine.values.suppression import Reason, decode_rows, make
from tests.support.clock import ManualClock
from tests.support.spools import NOW_MS, PATIENCE_S

NUMBERS = {"eu": 1, "us": 2, "ap": 3}


class Mesh:
    """Regions by name; `down` do not answer, and `forgetful` ones take the rows and lose the answer."""

    def __init__(self, directory: Path, names: list[str]) -> None:
        self.directory = directory
        self.spools = {name: self._open(name) for name in names}
        self.down: set[str] = set()
        self.forgetful: set[str] = set()
        self.calls = 0
        self.asked: list[tuple[str, str]] = []
        self.spreads: dict[str, Spread] = {}

    def _open(self, name: str) -> Spool:
        options = SpoolOptions(map_size=64 << 20, min_free=0)
        return Spool.open(
            self.directory / name, region_number=NUMBERS[name], clock=ManualClock(), options=options
        )

    def spread(self, name: str) -> Spread:
        it = Spread(self.spools[name], name, [peer for peer in self.spools if peer != name], self)
        self.spreads[name] = it
        return it

    async def repeat_suppressions(self, region: str, to: str) -> None:
        self.asked.append((to, region))
        if region in self.down:
            raise ConnectionError(region)
        if region in self.spreads:
            self.spreads[region].repeat(to).result(PATIENCE_S)

    async def suppress(self, region: str, rows: bytes) -> int:
        self.calls += 1
        if region in self.down:
            raise ConnectionError(region)
        changed = self.spools[region].suppress(decode_rows(rows), log=False).result(PATIENCE_S)
        if region in self.forgetful:
            raise TimeoutError(region)
        return changed

    def restart(self, name: str) -> None:
        self.spools[name].close()
        self.spools[name] = self._open(name)

    def change(self, region: str, address: str, at_ms: int, reason: Reason = Reason.MANUAL) -> None:
        row = make(address, reason=reason, at_ms=at_ms)
        self.spools[region].suppress([row], log=True).result(PATIENCE_S)

    def lists(self) -> list[set[str]]:
        return [
            {row.address for row in spool.suppressions(b"", 10_000)[1] if row.is_live}
            for spool in self.spools.values()
        ]

    def close(self) -> None:
        for spool in self.spools.values():
            spool.close()


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[Mesh]:
    mesh = Mesh(tmp_path, ["eu", "us"])
    yield mesh
    mesh.close()


def drain(one: Spread, peer: str) -> None:
    async def run() -> None:
        while await one.step(peer):
            pass

    asyncio.run(run())


def test_a_region_that_lost_its_disk_is_given_the_list_again(mesh: Mesh) -> None:
    eu, us = mesh.spread("eu"), mesh.spread("us")
    for number in range(5):
        mesh.change("eu", f"a{number}@example.net", NOW_MS)
    mesh.change("us", "of-us@example.net", NOW_MS)
    for one, peer in ((eu, "us"), (us, "eu"), (eu, "us")):
        drain(one, peer)
    assert mesh.lists()[0] == mesh.lists()[1]
    assert len(mesh.lists()[0]) == 6
    mesh.restart("us")
    asked = len(mesh.asked)
    drain(mesh.spread("us"), "eu")
    assert len(mesh.asked) == asked, "the same disk"
    mesh.spools["us"].close()
    shutil.rmtree(mesh.directory / "us")
    mesh.spools["us"] = mesh._open("us")
    us = mesh.spread("us")
    mesh.down = {"eu"}
    with pytest.raises(ConnectionError):
        drain(us, "eu")
    mesh.down = set()
    drain(us, "eu")
    drain(eu, "us")
    assert mesh.lists()[0] == mesh.lists()[1], "also what it had told itself before"
    mesh.restart("eu")
    eu = mesh.spread("eu")
    calls = mesh.calls
    drain(eu, "us")
    drain(us, "eu")
    assert mesh.calls == calls, "once"


@pytest.mark.parametrize("restarts", [False, True])
def test_a_list_is_asked_for_while_a_page_is_on_its_way(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    """The page is that of the former disk: it must not count for the new one, nor after a restart."""
    monkeypatch.setattr(spread, "PAGE", 2)
    for number in range(7):
        mesh.change("eu", f"a{number}@example.net", NOW_MS)
    eu = mesh.spread("eu")

    async def run() -> None:
        await eu.step("us")  # asks
        reached, answered = asyncio.Event(), asyncio.Event()
        take = mesh.suppress

        async def slowly(region: str, rows: bytes) -> int:
            reached.set()
            await answered.wait()
            return 2  # on a disk that is gone

        mesh.suppress = slowly  # type: ignore[method-assign]
        page = asyncio.create_task(eu.step("us"))
        await reached.wait()
        eu.repeat("us").result(PATIENCE_S)
        answered.set()
        await page
        mesh.suppress = take  # type: ignore[method-assign]

    asyncio.run(run())
    if restarts:
        mesh.restart("eu")
        eu = mesh.spread("eu")
    drain(eu, "us")
    assert len(mesh.lists()[1]) == 7
    with pytest.raises(ValueError, match="allowed are us"):
        eu.repeat("ap")


def test_a_change_reaches_the_peer_and_does_not_come_back(mesh: Mesh) -> None:
    eu, us = mesh.spread("eu"), mesh.spread("us")
    drain(us, "eu")
    drain(eu, "us")
    mesh.change("eu", "a@example.net", NOW_MS)
    assert eu.waiting() == {"us": 1}
    drain(eu, "us")
    drain(us, "eu")
    assert mesh.lists() == [{"a@example.net"}] * 2
    calls = mesh.calls
    drain(eu, "us")
    drain(us, "eu")
    assert mesh.calls == calls
    assert eu.waiting() == {"us": 0}


def test_a_peer_that_is_away_gets_it_later_also_after_a_restart(mesh: Mesh) -> None:
    eu = mesh.spread("eu")
    drain(eu, "us")
    mesh.down = {"us"}
    mesh.change("eu", "a@example.net", NOW_MS)
    with pytest.raises(ConnectionError):
        drain(eu, "us")
    eu.trim()
    mesh.restart("eu")
    mesh.down = set()
    drain(mesh.spread("eu"), "us")
    assert mesh.lists()[1] == {"a@example.net"}


def test_a_lost_answer_is_asked_for_again(mesh: Mesh) -> None:
    eu = mesh.spread("eu")
    mesh.change("eu", "a@example.net", NOW_MS)
    mesh.forgetful = {"us"}
    with pytest.raises(TimeoutError):
        drain(eu, "us")
    mesh.forgetful = set()
    drain(eu, "us")
    assert mesh.lists()[1] == {"a@example.net"}


def test_a_new_region_is_given_the_whole_list(
    tmp_path: Path, mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spread, "PAGE", 10)
    eu = mesh.spread("eu")
    drain(eu, "us")
    for number in range(35):
        mesh.change("eu", f"u{number}@example.net", NOW_MS)
    drain(eu, "us")
    eu.trim()
    mesh.spools["ap"] = mesh._open("ap")
    eu = mesh.spread("eu")
    assert eu.waiting()["ap"] == -1
    asyncio.run(eu.step("ap"))
    mesh.change("eu", "late@example.net", NOW_MS)  # while the list is copied
    mesh.restart("eu")
    drain(mesh.spread("eu"), "ap")
    assert mesh.lists()[2] == {*(f"u{number}@example.net" for number in range(35)), "late@example.net"}


def test_the_log_is_forgotten_when_all_have_it(mesh: Mesh) -> None:
    eu = mesh.spread("eu")
    drain(eu, "us")
    for number in range(5):
        mesh.change("eu", f"u{number}@example.net", NOW_MS)
    eu.trim()
    assert len(mesh.spools["eu"].suppression_log(0, 100)[1]) == 5
    drain(eu, "us")
    eu.trim()
    mesh.change("eu", "last@example.net", NOW_MS)
    assert len(mesh.spools["eu"].suppression_log(0, 100)[1]) == 2  # the last one is kept for its number


def test_regions_agree_whatever_happened_on_the_way(tmp_path: Path) -> None:
    """Random changes, failures, lost answers and restarts; in the end every region has the same rows."""
    rng = random.Random(7)
    mesh = Mesh(tmp_path, ["eu", "us", "ap"])
    names = list(mesh.spools)
    spreads = {name: mesh.spread(name) for name in names}

    async def some(name: str, peer: str) -> None:
        try:
            while await spreads[name].step(peer):
                pass
        except (ConnectionError, TimeoutError):
            pass

    for turn in range(150):
        name = rng.choice(names)
        reason = rng.choice([Reason.MANUAL, Reason.HARD_BOUNCE, Reason.COMPLAINT, Reason.REMOVED])
        mesh.change(name, f"u{rng.randrange(6)}@example.net", NOW_MS + turn + rng.randrange(-20, 20), reason)
        mesh.down = {n for n in names if rng.random() < 0.2}
        mesh.forgetful = {n for n in names if rng.random() < 0.2}
        peer = rng.choice([n for n in names if n != name])
        asyncio.run(some(name, peer))
        if rng.random() < 0.1:
            mesh.restart(name)
            spreads[name] = mesh.spread(name)
        if rng.random() < 0.2:
            spreads[name].trim()
    mesh.down, mesh.forgetful = set(), set()
    for name in names:
        for peer in names:
            if peer != name:
                asyncio.run(some(name, peer))
    rows = [spool.suppressions(b"", 1000) for spool in mesh.spools.values()]
    assert rows[0][1]
    assert rows[0] == rows[1] == rows[2]
    mesh.close()
