"""Gates: connections and pace."""

from engine.delivery.pacing import Gate, Together


def test_connections_are_limited_per_source_and_in_total() -> None:
    total = Together(limit=3)
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
    gate = Gate(1, 0, Together(limit=0))
    assert gate.has_room()


def test_lateness_never_becomes_a_burst() -> None:
    gate = Gate(1, 100, Together(0))
    gate.started(1000)
    assert gate.earliest_ns(0) == 1100
    gate.started(1500)  # 400 late
    assert gate.earliest_ns(0) == 1600
    assert gate.earliest_ns(9000) == 9000


def test_another_rate_holds_from_the_last_transaction_on() -> None:
    """As in the scheduler, whose grants would wait here else: for hours, in a warm-up that catches up."""
    gate = Gate(1, 1000, Together(0))
    assert gate.earliest_ns(0) == 0
    gate.started(500)
    gate.interval_ns = 100
    assert gate.earliest_ns(0) == 600
    gate.interval_ns = 3000
    assert gate.earliest_ns(0) == 3500
    gate.interval_ns = 0
    assert gate.earliest_ns(700) == 700


def test_the_rate_of_all_sources_holds_whoever_sends() -> None:
    total = Together(limit=0, interval_ns=100)
    first, second = Gate(1, 0, total), Gate(1, 300, total)
    first.started(1000)
    assert first.earliest_ns(0) == second.earliest_ns(0) == 1100
    second.started(1100)
    assert first.earliest_ns(0) == 1200
    assert second.earliest_ns(0) == 1400
    assert first.has_rate()
    assert not Gate(1, 0, Together(0)).has_rate()
