"""The due index against a dictionary: the same reads after any groups of changes, undone groups and openings."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.spool.due_blocks import ENTRY_SIZE, entries_of, pack_columns, unpack_columns
from engine.spool.due_index import NEVER_MS, DueDraft, DueIndex
from engine.spool.environment import Environment
from engine.spool.records import due_key, u48

JOURNAL = 40  # many rounds


class World:
    """An index on disk and what must be in it."""

    def __init__(self, path: Path) -> None:
        self.env = Environment(path, map_size=16 << 20)
        self.model: dict[bytes, int] = {}
        self.open()

    def open(self) -> None:
        self.index = DueIndex(self.env, JOURNAL)
        with self.env.read() as txn:
            self.index.load(txn)

    def group(self, what: list[tuple[str, list[bytes]]], *, is_undone: bool) -> None:
        model = dict(self.model)
        draft = DueDraft()
        txn = self.env.begin_write()
        for word, some in what:
            fresh = [key for key in some if key not in self.model and key not in model]
            if word == "add":
                draft.add_new((key, u48(int.from_bytes(key[8:10], "big"))) for key in fresh)
                for key in some:
                    model[key] = int.from_bytes(key[8:10], "big")
                    if key not in fresh:
                        draft.add(key, u48(model[key]))
            else:
                for key in some:
                    assert self.index.is_due(draft, txn, key) == (key in model)
                    model.pop(key, None)
                    draft.remove(key)
        self.index.write_out(draft, txn)
        if is_undone:
            txn.abort()
            return
        txn.commit()
        self.index.end_group(draft)
        self.model = model

    def check(self) -> None:
        rows = sorted(self.model.items())
        assert self.index.rows(b"", 10_000) == rows
        assert self.index.rows(b"", 3) == rows[:3]
        for key, _ in rows[:: max(1, len(rows) // 5)]:
            assert self.index.rows(key, 4) == [row for row in rows if row[0] > key][:4]
        numbers = {int.from_bytes(key[:4], "big") for key in self.model}
        first = {
            number: min(k for k in self.model if k[:4] == number.to_bytes(4, "big")) for number in numbers
        }
        assert list(self.index.waiting()) == [
            (number, int.from_bytes(first[number][4:10], "big")) for number in sorted(numbers)
        ]
        for number in (1, 2, 4):
            own = [row for row in rows if row[0][:4] == number.to_bytes(4, "big")]
            assert self.index.scan(number, None, NEVER_MS, 10_000) == own
            assert self.index.scan(number, None, 2, 5) == [row for row in own if row[0][4:10] <= u48(2)][:5]
            if own:
                middle = own[len(own) // 2][0]
                assert self.index.scan(number, middle, NEVER_MS, 10_000) == own[len(own) // 2 + 1 :]
                before = (int.from_bytes(middle, "big") - 1).to_bytes(18, "big")
                assert self.index.first_after(number, before) == int.from_bytes(middle[4:10], "big")
            assert self.index.first_of([number]) == {
                number: int.from_bytes(own[0][0][4:10], "big") if own else None
            }
        with self.env.read() as txn, txn.cursor(db=self.env.db["due"]) as cursor:
            assert self.index.entries(txn) == len(rows)
            is_due = self.index.finder(cursor)
            assert all(is_due(key) for key in self.model)
            assert not any(is_due(due_key(3, 13, id_)) for id_ in (1, 200))

    def check_blocks(self) -> None:
        """Blocks are in order, do not overlap, and begin with what their keys say."""
        last = b""
        with self.env.read() as txn:
            for key, value in txn.cursor(db=self.env.db["due"]):
                key = bytes(key)
                entries = entries_of(key, bytes(value))
                places = [key[:4] + entry[:14] for entry in entries]
                assert places[0] == key > last
                assert places == sorted(set(places))
                last = places[-1]


def some_keys(rng: random.Random) -> list[bytes]:
    """A few due keys out of a hundred, or a run of them that fills blocks."""
    if rng.random() < 0.1:
        queue, due_ms, first = rng.choice([1, 2]), rng.randrange(1, 3), rng.randrange(1, 300)
        return [due_key(queue, due_ms, first + number) for number in range(rng.randrange(1, 150))]
    queues = [1, 2, 3, 0xFFFFFFFE, 0xFFFFFFFF]
    return [
        due_key(rng.choice(queues), rng.randrange(1, 4), rng.randrange(1, 8)) for _ in range(rng.randrange(5))
    ]


@pytest.mark.parametrize("seed", range(4))
def test_the_index_reads_like_a_sorted_dictionary(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if seed % 2:  # queues are merged in parts
        monkeypatch.setattr("engine.spool.due_index.AT_ONCE", seed)
    rng = random.Random(seed)
    one = World(tmp_path)
    for number in range(250):
        what = [(rng.choice(["add", "remove"]), some_keys(rng)) for _ in range(rng.randrange(4))]
        one.group(what, is_undone=rng.random() < 0.1)
        assert one.index.rows(b"", 10_000) == sorted(one.model.items())
        in_memory = sum(map(len, one.index._queues.values()))
        assert in_memory <= 2 * len(one.index._changes) + len(one.index._queues)
        if rng.random() < 0.05:
            one.open()
        if number % 25 == 0:
            one.check()
    one.check()
    one.check_blocks()
    with one.env.read() as txn:
        assert txn.stat(one.env.db["due_journal"])["entries"] < 100
    one.env.close()


@settings(deadline=None)
@given(
    st.integers(1, 24).flatmap(
        lambda width: st.tuples(
            st.just(width), st.lists(st.binary(min_size=width, max_size=width), min_size=1, max_size=100)
        )
    )
)
def test_columns_are_unpacked_as_they_were(case: tuple[int, list[bytes]]) -> None:
    width, rows = case
    assert unpack_columns(pack_columns(b"".join(rows), width), width) == b"".join(rows)


@settings(deadline=None)
@given(st.binary(max_size=80))
def test_arbitrary_bytes_are_a_block_or_damaged(value: bytes) -> None:
    assert all(len(entry) == ENTRY_SIZE for entry in entries_of(bytes(18), value))
