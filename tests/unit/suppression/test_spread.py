"""Regions that pass their suppressions on: at least once, over lost answers and restarts, to newcomers too."""

import asyncio
import random
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

    def _open(self, name: str) -> Spool:
        options = SpoolOptions(map_size=64 << 20, min_free=0)
        return Spool.open(
            self.directory / name, region_number=NUMBERS[name], clock=ManualClock(), options=options
        )

    def spread(self, name: str) -> Spread:
        return Spread(self.spools[name], [peer for peer in self.spools if peer != name], self)

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


def test_a_change_reaches_the_peer_and_does_not_come_back(mesh: Mesh) -> None:
    eu, us = mesh.spread("eu"), mesh.spread("us")
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
