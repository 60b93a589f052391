"""How much mail waits for what: the walk over the index, and what is counted while mail goes by."""

import asyncio
from pathlib import Path

import pytest

from engine.metrics.catalogue import Point
from engine.region import depth as module
from engine.region.depth import Depth
from engine.region.tally import FlowTally
from engine.spool.batches import Settlement
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply
from engine.values.stream import Stream
from tests.support.clock import ManualClock
from tests.support.spools import batch, open_spool

GOOGLE = 3
NAMES = {GOOGLE: "google"}


def key(queue: int, due_ms: int, id_: int) -> bytes:
    return queue.to_bytes(4, "big") + due_ms.to_bytes(6, "big") + id_.to_bytes(8, "big")


class Index:
    """Due keys in order, counted piece by piece as the spool does."""

    def __init__(self, keys: list[bytes]) -> None:
        self.keys = sorted(keys)

    def count_due(
        self, after: bytes, limit: int, now_ms: int
    ) -> tuple[bytes, list[tuple[int, int, int, int]]]:
        piece = [key for key in self.keys if key > after][:limit]
        rows: dict[int, list[int]] = {}
        for one in piece:
            due_ms = int.from_bytes(one[4:10], "big")
            row = rows.setdefault(int.from_bytes(one[:4], "big"), [0, 0, due_ms])
            row[due_ms > now_ms] += 1
        return (piece[-1] if len(piece) == limit else b""), [(n, a, b, c) for n, (a, b, c) in rows.items()]


def place_of(queue: bytes) -> tuple[int, int]:
    """Queue 1 and 2 are marketing to Google, 3 transactional without a route."""
    number = int.from_bytes(queue, "big")
    return (int(Stream.TRANSACTIONAL), -1) if number == 3 else (int(Stream.MARKETING), GOOGLE)


class Held:
    """Queues whose mail waits by plan."""

    def __init__(self, *queues: int) -> None:
        self.queues = queues
        self.walks = 0

    def begin(self) -> None:
        self.walks += 1

    def holds(self, number: int) -> bool:
        return number in self.queues

    def take_cost(self) -> int:
        return module.CHECKS


def walked(
    keys: list[bytes], in_flight: list[bytes], clock: ManualClock, held: Held | None = None
) -> list[Point]:
    waiting = Depth(
        spool=Index(keys),
        clock=clock,
        place_of=place_of,
        in_flight=lambda: in_flight,
        provider=NAMES.__getitem__,
        held=held or Held(),
    )
    assert waiting.points() == []
    asyncio.run(waiting.walk())
    clock.advance(4)
    return waiting.points()


