"""Outcomes leave in numbered reports, one at a time, and are kept until they are settled."""

import asyncio
from typing import Any

from engine.delivery.reports import FLUSH_ROWS, Reports
from engine.delivery.wire import OutcomeRow, decode_report
from engine.values.outcome import OutcomeKind


def row(id_: int) -> OutcomeRow:
    return id_, int(OutcomeKind.DELIVERED), "recipient", 250, "2.0.0", "ok", "mx", 0, 1, 0, 1


class World:
    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.reports = Reports(lambda data: self.sent.append(decode_report(data)))
        self.reports.epoch = 7

    def ids(self) -> list[list[int]]:
        return [[outcome.id for outcome in report.outcomes] for report in self.sent]


def run(work: Any) -> None:
    asyncio.run(work())


def test_a_full_report_leaves_at_once_and_numbers_go_up() -> None:
    async def work() -> None:
        world = World()
        for id_ in range(1, FLUSH_ROWS * 2 + 1):
            world.reports.add(row(id_))
        assert [len(ids) for ids in world.ids()] == [FLUSH_ROWS, FLUSH_ROWS]
        assert [(report.epoch, report.sequence) for report in world.sent] == [(7, 1), (7, 2)]
        assert world.reports.kept() == FLUSH_ROWS * 2
        assert world.reports.counts[OutcomeKind.DELIVERED] == FLUSH_ROWS * 2

    run(work)


def test_while_a_report_is_on_its_way_rows_gather() -> None:
    async def work() -> None:
        world = World()
        world.reports.add(row(1))
        world.reports.flush()
        world.reports.add(row(2))
        world.reports._flush_time()  # its time has come, but the first is not settled
        world.reports.add(row(3))
        assert world.ids() == [[1]]
        world.reports.acknowledge(1)
        assert world.ids() == [[1], [2, 3]]
        world.reports.acknowledge(2)
        assert world.reports.kept() == 0

    run(work)


def test_what_is_not_settled_is_told_to_the_next_incarnation() -> None:
    async def work() -> None:
        world = World()
        world.reports.add(row(1))
        world.reports.flush()
        world.reports.add(row(2))
        assert [found[0] for found in world.reports.unacknowledged()] == [1, 2]
        assert world.reports.sequence == 2
        world.reports.acknowledge(1)
        assert [found[0] for found in world.reports.unacknowledged()] == [2]

    run(work)


def test_notices_leave_with_the_next_tick_also_without_rows() -> None:
    async def work() -> None:
        world = World()
        world.reports.tick([])
        assert world.sent == []
        world.reports.tick([("key", "cannot be read")])
        assert [list(report.notices) for report in world.sent] == [[("key", "cannot be read")]]
        world.reports.tick([])
        assert len(world.sent) == 1

    run(work)
