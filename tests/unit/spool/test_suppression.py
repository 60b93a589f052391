"""The suppression list in the spool: at accept, at dispatch, by a bounce, over a restart; conservation holds."""

from pathlib import Path
from typing import Any

from engine.spool.store import Spool
from engine.values.outcome import OutcomeKind
from engine.values.stream import Stream
from engine.values.suppression import ANY_STREAM, Level, Reason, Suppression, make
from tests.support.spools import (
    CAMPAIGN,
    NOW_MS,
    PATIENCE_S,
    Gate,
    accept,
    as_one_group,
    assert_conserved,
    batch,
    chunk,
    due,
    id_of,
    letter,
    open_spool,
    packed,
    settlement,
)


def row(address: str, *, at_ms: int = NOW_MS, reason: Reason = Reason.MANUAL, **fields: Any) -> Suppression:
    return make(address, at_ms=at_ms, reason=reason, **fields)


def put(spool: Spool, *rows: Suppression, log: bool = True) -> int:
    return spool.suppress(rows, log=log).result(PATIENCE_S)


def addresses(spool: Spool) -> list[str]:
    _, rows = spool.suppressions(b"", 1000)
    return sorted(row.address for row in rows if row.is_live)


def test_a_suppressed_recipient_gets_an_id_and_is_not_sent(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, row("U0.1@example.net"), row("n0.2@example.org"))
    result = spool.accept(batch(b"k" * 16, letters=[letter(0), letter(1)], recipients=3)).result(PATIENCE_S)
    stopped = result.ids[0][1]
    assert [len(ids) for ids in result.ids] == [3, 3]
    assert list(result.suppressed) == [stopped]
    assert stopped not in [id_of(key) for key in result.due_keys]
    assert (spool.status(stopped) or {})["state"] == "suppressed"
    again = spool.accept(batch(b"k" * 16)).result(PATIENCE_S)
    assert again.repeated
    assert list(again.suppressed) == [stopped]
    number = spool.put_campaign(CAMPAIGN).result(PATIENCE_S)
    part = spool.accept_chunk(chunk(number, 0, 4)).result(PATIENCE_S)
    assert list(part.suppressed) == [part.ids[2][0]]
    assert len(part.due_keys) == 3
    assert list(spool.accept_chunk(chunk(number, 0, 4)).result(PATIENCE_S).suppressed) == [part.ids[2][0]]
    events = [event for _, events in spool.read_outbox(10) for event in events]
    assert [(event[1], event[2], event[10]) for event in events] == [
        (OutcomeKind.SUPPRESSED, stopped, "u0.1@example.net"),
        (OutcomeKind.SUPPRESSED, part.ids[2][0], "n0.2@example.org"),
    ]
    spool.close()
    assert_conserved(tmp_path, queued=8, suppressed=2)


def test_the_case_of_a_local_part_does_not_matter(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, row("ua.0@example.net"))
    first = spool.accept(batch(keys=["A"])).result(PATIENCE_S)  # to uA.0@
    assert list(first.suppressed) == list(first.ids[0])
    spool.close()


def test_who_was_taken_off_is_written_to_again(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, row("ua.0@example.net"), row("ub.0@example.net"))
    put(spool, row("ua.0@example.net", at_ms=NOW_MS + 1, reason=Reason.REMOVED))
    result = spool.accept(batch(letters=[letter(0), letter(1)], keys=["a", "b"])).result(PATIENCE_S)
    assert list(result.suppressed) == list(result.ids[1])
    assert [id_of(key) for key in result.due_keys] == list(result.ids[0])
    spool.close()


def test_an_item_repeated_by_its_key_tells_what_became_of_it(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, row("ua.0@example.net"))
    first = spool.accept(batch(keys=["a"])).result(PATIENCE_S)
    second = spool.accept(batch(letters=[letter(0), letter(1)], keys=["a", "b"])).result(PATIENCE_S)
    assert list(second.ids[0]) == list(first.ids[0])
    assert list(second.suppressed) == list(first.ids[0])
    spool.close()
    assert_conserved(tmp_path, queued=1, suppressed=1)


