"""The names of spool queues that nothing refers to any more are removed, and no others."""

from pathlib import Path

import pytest

from engine.failover.messages import Copy, Drop
from engine.failover.store import Accept, Adopt, Apply, GiveUp, Release, SaveEpoch
from engine.spool.handover import MakeOffer, SettleOffer
from engine.spool.store import Spool
from tests.support.clock import ManualClock
from tests.support.spools import PATIENCE_S, accept, assert_conserved, batch, id_of, open_spool, settlement

KEEP_MS = 600_000
NUMBERS = {"eu": 1, "us": 2}


def open_forgetful(path: Path, clock: ManualClock) -> Spool:
    return open_spool(path, clock, keep_names_ms=KEEP_MS, forget_every=1)


def groups(spool: Spool, count: int) -> None:
    for _ in range(count):
        spool.put_state("nothing", b"").result(PATIENCE_S)


def gather(spool: Spool, clock: ManualClock) -> None:
    """The round before ends, and one begins with what is there now."""
    clock.advance(KEEP_MS / 1000 + 1)
    groups(spool, 4)


def a_round(spool: Spool, clock: ManualClock) -> None:
    """All that can be forgotten is."""
    for _ in range(3):
        clock.advance(KEEP_MS / 1000 + 1)
        groups(spool, 8)


def names(spool: Spool) -> dict[str, int]:
    return {domain: number for number, domain, *_ in spool.queues()}


def rows(spool: Spool) -> tuple[int, int]:
    with spool._env.read() as txn:
        return tuple(txn.stat(spool._env.db[name])["entries"] for name in ("queues", "queue_names"))  # type: ignore[return-value]


def deliver(spool: Spool, keys: list[bytes]) -> None:
    spool.settle([settlement(key) for key in keys]).result(PATIENCE_S)


