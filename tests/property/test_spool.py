"""The spool over any traffic beside a plain dictionary: accepted, keyed, dispatched, settled in every way, cancelled,
its segments rotated, closed and opened, killed and opened. After each step both hold the same, all is accounted for.
"""

import os
import shutil
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from engine.spool.audit import audit
from engine.spool.bodies import segment_path
from engine.spool.draft import NOT_HERE
from engine.spool.records import MAYBE_SENT, due_key
from engine.spool.store import Spool
from engine.values.outcome import OutcomeKind
from tests.support.clock import ManualClock
from tests.support.spools import PATIENCE_S, batch, due, letter, open_spool, packed, settlement

FINAL = [OutcomeKind.DELIVERED, OutcomeKind.BOUNCED, OutcomeKind.EXPIRED, OutcomeKind.SUPPRESSED]
SEGMENT_BYTES = 3000  # a few letters each, so that they rotate and drain
MEMORY = Path("/dev/shm")  # where a sync costs nothing: no power fails here
PICKS = st.lists(st.integers(0, 10**6), min_size=1, max_size=6)


@dataclass
class Queued:
    """A message that waits, as it must be on disk."""

    body: bytes
    queue: int
    due_ms: int
    attempts: int = 0
    maybe_sent: bool = False
    batch_no: int = 0  # that it is in flight in, 0 for none


@dataclass
class Model:
    """What the spool must hold."""

    queued: dict[int, Queued] = field(default_factory=dict)
    final: dict[int, OutcomeKind] = field(default_factory=dict)
    keys: dict[str, tuple[list[int], tuple[int, str]]] = field(default_factory=dict)
    batches: dict[bytes, list[list[int]]] = field(default_factory=dict)

    def counts(self) -> dict[str, int]:
        counts = {
            str(kind): 0 for kind in OutcomeKind if kind is not OutcomeKind.DEFERRED and kind not in NOT_HERE
        }  # no peer
        counts = {name: 0 for name in counts if name not in ("returned",)}
        counts |= {"queued": len(self.queued), "accepted": len(self.queued) + len(self.final)}
        for kind in self.final.values():
            counts[str(kind)] += 1
        return counts


