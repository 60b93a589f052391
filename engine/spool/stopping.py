"""Messages that are not sent because of the suppression list, and recipients who get onto it by a bounce."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from engine.spool import notices
from engine.spool.batches import Settlement
from engine.spool.draft import Draft
from engine.spool.records import DamagedRecord, decode_record, due_key
from engine.spool.suppressions import Lists
from engine.values.ids import SEQ_BITS, SEQ_MASK
from engine.values.outcome import OutcomeKind
from engine.values.reply import Reply
from engine.values.suppression import MAX_NOTE, Reason, Suppression, compared_text, list_of

REFUSED = Reply(0, "5.7.1", "the recipient is on a suppression list")


class Stopped(NamedTuple):
    """A message that is not sent because of a row of the suppression list."""

    id: int
    recipient: str
    stream: int
    tenant: str
    campaign: str
    row: Suppression
    flags: int = 0
    attempts: int = 0


def stop(draft: Draft, one: Stopped, at_ms: int) -> None:
    draft.finish(one.id, OutcomeKind.SUPPRESSED)
    where = "all" if not one.row.tenant else "the tenant's" if one.row.stream < 0 else "the stream's"
    draft.event(
        (
            at_ms,
            int(OutcomeKind.SUPPRESSED),
            one.id,
            0,
            "",
            f"on {where} suppression list: {one.row.reason}",
            "",
            0xFFFF,
            one.flags,
            one.attempts,
            one.recipient,
            one.stream,
            one.tenant,
            one.campaign,
            "",
            False,
            "",
        )
    )


def stop_queued(draft: Draft, ids: Sequence[int], now_ms: int, queue_of: Any) -> list[int]:
    """Settle those of these ids whose recipients are suppressed. Only ids older than the last change are looked up."""
    lists = Lists(draft.env, draft.txn)
    stopped: list[int] = []
    if lists.is_empty:
        return stopped
    db = draft.env.db
    region = draft.totals.region
    for id_ in ids:
        if id_ >> SEQ_BITS == region and id_ & SEQ_MASK >= draft.suppressed_before:
            continue
        id_key = id_.to_bytes(8, "big")
        stored = draft.txn.get(id_key, db=db["messages"])
        if stored is None:
            continue
        try:
            record = decode_record(id_, stored)
            _, stream, tenant, campaign = queue_of(draft.txn, record.queue)
        except DamagedRecord:
            continue  # the pool meets it too, and says so
        row = lists.find(record.recipient, tenant, stream)
        if row is None:
            continue
        draft.due.remove(due_key(record.queue, record.due_ms, id_))
        draft.txn.delete(id_key, db=db["messages"])
        if len(record.content) == 4:
            draft.live(record.content[0], -1)
        action = notices.owed(record, OutcomeKind.SUPPRESSED, now_ms)
        if action is not None:
            notices.put(draft, action, record, REFUSED, "", now_ms, stream=stream, tenant=tenant)
        one = Stopped(id_, record.recipient, stream, tenant, campaign, row, record.flags, record.attempts)
        stop(draft, one, now_ms)
        stopped.append(id_)
    return stopped


def hard_bounce(settlement: Settlement, recipient: str, tenant: str, stream: int) -> Suppression:
    outcome, level = settlement.outcome, settlement.suppress
    assert level is not None
    said = "".join([c if c.isprintable() else " " for c in str(outcome.reply)])[:MAX_NOTE]
    listed_tenant, listed_stream = list_of(level, tenant, stream)
    return Suppression(
        compared_text(recipient),
        listed_tenant,
        listed_stream,
        Reason.HARD_BOUNCE,
        outcome.at_ms,
        outcome.id,
        said,
    )
