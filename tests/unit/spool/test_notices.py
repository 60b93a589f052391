"""Notifications that are owed: by which outcome, kept over a restart, and with the body that they return."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.spool.notices import DELAY_MS, Action
from engine.spool.store import Spool
from engine.values.options import Notify, Options
from engine.values.outcome import OutcomeKind
from engine.values.suppression import Reason, make
from tests.support.spools import (
    NOW_MS,
    PATIENCE_S,
    accept,
    assert_conserved,
    batch,
    id_of,
    letter,
    open_spool,
    packed,
    settlement,
)


def send(spool: Spool, notify: int, sender: str = "sender@example.com", body: bytes = letter(1)) -> bytes:
    one = batch(letters=[body])
    item = one.items[0]._replace(options=(Options(notify=notify, ret="FULL"),), sender=sender)
    (key,) = accept(spool, replace(one, items=[item]))
    return key


def settle(spool: Spool, key: bytes, kind: OutcomeKind, **fields: Any) -> bytes:
    result = spool.settle([settlement(key, kind, **fields)]).result(PATIENCE_S)
    return next(iter(result.due_keys), b"")


@pytest.mark.parametrize(
    ("notify", "kind", "late", "action"),
    [
        (Notify.SUCCESS | Notify.DELAY, OutcomeKind.DELIVERED, True, None),
        (Notify.FAILURE, OutcomeKind.BOUNCED, False, Action.FAILED),
        (Notify.FAILURE | Notify.DELAY, OutcomeKind.EXPIRED, False, Action.FAILED),
        (Notify.FAILURE, OutcomeKind.DELIVERED, False, None),
        (Notify.FAILURE, OutcomeKind.DEFERRED, True, None),
        (Notify.DELAY, OutcomeKind.DEFERRED, True, Action.DELAYED),
        (Notify.DELAY, OutcomeKind.DEFERRED, False, None),
        (Notify.DELAY, OutcomeKind.BOUNCED, True, None),
        (Notify.NEVER, OutcomeKind.BOUNCED, True, None),
        (0, OutcomeKind.BOUNCED, True, None),
    ],
)
def test_which_outcome_owes_a_notification(
    tmp_path: Path, notify: int, kind: OutcomeKind, late: bool, action: Action | None
) -> None:
    spool = open_spool(tmp_path)
    key = send(spool, notify)
    settle(spool, key, kind, code=550, at_ms=NOW_MS + (DELAY_MS if late else 0))
    assert [notice.action for notice in spool.notices(10)] == ([] if action is None else [action])
    spool.close()


@pytest.mark.parametrize(
    ("notify", "sender", "action"),
    [
        (Notify.SUCCESS, "a@example.com", Action.RELAYED),
        (Notify.SUCCESS | Notify.FAILURE | Notify.DELAY, "a@example.com", Action.RELAYED),
        (Notify.SUCCESS, "", None),
        (Notify.FAILURE | Notify.DELAY, "a@example.com", None),
        (Notify.NEVER, "a@example.com", None),
        (0, "a@example.com", None),
    ],
)
def test_what_was_relayed_is_told(tmp_path: Path, notify: int, sender: str, action: Action | None) -> None:
    spool = open_spool(tmp_path)
    key = send(spool, notify, sender)
    settle(spool, key, OutcomeKind.DELIVERED, code=250, is_relayed=True)
    assert [notice.action for notice in spool.notices(10)] == ([] if action is None else [action])
    spool.close()
    assert_conserved(tmp_path, delivered=1)


def test_the_null_sender_is_owed_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    settle(spool, send(spool, Notify.FAILURE, sender=""), OutcomeKind.BOUNCED, code=550)
    assert spool.notices(10) == []
    spool.close()


def test_mail_that_is_stopped_at_dispatch_is_a_failure(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    key = send(spool, Notify.FAILURE)
    row = make("u0.0@example.net", reason=Reason.MANUAL, at_ms=NOW_MS)
    spool.suppress([row], log=True).result(PATIENCE_S)
    assert spool.dispatch(1, packed([id_of(key)]), {}).result(PATIENCE_S) == [id_of(key)]
    (notice,) = spool.notices(10)
    assert (notice.action, notice.reply.enhanced) == (Action.FAILED, "5.7.1")
    assert bytes(spool.reader().body(notice.content)) == letter(1)
    spool.close()
    assert_conserved(tmp_path, suppressed=1)


def test_a_delay_is_told_once(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    key = send(spool, Notify.DELAY)
    key = settle(spool, key, OutcomeKind.DEFERRED, at_ms=NOW_MS + DELAY_MS)
    (notice,) = spool.notices(10)
    spool.notice_done(notice.key).result(PATIENCE_S)
    spool.close()
    spool = open_spool(tmp_path)
    settle(spool, key, OutcomeKind.DEFERRED, at_ms=NOW_MS + 2 * DELAY_MS)
    assert spool.notices(10) == []
    spool.close()


def test_the_body_stays_until_the_notification_is_done(tmp_path: Path) -> None:
    """Its segment is sealed and holds nothing else that is queued: only the row keeps it."""
    spool = open_spool(tmp_path, segment_size=1000)
    body = letter(1, 2000)
    settle(spool, send(spool, Notify.FAILURE, body=body), OutcomeKind.BOUNCED, code=550)
    accept(spool, batch(letters=[letter(2, 2000)]))  # another segment
    spool.close()
    spool = open_spool(tmp_path, segment_size=1000)
    (notice,) = spool.notices(10)
    assert bytes(spool.reader().body(notice.content)) == body
    assert len(list((tmp_path / "bodies").glob("*.seg"))) == 2
    spool.notice_done(notice.key).result(PATIENCE_S)
    spool.notice_done(notice.key).result(PATIENCE_S)  # twice does nothing
    assert len(list((tmp_path / "bodies").glob("*.seg"))) == 1
    spool.close()
    assert_conserved(tmp_path, bounced=1, queued=1)