class Life(RuleBasedStateMachine):
    """One spool, from its first opening on."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="spool-", dir=MEMORY if MEMORY.is_dir() else None))
        self.home = 0
        self.clock = ManualClock()
        self.model = Model()
        self.batch_no = 0
        self.letters = 0
        self.epoch = 0
        self.open()

    def path(self) -> Path:
        return self.root / str(self.home)

    def open(self) -> None:
        self.spool: Spool = open_spool(
            self.path(), self.clock, segment_size=SEGMENT_BYTES, keep_names_ms=0, forget_every=1
        )
        assert self.spool.epoch == self.epoch + 1
        self.epoch = self.spool.epoch
        self.batch_no = 0

    def teardown(self) -> None:
        if hasattr(self, "spool"):
            self.spool.close()
            shutil.rmtree(self.root)

    def pick(self, picks: list[int], *, flying: bool | None = None) -> list[int]:
        """Different queued ids; only those in flight, or only those that are not."""
        found = [id_ for id_, q in self.model.queued.items() if flying in (None, q.batch_no > 0)]
        return list(dict.fromkeys(found[pick % len(found)] for pick in picks)) if found else []

    def key_of(self, id_: int) -> bytes:
        queued = self.model.queued[id_]
        return due_key(queued.queue, queued.due_ms, id_)

    # -- mail in

    @rule(
        sizes=st.lists(st.sampled_from([60, 200, 1500]), min_size=1, max_size=4),
        recipients=st.integers(1, 3),
        domain=st.sampled_from(["one.example", "two.example"]),
        wait_ms=st.sampled_from([0, 0, 60_000]),
        keys=st.none() | st.lists(st.sampled_from("abcdef"), min_size=4, max_size=4),
    )
    def accept(
        self, sizes: list[int], recipients: int, domain: str, wait_ms: int, keys: list[str] | None
    ) -> None:
        """Items whose keys were seen before are answered with the ids they got then, if they go to the same."""
        letters = [letter(self.letters + n, size) for n, size in enumerate(sizes)]
        self.letters += len(letters)
        name = os.urandom(16)
        due_ms = self.clock.wall_ms() + wait_ms
        result = self.spool.accept(
            batch(name, letters=letters, recipients=recipients, domain=domain, keys=keys or (), due_ms=due_ms)
        ).result(PATIENCE_S)
        assert not result.repeated
        fresh = iter(result.due_keys)
        for n, body in enumerate(letters):
            ids = list(result.ids[n])
            known = self.model.keys.get(keys[n]) if keys else None
            if known is not None:
                assert ids == (known[0] if known[1] == (recipients, domain) else [])
                continue
            assert len(ids) == recipients
            if keys:
                self.model.keys[keys[n]] = ids, (recipients, domain)
            for id_ in ids:
                assert id_ not in self.model.queued
                assert id_ not in self.model.final
                key = next(fresh)
                self.model.queued[id_] = Queued(body, int.from_bytes(key[:4], "big"), due_ms)
                assert key == self.key_of(id_)
        assert next(fresh, None) is None
        self.model.batches[name] = [list(ids) for ids in result.ids]

    @precondition(lambda self: self.model.batches)
    @rule(which=st.integers(0, 10**6))
    def repeat_a_batch(self, which: int) -> None:
        name = list(self.model.batches)[which % len(self.model.batches)]
        result = self.spool.accept(batch(name, letters=[b"something else"])).result(PATIENCE_S)
        assert result.repeated
        assert [list(ids) for ids in result.ids] == self.model.batches[name]
        assert not result.due_keys

    # -- mail out

    @rule(picks=PICKS)
    def dispatch(self, picks: list[int]) -> None:
        ids = self.pick(picks, flying=False)
        if ids:
            self.batch_no += 1
            assert (
                self.spool.dispatch(self.batch_no, packed(ids), {"daily/x": len(ids)}).result(PATIENCE_S)
                == []
            )
            for id_ in ids:
                self.model.queued[id_].batch_no = self.batch_no

    @rule(
        picks=PICKS,
        flying=st.booleans(),
        kind=st.sampled_from(FINAL),
        says_batch=st.booleans(),
        again=st.booleans(),
    )
    def settle_for_good(
        self, picks: list[int], flying: bool, kind: OutcomeKind, says_batch: bool, again: bool
    ) -> None:
        """`again`: the pool repeats its report, which changes nothing."""
        ids = self.pick(picks, flying=flying)
        settlements = [
            settlement(self.key_of(id_), kind, batch_no=self.model.queued[id_].batch_no if says_batch else 0)
            for id_ in ids
        ]
        assert self.spool.settle(settlements).result(PATIENCE_S).stale == 0
        if again:
            assert self.spool.settle(settlements).result(PATIENCE_S).stale == len(ids)
        for id_ in ids:
            del self.model.queued[id_]
            self.model.final[id_] = kind

    @rule(
        picks=PICKS,
        flying=st.booleans(),
        free=st.booleans(),
        duplicate=st.booleans(),
        wait_s=st.integers(1, 3600),
    )
    def defer(self, picks: list[int], flying: bool, free: bool, duplicate: bool, wait_s: int) -> None:
        ids = self.pick(picks, flying=flying)
        due_ms = self.clock.wall_ms() + wait_s * 1000
        result = self.spool.settle(
            [
                settlement(
                    self.key_of(id_),
                    OutcomeKind.DEFERRED,
                    batch_no=self.model.queued[id_].batch_no,
                    next_due_ms=due_ms,
                    free=free,
                    possible_duplicate=duplicate,
                )
                for id_ in ids
            ]
        ).result(PATIENCE_S)
        for id_ in ids:
            queued = self.model.queued[id_]
            queued.due_ms, queued.batch_no = due_ms, 0
            queued.attempts += not free
            queued.maybe_sent |= duplicate
        assert list(result.due_keys) == [self.key_of(id_) for id_ in ids]

    @rule(picks=PICKS)
    def give_back(self, picks: list[int]) -> None:
        ids = self.pick(picks, flying=True)
        self.spool.settle(
            [
                settlement(self.key_of(id_), OutcomeKind.RETURNED, batch_no=self.model.queued[id_].batch_no)
                for id_ in ids
            ]
        ).result(PATIENCE_S)
        for id_ in ids:
            self.model.queued[id_].batch_no = 0

    @rule(picks=PICKS, unknown=st.integers(1, 10**6))
    def cancel(self, picks: list[int], unknown: int) -> None:
        ids = self.pick(picks, flying=False)
        assert self.spool.cancel([*ids, (1 << 48) + 10**9 + unknown]).result(PATIENCE_S) == len(ids)
        for id_ in ids:
            del self.model.queued[id_]
            self.model.final[id_] = OutcomeKind.CANCELLED

    # -- openings

    @rule(later_s=st.sampled_from([0, 60, -30]))
    def reopen(self, later_s: int) -> None:
        """In order, or after a while, or with the clock set back."""
        self.spool.close()
        self.clock.step_wall(later_s)
        self.check_disk(self.path())
        self.open()
        self.in_flight_is_marked()

    @rule()
    def kill(self) -> None:
        """Without a close: the files as they are at this moment are all that there is."""
        former = self.spool
        self.home += 1
        shutil.copytree(self.root / str(self.home - 1), self.path())
        former.close()
        shutil.rmtree(self.root / str(self.home - 1))
        self.check_disk(self.path())
        self.open()
        self.in_flight_is_marked()

    def check_disk(self, path: Path) -> None:
        """The audit of what is on disk, without this process's knowledge."""
        report = audit(path)
        assert report.is_clean, report.problems
        assert report.accepted == sum(report.counts.values()) == self.model.counts()["accepted"]

    def in_flight_is_marked(self) -> None:
        for queued in self.model.queued.values():
            queued.maybe_sent |= queued.batch_no > 0
            queued.batch_no = 0

    # -- at any time

    @invariant()
    def counts_are_conserved(self) -> None:
        counts = self.spool.counts()
        assert counts == self.model.counts()
        assert counts["accepted"] == sum(number for name, number in counts.items() if name != "accepted")

    @invariant()
    def what_waits_is_on_disk_as_it_should_be(self) -> None:
        assert sorted(due(self.spool)) == sorted(self.key_of(id_) for id_ in self.model.queued)
        reader = self.spool.reader()
        segments = set()
        for id_, queued in self.model.queued.items():
            record = self.spool.message(id_)
            assert record is not None
            assert (record.due_ms, record.attempts) == (queued.due_ms, queued.attempts)
            assert bool(record.flags & MAYBE_SENT) == queued.maybe_sent
            assert reader.body(record.content) == queued.body
            segments.add(record.content[0])
        reader.close()
        # drained segments go at once, but for the one that is being written and the one sealed last
        left = {int(file.stem) for file in (self.path() / "bodies").glob("*.seg")}
        assert all(segment_path(self.path() / "bodies", number).exists() for number in segments)
        assert len(left - segments) <= 2

    @invariant()
    def the_last_word_on_every_id_is_known(self) -> None:
        for id_, kind in list(self.model.final.items())[-20:]:
            status = self.spool.status(id_)
            assert status is not None
            assert status["state"] == str(kind)
        for id_ in list(self.model.queued)[:20]:
            status = self.spool.status(id_)
            assert status is not None
            assert status["state"] in ("queued", "deferred")


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=25, stateful_step_count=40, deadline=None)
