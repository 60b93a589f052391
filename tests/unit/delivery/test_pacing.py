"""Gates: connections and pace."""

from engine.delivery.pacing import Connections, Gate


def test_connections_are_limited_per_source_and_in_total() -> None:
    total = Connections(limit=3)
    first, second = Gate(2, 0, total), Gate(2, 0, total)
    first.acquire()
    first.acquire()
    assert not first.has_room()
    second.acquire()
    assert not second.has_room(), "three in total"
    first.release()
    assert first.has_room()
    assert second.has_room()


def test_no_total_limit() -> None:
    gate = Gate(1, 0, Connections(limit=0))
    assert gate.has_room()


def test_lateness_never_becomes_a_burst() -> None:
    gate = Gate(1, 100, Connections(0))
    gate.started(1000)
    assert gate.earliest_ns(0) == 1100
    gate.started(1500)  # 400 late
    assert gate.earliest_ns(0) == 1600
    assert gate.earliest_ns(9000) == 9000