def test_whose_mail_a_list_stops(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(
        spool,
        row("u0.0@example.net", tenant="acme", stream=Stream.TRANSACTIONAL),
        row("u0.1@example.net", tenant="acme", stream=Stream.MARKETING),
        row("u0.2@example.net", tenant="acme"),
        row("u0.3@example.net", tenant="other"),
        row("u0.4@example.net"),
    )
    result = spool.accept(batch(recipients=6, tenant="acme")).result(PATIENCE_S)  # of stream 0, transactional
    assert [result.ids[0].index(id_) for id_ in result.suppressed] == [0, 2, 4]
    spool.close()


def test_mail_that_was_queued_before_is_stopped_at_dispatch(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    keys = accept(spool, batch(letters=[letter(0)], recipients=3))
    ids = [id_of(key) for key in keys]
    assert spool.dispatch(1, packed(ids[:1]), {}).result(PATIENCE_S) == []
    put(spool, row("u0.0@example.net"), row("u0.1@example.net"))
    assert spool.dispatch(2, packed(ids[1:]), {"daily/1/x": 7}).result(PATIENCE_S) == [ids[1]]
    assert spool.get_state("daily/1/x") is not None
    spool.settle([settlement(keys[0], batch_no=1), settlement(keys[2], batch_no=2)]).result(PATIENCE_S)
    spool.close()
    assert_conserved(tmp_path, delivered=2, suppressed=1)


def test_a_batch_that_is_stopped_as_a_whole_leaves_nothing_in_flight(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    (key,) = accept(spool, batch())
    put(spool, row("u0.0@example.net"))
    assert spool.dispatch(1, packed([id_of(key)]), {}).result(PATIENCE_S) == [id_of(key)]
    spool.close()
    spool = open_spool(tmp_path)
    assert due(spool) == []
    spool.close()
    assert_conserved(tmp_path, suppressed=1)


def test_after_a_restart_what_was_queued_is_still_looked_up(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    (key,) = accept(spool, batch())
    put(spool, row("u0.0@example.net"))
    spool.close()
    spool = open_spool(tmp_path)
    assert spool.dispatch(1, packed([id_of(key)]), {}).result(PATIENCE_S) == [id_of(key)]
    spool.close()


def test_a_bounce_and_its_suppression_are_one_transaction(tmp_path: Path) -> None:
    """Seen from the commit's side: one group, and the bounce is settled and its recipient listed."""
    spool = open_spool(tmp_path)
    first, second = accept(spool, batch(recipients=2, tenant="acme"))
    bounce = settlement(first, OutcomeKind.BOUNCED, code=550)._replace(suppress=Level.TENANT, hard=True)
    groups = spool.sizes()["groups"]
    spool.settle([bounce, settlement(second, OutcomeKind.BOUNCED, code=550)]).result(PATIENCE_S)
    assert spool.sizes()["groups"] <= groups + 1
    _, (entry,) = spool.suppressions(b"", 10)
    assert entry == Suppression(
        "u0.0@example.net", "acme", ANY_STREAM, Reason.HARD_BOUNCE, NOW_MS + 5, id_of(first), "550 so it said"
    )
    again = spool.accept(batch(recipients=2, tenant="acme")).result(PATIENCE_S)
    assert list(again.suppressed) == [again.ids[0][0]]
    spool.close()
    assert_conserved(tmp_path, bounced=2, queued=1, suppressed=1)


def test_the_same_group_sees_a_suppression(tmp_path: Path) -> None:
    gate = Gate()
    spool = open_spool(tmp_path, step=gate)
    _, result = as_one_group(
        spool,
        gate,
        lambda: spool.suppress([row("u0.0@example.net")], log=True),
        lambda: spool.accept(batch()),
    )
    assert len(result.result(PATIENCE_S).suppressed) == 1
    spool.close()


def test_the_first_reason_stays_and_a_removal_is_kept(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    assert put(spool, row("a@example.net", reason=Reason.COMPLAINT)) == 1
    assert put(spool, row("A@EXAMPLE.net", reason=Reason.MANUAL, at_ms=NOW_MS + 1)) == 0
    assert put(spool, row("b@example.net", reason=Reason.REMOVED)) == 0
    assert spool.suppressions_of("a@example.net")[0].reason is Reason.COMPLAINT
    # by a clock that runs behind
    assert put(spool, row("a@example.net", reason=Reason.REMOVED, at_ms=NOW_MS - 5)) == 1
    assert addresses(spool) == []
    # what another region says of an earlier time does not bring it back
    assert put(spool, row("a@example.net", reason=Reason.HARD_BOUNCE, at_ms=NOW_MS - 9), log=False) == 0
    assert addresses(spool) == []
    assert put(spool, row("a@example.net", at_ms=NOW_MS - 9)) == 1
    assert addresses(spool) == ["a@example.net"]
    spool.close()


def test_the_log_names_what_changed_here_and_can_be_trimmed(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, row("a@example.net"), row("b@example.net"))
    put(spool, row("other@example.net"), log=False)
    number, rows = spool.suppression_log(0, 10)
    assert [r.address for r in rows] == ["a@example.net", "b@example.net"]
    assert spool.suppression_log(number, 10) == (number, [])
    spool.trim_suppression_log(number).result(PATIENCE_S)
    put(spool, row("c@example.net"))
    assert spool.suppression_log(0, 10)[1][-1].address == "c@example.net"
    assert spool.suppression_log(number, 10)[0] == number + 1
    spool.close()


def test_pages_cover_the_whole_list(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    put(spool, *(row(f"u{n}@example.net") for n in range(25)))
    found: list[str] = []
    after = b""
    while True:
        after, rows = spool.suppressions(after, 10)
        found += [r.address for r in rows]
        if not after:
            break
    assert sorted(found) == sorted(f"u{n}@example.net" for n in range(25))
    spool.close()
