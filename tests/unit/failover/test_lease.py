from engine.failover.lease import Lease
from engine.failover.timing import MS, Timing

T = Timing()


def test_a_grant_counts_from_the_question_not_from_the_answer() -> None:
    lease = Lease(("b",), now=0, timing=T)
    lease.granted(1000 * MS)  # arrives late, say at 1500
    assert lease.holds(1699 * MS)
    assert not lease.holds(1700 * MS)


def test_without_fleet_every_peer_has_to_promise() -> None:
    lease = Lease(("b", "c"), now=0, timing=T)
    lease.promised("b", 100 * MS)
    assert not lease.holds(110 * MS)
    lease.promised("c", 200 * MS)
    assert lease.holds(799 * MS)
    assert not lease.holds(800 * MS)


def test_a_region_alone_has_nobody_to_promise() -> None:
    assert not Lease((), now=0, timing=T).holds(1)


def test_it_adopts_only_under_fleets_lease_and_after_its_own_promise() -> None:
    lease = Lease(("b",), now=0, timing=T)
    lease.promised("b", 10_000 * MS)
    assert not lease.may_adopt("b", 10_100 * MS)
    lease.granted(10_000 * MS)
    assert lease.may_adopt("b", 10_100 * MS)
    lease.give("b", 10_050 * MS)
    assert not lease.may_adopt("b", 10_100 * MS)


def test_a_process_that_starts_honours_what_an_earlier_one_may_have_promised() -> None:
    lease = Lease(("b",), now=5_000 * MS, timing=T)
    lease.granted(5_100 * MS)
    assert not lease.may_adopt("b", 5_749 * MS)
    assert lease.may_adopt("b", 5_750 * MS)


def test_superseded_it_holds_nothing() -> None:
    lease = Lease(("b",), now=0, timing=T)
    lease.granted(100 * MS)
    lease.drop()
    assert not lease.holds(101 * MS)
