"""Options stay with their recipient: through accept, a deferral, and a restart."""

from pathlib import Path

from engine.spool.batches import AcceptBatch, AcceptItem, Settlement
from engine.spool.store import Spool, SpoolOptions
from engine.values.clock import SystemClock
from engine.values.options import Flag, Options
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply

BODY = b"Subject: x\r\n\r\nhello\r\n"


def open_spool(path: Path) -> Spool:
    return Spool.open(
        path, region_number=1, clock=SystemClock(), options=SpoolOptions(map_size=16 << 20, min_free=0)
    )


def test_options_outlive_a_deferral_and_a_restart(tmp_path: Path) -> None:
    wish = Options(flags=Flag.VERP, ret="FULL", envid="e 1", notify=2, orcpt="rfc822;x@example.com")
    spool = open_spool(tmp_path)
    now_ms = SystemClock().wall_ms()
    item = AcceptItem(
        sender="a@example.com",
        recipients=("b@example.net", "c@example.net"),
        domains=("example.net",) * 2,
        stream=0,
        tenant="default",
        campaign="",
        offset=0,
        length=len(BODY),
        due_ms=now_ms,
        expires_ms=now_ms + 3_600_000,
        options=(wish, None),
    )
    accepted = spool.accept(AcceptBatch(b"k" * 16, [item], BODY)).result(5)
    first, second = accepted.ids[0]
    outcome = Outcome(
        first, OutcomeKind.DEFERRED, Scope.RECIPIENT, Reply(451, "4.7.1", "later"), 0, "mx", now_ms, False
    )
    settled = spool.settle([Settlement(accepted.due_keys[0], outcome, 0, now_ms + 60_000)]).result(5)
    assert settled.stale == 0
    spool.close()
    spool = open_spool(tmp_path)
    deferred, waiting = spool.message(first), spool.message(second)
    assert deferred is not None
    assert waiting is not None
    assert (deferred.attempts, deferred.options) == (1, wish)
    assert waiting.options is None
    spool.close()