def test_a_queue_whose_mail_has_left_is_forgotten_and_its_number_is_not_given_again(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = open_forgetful(tmp_path, clock)
    [kept] = accept(spool, batch(domain="kept.example"))
    for n in range(100):
        deliver(spool, accept(spool, batch(domain=f"d{n}.example")))
    assert len(names(spool)) == 101
    a_round(spool, clock)
    assert list(names(spool)) == ["kept.example"]
    assert rows(spool) == (1, 1)
    [key] = accept(spool, batch(domain="d5.example"))
    assert int.from_bytes(key[:4], "big") == 102
    assert spool.queue(102)[0] == "d5.example"
    a_round(spool, clock)
    assert len(names(spool)) == 2
    deliver(spool, [kept, key])
    a_round(spool, clock)
    assert rows(spool) == (0, 0)
    spool.close()
    spool = open_forgetful(tmp_path, clock)
    [key] = accept(spool, batch(domain="d5.example"))
    assert int.from_bytes(key[:4], "big") == 103
    spool.close()
    assert_conserved(tmp_path, delivered=102, queued=1)


def test_what_is_used_while_the_round_goes_on_stays(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = open_forgetful(tmp_path, clock)
    for domain in ("a.example", "b.example"):
        deliver(spool, accept(spool, batch(domain=domain)))
    gather(spool, clock)
    clock.advance(KEEP_MS / 1000 + 1)
    deliver(spool, accept(spool, batch(domain="a.example")))  # came and went
    groups(spool, 8)
    assert list(names(spool)) == ["a.example"]
    spool.close()


def test_nothing_is_forgotten_before_its_time(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = open_forgetful(tmp_path, clock)
    deliver(spool, accept(spool, batch()))
    gather(spool, clock)
    clock.advance(KEEP_MS / 1000 - 1)
    groups(spool, 20)
    assert len(names(spool)) == 1
    spool.close()


def test_a_group_that_is_undone_has_forgotten_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = ManualClock()
    spool = open_forgetful(tmp_path, clock)
    deliver(spool, accept(spool, batch()))
    gather(spool, clock)
    clock.advance(KEEP_MS / 1000 + 1)
    groups(spool, 2)
    sync = spool._segment.sync

    def fails() -> None:
        raise ValueError("undone")

    monkeypatch.setattr(spool._segment, "sync", fails)
    with pytest.raises(ValueError, match="undone"):
        spool.put_state("nothing", b"").result(PATIENCE_S)
    assert len(names(spool)) == 1
    monkeypatch.setattr(spool._segment, "sync", sync)
    [key] = accept(spool, batch())
    assert int.from_bytes(key[:4], "big") == 1
    groups(spool, 4)
    assert spool.queue(1)[0] == "example.net"
    spool.close()


def test_what_is_offered_to_a_peer_keeps_its_name_until_that_is_decided(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = open_forgetful(tmp_path, clock)
    keys = accept(spool, batch(recipients=2))
    spans = ((id_of(keys[0]), 2),)
    offered = spool.hand_over(MakeOffer(1, "us", b"d" * 8, spans), NUMBERS).result(PATIENCE_S)
    assert offered == spans
    a_round(spool, clock)
    assert len(names(spool)) == 1
    settled = spool.hand_over(SettleOffer(1, ((id_of(keys[0]), 1),)), NUMBERS).result(PATIENCE_S)
    assert settled.due_keys == [keys[1]]
    a_round(spool, clock)
    assert len(names(spool)) == 1
    deliver(spool, [keys[1]])
    a_round(spool, clock)
    assert rows(spool) == (0, 0)
    spool.close()


def test_what_waits_for_its_copy_keeps_its_name(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = open_forgetful(tmp_path, clock)
    mail = batch()
    [accepted, _] = spool.failover(Accept(mail.batch_key, mail), NUMBERS).result(PATIENCE_S)
    a_round(spool, clock)
    assert len(names(spool)) == 1
    keys = spool.failover(Release(mail.batch_key, accepted.spans), NUMBERS).result(PATIENCE_S)
    deliver(spool, keys)
    a_round(spool, clock)
    assert rows(spool) == (0, 0)
    spool.close()


def copied(tmp_path: Path, clock: ManualClock) -> tuple[Spool, Spool, list[bytes]]:
    """A spool with a message, and one with its copy."""
    own = open_forgetful(tmp_path / "own", clock)
    other = open_spool(tmp_path / "other", clock, region=2, keep_names_ms=KEEP_MS, forget_every=1)
    other.failover(SaveEpoch(1), NUMBERS).result(PATIENCE_S)
    keys = accept(own, batch())
    spans, payload = own.exporter().messages(((id_of(keys[0]), 1),), [])
    apply(other, Copy(spans, payload, b"k" * 16))
    return own, other, keys


def apply(spool: Spool, entry: Copy | Drop) -> None:
    assert spool.failover(Apply("eu", 1, 1, 0, entry), NUMBERS).result(PATIENCE_S) == ""


def test_a_copy_for_another_region_keeps_its_name(tmp_path: Path) -> None:
    clock = ManualClock()
    own, other, keys = copied(tmp_path, clock)
    a_round(other, clock)
    assert len(names(other)) == 1
    apply(other, Drop(((id_of(keys[0]), 1),)))
    a_round(other, clock)
    assert rows(other) == (0, 0)
    own.close()
    other.close()


def test_a_copy_that_is_mail_while_copies_are_looked_at_keeps_its_name(tmp_path: Path) -> None:
    clock = ManualClock()
    own, other, keys = copied(tmp_path, clock)
    gather(other, clock)
    clock.advance(KEEP_MS / 1000 + 1)
    adopted = other.failover(Adopt("eu", 2, 1), NUMBERS).result(PATIENCE_S)
    assert adopted.spans == ((id_of(keys[0]), 1),)
    other.failover(GiveUp(adopted.spans, "eu", is_standby=True), NUMBERS).result(PATIENCE_S)
    groups(other, 8)
    assert len(names(other)) == 1
    own.close()
    other.close()


def test_mail_that_comes_during_a_round_and_is_not_due_yet_keeps_its_name(tmp_path: Path) -> None:
    clock = ManualClock()
    spool = open_forgetful(tmp_path, clock)
    deliver(spool, accept(spool, batch()))
    gather(spool, clock)
    clock.advance(KEEP_MS / 1000 + 1)
    mail = batch()
    [accepted, _] = spool.failover(Accept(mail.batch_key, mail), NUMBERS).result(PATIENCE_S)
    groups(spool, 8)
    assert list(names(spool).values()) == [1]
    assert len(spool.failover(Release(mail.batch_key, accepted.spans), NUMBERS).result(PATIENCE_S)) == 1
    spool.close()
    assert_conserved(tmp_path, delivered=1, queued=1)