@pytest.mark.parametrize("piece", [1, 2, 3, 100])
def test_every_message_is_counted_once(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(module, "PIECE", piece)
    monkeypatch.setattr(module, "PAUSE_S", 0)
    clock = ManualClock()
    now_ms = clock.wall_ms()
    keys = [
        key(1, now_ms - 7000, 1),
        key(1, now_ms, 2),
        key(1, now_ms + 1, 3),
        key(2, now_ms - 9000, 4),
        key(3, now_ms + 60_000, 5),
    ]
    google, unknown = ("marketing", "google"), ("transactional", "unknown")
    assert set(walked(keys, [keys[1]], clock)) == {
        Point("sendfleet.messages.waiting.age", (), 4.0),
        Point("sendfleet.messages.waiting", (*google, "scheduled"), 1),
        Point("sendfleet.messages.waiting", (*google, "held"), 0),
        Point("sendfleet.messages.waiting", (*google, "ready"), 2),
        Point("sendfleet.messages.waiting", (*google, "in_flight"), 1),
        Point("sendfleet.messages.ready.age", google, 13.0),
        Point("sendfleet.messages.waiting", (*unknown, "scheduled"), 1),
        Point("sendfleet.messages.waiting", (*unknown, "held"), 0),
        Point("sendfleet.messages.waiting", (*unknown, "ready"), 0),
        Point("sendfleet.messages.waiting", (*unknown, "in_flight"), 0),
    }


@pytest.mark.parametrize(("queues", "held", "ready"), [((), 0, 2), ((1,), 1, 1), ((1, 2), 2, 0)])
def test_what_waits_by_plan_is_not_ready(
    monkeypatch: pytest.MonkeyPatch, queues: tuple[int, ...], held: int, ready: int
) -> None:
    """Of three that are due, of two queues, one is on the wire."""
    monkeypatch.setattr(module, "PAUSE_S", 0)
    clock = ManualClock()
    now_ms = clock.wall_ms()
    keys = [key(1, now_ms, 1), key(2, now_ms - 1, 2), key(2, now_ms, 3)]
    asked = Held(*queues)
    found = {point.labels[-1]: point.value for point in walked(keys, [keys[1]], clock, asked) if point.labels}
    assert (found["held"], found["ready"], found["in_flight"]) == (held, ready, 1)
    assert asked.walks == 1


def test_an_index_that_fails_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REST_S", 0)

    class Failing(Index):
        fails = 2

        def count_due(
            self, after: bytes, limit: int, now_ms: int
        ) -> tuple[bytes, list[tuple[int, int, int, int]]]:
            self.fails -= 1
            if self.fails >= 0:
                raise OSError("no such page")
            return super().count_due(after, limit, now_ms)

    async def run() -> list[Point]:
        waiting = Depth(
            spool=Failing([key(1, 5, 1)]),
            clock=ManualClock(),
            place_of=place_of,
            in_flight=list,
            provider=NAMES.__getitem__,
            held=Held(),
        )
        task = asyncio.create_task(waiting.run())
        async with asyncio.timeout(30):
            while not waiting.points():
                await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return waiting.points()

    assert Point("sendfleet.messages.waiting", ("marketing", "google", "ready"), 1) in asyncio.run(run())


def test_nothing_waits() -> None:
    assert walked([], [], ManualClock()) == [Point("sendfleet.messages.waiting.age", (), 4.0)]


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 1000])
def test_the_spool_counts_piece_by_piece(tmp_path: Path, limit: int) -> None:
    clock = ManualClock()
    now_ms = clock.wall_ms()
    spool = open_spool(tmp_path / "spool", clock)
    due_of: dict[str, list[int]] = {
        "a.example": [now_ms - 5, now_ms - 1, now_ms],
        "b.example": [now_ms + 1],
        "c.example": [now_ms - 2, now_ms + 9],
    }
    for domain, times in due_of.items():
        for due_ms in times:
            spool.accept(batch(domain=domain, due_ms=due_ms)).result()
    found: dict[str, list[int]] = {}
    after = b""
    while True:
        after, rows = spool.count_due(after, limit, now_ms)
        for queue, due, later, first_ms in rows:
            row = found.setdefault(spool.queue(queue)[0], [0, 0, first_ms])
            row[0] += due
            row[1] += later
        if not after:
            break
    assert found == {
        domain: [sum(t <= now_ms for t in times), sum(t > now_ms for t in times), min(times)]
        for domain, times in due_of.items()
    }
    spool.close()


def test_what_goes_by_is_counted_by_stream_and_provider() -> None:
    tally = FlowTally(place_of=place_of, provider=NAMES.__getitem__)
    tally.accepted([key(1, 5, 1), key(2, 5, 2), key(3, 5, 3)])
    reply = Reply(250, "", "")
    kinds = [(1, OutcomeKind.DELIVERED), (2, OutcomeKind.DELIVERED), (3, OutcomeKind.EXPIRED)]
    kinds += [(1, OutcomeKind.RETURNED), (1, OutcomeKind.DEFERRED)]
    tally.settled(
        Settlement(key(queue, 5, n), Outcome(n, kind, Scope.RECIPIENT, reply, 0, "", 0), 0)
        for n, (queue, kind) in enumerate(kinds)
    )
    tally.attempted({GOOGLE: 3, -1: 1})
    assert set(tally.points()) == {
        Point("sendfleet.messages.accepted", ("marketing",), 2),
        Point("sendfleet.messages.accepted", ("transactional",), 1),
        Point("sendfleet.outcomes", ("marketing", "google", "delivered"), 2),
        Point("sendfleet.outcomes", ("marketing", "google", "deferred"), 1),
        Point("sendfleet.outcomes", ("transactional", "unknown", "expired"), 1),
        Point("sendfleet.attempts", ("google",), 3),
        Point("sendfleet.attempts", ("unknown",), 1),
    }
