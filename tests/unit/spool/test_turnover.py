"""A spool whose pages have been used again and again: its commits still write few pages, and those in runs."""

import dataclasses
import random
from pathlib import Path

import pytest

from engine.spool.environment import Environment
from engine.spool.store import Spool
from tests.support.spools import CAMPAIGN, PATIENCE_S, assert_conserved, chunk, due, open_spool, settlement

DOMAINS = 400
CHUNKS = 8


def written(what: str = "syscw") -> int:
    """Write calls of this process so far, or (`wchar`) bytes."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields[what])


def turn_over(spool: Spool, campaign_no: int, rounds: int) -> int:
    """Accept and deliver chunks for many domains; returns the write calls of the last round."""
    rng = random.Random(1)
    before = 0
    for turn in range(rounds):
        before = written()
        for number in range(CHUNKS):
            domains = [f"d{n}.example.org" for n in range(DOMAINS)]
            made = dataclasses.replace(chunk(campaign_no, turn * CHUNKS + number, DOMAINS), domains=domains)
            spool.accept_chunk(made).result(PATIENCE_S)
        keys = due(spool)
        rng.shuffle(keys)
        for start in range(0, len(keys), 200):
            spool.settle([settlement(key) for key in keys[start : start + 200]]).result(PATIENCE_S)
        spool.trim_outbox(1 << 60).result(PATIENCE_S)
    return written() - before


def test_scattered_changes_are_written_in_runs_of_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []
    for name in ("runs", "singles"):
        if name == "singles":
            monkeypatch.setattr(Environment, "gather_free_pages", lambda self, txn: None)
        spool = open_spool(tmp_path / name)
        counts.append(turn_over(spool, spool.put_campaign(CAMPAIGN).result(PATIENCE_S), 4))
        spool.close()
        assert_conserved(tmp_path / name, delivered=4 * CHUNKS * DOMAINS)
    runs, singles = counts
    assert runs * 2 < singles


def test_a_run_of_pages_leaves_nothing_behind(tmp_path: Path) -> None:
    env = Environment(tmp_path, map_size=4 << 20)
    with env.write() as txn:
        env.gather_free_pages(txn)
        assert [bytes(key) for key in txn.cursor(env.db["meta"]).iternext(values=False)] == []
    env.close()


def test_no_run_is_looked_for_in_a_map_that_is_nearly_full(tmp_path: Path) -> None:
    env = Environment(tmp_path, map_size=4 << 20)
    with env.write() as txn:
        txn.put(b"filler", bytes(3_800_000), db=env.db["state"])
    with env.write() as txn:
        env.gather_free_pages(txn)  # there is no room for one
        txn.put(b"more", b"1", db=env.db["state"])
    env.close()
