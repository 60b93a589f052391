"""What becomes too late while it waits in memory: given up, and nothing else is."""

from engine.region.expiry import LATE_MS, ROWS, Expiry
from native.scheduler import Scheduler
from tests.support.decisions import decisions

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000


class World:
    """A due index in memory, a real scheduler whose only source is suspended, and what is expired."""

    def __init__(self) -> None:
        self.rows: dict[bytes, int] = {}
        self.scheduler = Scheduler(seed=1)
        self.scheduler.set_source(0, netblock=0, streams=7, tenancy=0, tenant=0)
        self.scheduler.add_site(0, 0)
        self.scheduler.set_limit(0, 0, interval_ns=0, window=1_000_000)
        self.flow = self.scheduler.flow(0, 0, 0, 0)
        self.expired: list[int] = []
        self.woken = 0
        self.now_ns = 0
        self.expiry = Expiry(index=self, scheduler=self.scheduler, expire=self._expire, freed=self._freed)

    def due_rows(self, after: bytes, limit: int) -> list[tuple[bytes, int]]:
        return [(key, expires) for key, expires in sorted(self.rows.items()) if key > after][:limit]

    def _expire(self, keys: list[bytes]) -> None:
        for key in keys:
            del self.rows[key]
            self.expired.append(int.from_bytes(key[10:], "big"))

    def _freed(self) -> None:
        self.woken += 1

    def put(self, id_: int, due_ms: int, expires_ms: int, *, loaded: bool = True) -> None:
        key = (1).to_bytes(4, "big") + due_ms.to_bytes(6, "big") + id_.to_bytes(8, "big")
        self.rows[key] = expires_ms
        if loaded:
            self.scheduler.add(self.flow, key)

    def tick(self, now_ms: int) -> list[int]:
        self.now_ns += 1_000_000_000
        before = len(self.expired)
        self.expiry.tick(now_ms, self.now_ns)
        return self.expired[before:]


def test_a_message_that_no_source_may_carry_is_given_up_at_its_expiry() -> None:
    world = World()
    world.scheduler.suspend(0, 0, 1 << 62)
    world.put(1, NOW_MS, NOW_MS + HOUR_MS)
    world.put(2, NOW_MS, NOW_MS + 3 * HOUR_MS)
    assert world.tick(NOW_MS + HOUR_MS) == []
    assert world.tick(NOW_MS + HOUR_MS + 1) == [1]
    assert world.woken == 1
    world.scheduler.suspend(0, 0, 0)
    assert [d.id for d in decisions(world.scheduler.take(0, 1, 10))] == [2]


def test_a_last_attempt_at_the_expiry_may_be_late_but_not_without_end() -> None:
    world = World()
    world.put(1, NOW_MS, NOW_MS)
    assert world.tick(NOW_MS + LATE_MS) == []
    assert world.tick(NOW_MS + LATE_MS + 1) == [1]


def test_what_is_in_flight_or_not_loaded_is_left_alone() -> None:
    world = World()
    world.put(1, NOW_MS, NOW_MS + 1)
    world.put(2, NOW_MS, NOW_MS + 1, loaded=False)
    assert len(world.scheduler.take(0, 1, 10)) == 40
    assert world.tick(NOW_MS + HOUR_MS) == []
    assert world.scheduler.contains(1)
    assert world.woken == 0


def test_the_hand_goes_round_a_long_index() -> None:
    world = World()
    for id_ in range(1, 2 * ROWS + 10):
        world.put(id_, NOW_MS + id_, NOW_MS + 9 * HOUR_MS, loaded=False)
    world.put(9999, NOW_MS + HOUR_MS, NOW_MS + 2 * HOUR_MS)
    found = [world.tick(NOW_MS + 3 * HOUR_MS) for _ in range(4)]
    assert found == [[], [], [9999], []]
