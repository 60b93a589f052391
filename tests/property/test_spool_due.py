"""What is due in a spool, beside a dictionary: mail held back until its copy is safe, offered to a peer, taken or
returned, given up, put off and settled, over commits that fail, closings and kills; with a journal that is merged all
the time.
"""

import os
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.failover.handover import MakeOffer, SettleOffer
from engine.failover.spans import Spans, of_ids
from engine.failover.store import Accept, GiveUp, Release, SaveEpoch
from engine.spool.audit import audit
from engine.spool.draft import Draft
from engine.spool.environment import Error
from engine.spool.errors import SpoolError
from engine.values.outcome import OutcomeKind
from tests.support.spools import NOW_MS, batch, due, id_of, open_spool, settlement

NUMBERS = {"self": 1, "peer": 2}
STEPS = 120
MEMORY = Path("/dev/shm")  # where a sync costs nothing: no power fails here


class Life:
    """A spool, the due keys of what is queued, and which of it is not due."""

    def __init__(self, root: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.root = root
        self.home = 0
        self.queued: dict[int, bytes] = {}
        self.unsafe: dict[bytes, Spans] = {}
        self.offers: dict[int, list[int]] = {}
        self.held: set[int] = set()
        self.offer_no = 0
        self.open()
        self.spool.failover(SaveEpoch(3), NUMBERS).result()

    def path(self) -> Path:
        return self.root / str(self.home)

    def open(self) -> None:
        self.spool = open_spool(self.path(), journal=5, segment_size=3000, keep_names_ms=0, forget_every=1)

    def some(self) -> list[int]:
        """A few messages that are due."""
        ids = sorted(self.queued.keys() - self.held)
        return self.rng.sample(ids, min(len(ids), self.rng.randrange(1, 6)))

    def gone(self, ids: list[int]) -> None:
        for id_ in ids:
            del self.queued[id_]
        self.held -= set(ids)

    def came(self, keys: list[bytes]) -> None:
        self.queued |= {id_of(key): key for key in keys}
        self.held -= {id_of(key) for key in keys}

    # -- steps

    def accept(self) -> None:
        due_ms = NOW_MS + self.rng.randrange(3) * 1000
        domain = f"d{self.rng.randrange(4)}.example"
        sent = batch(recipients=self.rng.randrange(1, 8), domain=domain, due_ms=due_ms)
        self.came(self.spool.accept(sent).result().due_keys)

    def accept_unsafe(self) -> None:
        key = os.urandom(16)
        sent = batch(key, recipients=self.rng.randrange(1, 4))
        accepted, result = self.spool.failover(Accept(key, sent), NUMBERS).result()
        self.came(result.due_keys)
        self.held |= {id_of(key) for key in result.due_keys}
        self.unsafe[key] = accepted.spans

    def release(self) -> None:
        if self.unsafe:
            key, spans = self.unsafe.popitem()
            self.came(self.spool.failover(Release(key, spans), NUMBERS).result())

    def offer(self) -> None:
        if ids := self.some():
            self.offer_no += 1
            offer = MakeOffer(self.offer_no, "peer", b"disk", of_ids(ids))
            assert self.spool.hand_over(offer, NUMBERS).result() == of_ids(ids)
            self.offers[self.offer_no] = ids
            self.held |= set(ids)

    def settle_offer(self) -> None:
        if self.offers:
            number, ids = self.offers.popitem()
            taken = [id_ for id_ in ids if self.rng.random() < 0.4]
            settled = self.spool.hand_over(SettleOffer(number, of_ids(taken)), NUMBERS).result()
            assert settled.due_keys == [self.queued[id_] for id_ in sorted(ids) if id_ not in taken]
            self.came(settled.due_keys)
            self.gone(taken)

    def deliver(self) -> None:
        ids = self.some()
        offered = [settlement(self.queued[id_]) for ids in self.offers.values() for id_ in ids]
        settled = [settlement(self.queued[id_]) for id_ in ids]
        assert self.spool.settle(settled + offered).result().stale == len(offered)
        self.gone(ids)

    def defer(self) -> None:
        until = NOW_MS + self.rng.randrange(4) * 1000
        settled = [
            settlement(self.queued[id_], OutcomeKind.DEFERRED, next_due_ms=until) for id_ in self.some()
        ]
        self.came(self.spool.settle(settled).result().due_keys)

    def give_up(self) -> None:
        ids = self.some()
        self.spool.failover(GiveUp(of_ids(ids), "peer"), NUMBERS).result()
        self.gone(ids)

    def fail(self) -> None:
        """A commit fails, before or after it has reached the disk."""
        is_done = self.rng.random() < 0.5
        groups = self.spool._groups

        def commit(draft: Draft) -> None:
            if is_done:
                draft.txn.commit()
            else:
                draft.txn.abort()
            del groups.commit_group
            raise Error("the disk does not answer")

        groups.commit_group = commit  # type: ignore[method-assign]
        future = self.spool.accept(batch(recipients=3))
        if is_done:
            self.came(future.result().due_keys)
        else:
            with pytest.raises(SpoolError):
                future.result()

    def reopen(self) -> None:
        self.spool.close()
        self.open()

    def kill(self) -> None:
        former, old = self.spool, self.path()
        self.home += 1
        shutil.copytree(old, self.path())
        former.close()
        report = audit(self.path())
        assert report.is_clean, report.problems
        self.open()


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as made:
        yield Path(made)


@pytest.mark.parametrize("seed", range(3))
def test_what_is_due_is_what_is_queued_and_not_held(
    directory: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.spool.due_index.AT_ONCE", 1 + seed)
    monkeypatch.setattr("engine.spool.due_index.ROWS_AT_ONCE", 1)
    one = Life(directory, seed)
    steps: list[Callable[[], None]] = [one.accept, one.accept_unsafe, one.release, one.offer]
    steps += [
        one.settle_offer,
        one.deliver,
        one.defer,
        one.defer,
        one.give_up,
        one.fail,
        one.reopen,
        one.kill,
    ]
    for _ in range(STEPS):
        one.rng.choice(steps)()
        expected = sorted(key for id_, key in one.queued.items() if id_ not in one.held)
        assert sorted(due(one.spool)) == expected
        assert {id_: one.spool.due_key_of(id_) for id_ in one.queued} == one.queued
    one.spool.close()
    report = audit(one.path())
    assert report.is_clean, report.problems
    assert report.counts["queued"] == len(one.queued)
