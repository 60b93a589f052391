"""The rules of one lane, without a network: who shares a transaction, what goes back, and who is let in."""

from types import SimpleNamespace
from typing import Any

from engine.delivery.job import Job
from engine.delivery.lane import MAX_TRIES, Lane
from engine.delivery.pacing import Gate, Together
from engine.delivery.session import Session
from engine.values.outcome import OutcomeKind
from tests.support.clock import ManualClock
from tests.support.pools import Profile, Record


class Pool:
    """What a lane needs of its pool, as far as these rules go."""

    def __init__(self) -> None:
        self.profile = Profile(max_recipients=10)
        self.clock = ManualClock()
        self.stopping = False
        self.given_back: list[int] = []
        self.settled: list[tuple[int, OutcomeKind, str]] = []

    def settle(self, job: Job, verdict: Any, reply: Any, host: str, possible_duplicate: bool) -> None:
        self.settled.append((job.id, verdict.kind, reply.text))

    def delivered(self, *arguments: Any) -> None: ...

    def give_back(self, job: Job) -> None:
        self.given_back.append(job.id)


def make_lane(pool: Pool) -> Lane:
    gate = Gate(limit=1, interval_ns=0, total=Together(0))
    return Lane(pool, source=None, route=None, gate=gate)  # type: ignore[arg-type]


def job(id_: int, *, send_at_ns: int = 0, term: int = 0, sender: str = "s@example.com") -> Job:
    record = Record(sender, f"u{id_}@example.net", (1, 0, 10, 0), id_)
    return Job(id_, send_at_ns, site="test", source=0, batch=1, epoch=1, record=record, held_ns=0, term=term)


def shared_with(lane: Lane, first: Job, *others: Job) -> list[int]:
    """Who goes in one transaction with the first."""
    lane.pending.clear()
    lane.pending.extend(others)
    jobs = [first]
    session: Any = SimpleNamespace(max_recipients=100, limits_domains=False)
    lane._add_recipients(jobs, session, now_ns=1000)
    return [one.id for one in jobs]


def test_who_shares_a_transaction() -> None:
    lane = make_lane(Pool())
    assert shared_with(lane, job(1), job(2), job(3, send_at_ns=1000)) == [1, 2, 3]
    assert shared_with(lane, job(1), job(2, send_at_ns=1001)) == [1], "not before its time"
    assert shared_with(lane, job(1, term=1), job(2, term=2)) == [1], "not of another lease"
    assert shared_with(lane, job(1), job(2, sender="t@example.com")) == [1], "not of another sender"
    assert shared_with(lane, job(1), *(job(n) for n in range(2, 20))) == list(range(1, 11))


def test_what_sessions_end_on_again_and_again_is_deferred() -> None:
    pool = Pool()
    lane = make_lane(pool)
    one = job(1)
    for _ in range(MAX_TRIES - 1):
        lane.put_back([one], tried=True)
        assert lane.pending.popleft() is one
    lane.put_back([one], tried=False)
    assert lane.pending.popleft() is one, "wanted in a smaller portion: no try"
    lane.put_back([one], tried=True)
    assert not lane.pending
    assert pool.settled == [(1, OutcomeKind.DEFERRED, "sessions end before they answer")]


def test_a_pool_that_stops_gives_back_what_comes_back() -> None:
    pool = Pool()
    lane = make_lane(pool)
    pool.stopping = True
    lane.put_back([job(1), job(2)], tried=True)
    assert (sorted(pool.given_back), list(lane.pending)) == ([1, 2], [])


def test_a_session_beyond_a_lowered_limit_begins_nothing() -> None:
    """However busy it is."""
    lane: Any = SimpleNamespace(now_ns=lambda: 0, is_over_limit=lambda: True, take=lambda session: 1 / 0)
    opened: Any = SimpleNamespace(extensions={})
    session = Session(lane, host="mx", opened=opened, pipelining=True, chunking=False, max_transactions=100)
    told: list[str] = []
    machine: Any = SimpleNamespace(started=0, quit=lambda: told.append("quit"))
    assert session.next_transaction(machine) is None
    assert told == ["quit"]


def test_a_lane_is_over_its_limit_when_that_has_been_lowered() -> None:
    lane = make_lane(Pool())
    lane.gate.acquire()
    assert not lane.is_over_limit()
    lane.gate.limit = 0
    assert lane.is_over_limit()
    lane.gate.limit = 1
    lane.gate.acquire()
    lane.gate.limit, lane.gate.total.limit = 2, 1
    assert lane.is_over_limit(), "of all sources together"
