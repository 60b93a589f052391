"""What becomes of queued messages: on the wire, settled, cancelled; functions as in engine/spool/accepting.py.

inflight  epoch (4) batch number (8), big endian -> unix milliseconds (6), ids on the wire (8 each, little endian)
"""

import logging
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from engine.spool import notices, sent, suppressions
from engine.spool.batches import (
    Settlement,
    SettleResult,
)
from engine.spool.draft import Draft
from engine.spool.queue_names import UNNAMED, QueueName
from engine.spool.records import (
    MAYBE_SENT,
    DamagedRecord,
    Record,
    decode_record,
    due_key,
    encode_record,
    u48,
)
from engine.spool.stopping import hard_bounce, stop_queued
from engine.values.outcome import FINAL_KINDS, OutcomeKind
from engine.values.suppression import Suppression

log = logging.getLogger(__name__)

ID_LE = struct.Struct("<Q")
DAMAGED_WAIT_MS = 3_600_000
NEVER = b"\xff" * 6  # as an expiry: what a damaged record says of its own is not known


def settle(
    draft: Draft, settlements: Sequence[Settlement], queue_of: Any
) -> tuple[SettleResult, dict[int, list[int]], set[int]]:
    """Apply outcomes. Also returns which ids of which batch are no longer in flight, and batches of which one stays.

    Batch 0 is a batch that the caller does not know.
    """
    db = draft.env.db
    txn = draft.txn
    messages_db = db["messages"]
    due_keys: list[bytes] = []
    gone: dict[int, list[int]] = {}
    kept: set[int] = set()
    stale = 0
    listed: list[Suppression] = []
    draft.will_change(len(settlements))
    has_offers = txn.stat(db["offers"])["entries"] > 0  # what is offered is queued, and not due
    for settlement in settlements:
        key = settlement.due_key
        outcome = settlement.outcome
        gone.setdefault(settlement.batch_no, []).append(outcome.id)
        if outcome.kind is OutcomeKind.RETURNED:
            kept.add(settlement.batch_no)
            continue
        is_final = outcome.kind in FINAL_KINDS
        stored = txn.get(key[10:], db=messages_db)
        if stored is None:
            _leave_no_key(draft, key, "without a record")
            stale += 1
            continue
        try:
            record = decode_record(outcome.id, stored)
        except DamagedRecord as error:
            if not draft.is_due(key):
                stale += 1
                continue
            log.error("spool: %s: put off, whatever became of it (%s)", error, outcome.kind)
            kept.add(settlement.batch_no)
            draft.due.remove(key)
            due_keys.append(key[:4] + u48(outcome.at_ms + DAMAGED_WAIT_MS) + key[10:])
            draft.due.add(due_keys[-1], NEVER)
            continue
        if key[:10] != due_key(record.queue, record.due_ms, 0)[:10]:
            _leave_no_key(draft, key, "at another time or in another queue than its record says")
            stale += 1
            continue
        if has_offers and not draft.is_due(key):
            stale += 1
            continue
        draft.due.remove(key)
        reply = outcome.reply
        flags = record.flags | (MAYBE_SENT if outcome.possible_duplicate else 0)
        attempts = record.attempts + (0 if settlement.free else 1)
        action = notices.owed(record, outcome.kind, outcome.at_ms, is_relayed=outcome.is_relayed)
        if action is notices.Action.DELAYED:
            flags |= notices.DELAY_TOLD
        if is_final:
            txn.delete(key[10:], db=messages_db)
            draft.finish(outcome.id, outcome.kind)
            if len(record.content) == 4:
                draft.live(record.content[0], -1)
        else:
            if settlement.next_due_ms is None:
                raise ValueError(f"message {outcome.id:016x}: {outcome.kind} without a next due time")
            kept.add(settlement.batch_no)
            new_key = due_key(record.queue, settlement.next_due_ms, outcome.id)
            draft.due.add(new_key, u48(record.expires_ms))
            last = (outcome.at_ms, reply.code, reply.enhanced, reply.text, outcome.host, outcome.source)
            txn.put(
                key[10:],
                encode_record(
                    record.queue,
                    settlement.next_due_ms,
                    attempts,
                    flags,
                    record.accepted_ms,
                    record.expires_ms,
                    record.sender,
                    record.recipient,
                    record.content,
                    last,
                    record.options,
                ),
                db=messages_db,
            )
            due_keys.append(new_key)
        _, stream, tenant, campaign = _name_of(draft, queue_of, record)
        if action is not None:
            notices.put(
                draft, action, record, reply, outcome.host, outcome.at_ms, stream=stream, tenant=tenant
            )
        if settlement.remember is not None:
            until_ms, site = settlement.remember
            sent.put(
                draft,
                key[10:],
                sent.Sent(
                    until_ms,
                    0,
                    record.recipient,
                    stream,
                    tenant,
                    campaign,
                    outcome.source,
                    site,
                    outcome.at_ms,
                    sent.asked_of(record),
                ),
            )
        if settlement.suppress is not None:
            listed.append(hard_bounce(settlement, record.recipient, tenant, stream))
        draft.event(
            (
                outcome.at_ms,
                int(outcome.kind),
                outcome.id,
                reply.code,
                reply.enhanced,
                reply.text,
                outcome.host,
                outcome.source,
                flags,
                attempts,
                record.recipient,
                stream,
                tenant,
                campaign,
                settlement.category,
                settlement.hard,
                settlement.scope,
            )
        )
    if listed:
        suppressions.put(draft, listed, log=True)
    return SettleResult(due_keys=due_keys, stale=stale), gone, kept


def _leave_no_key(draft: Draft, key: bytes, wrong: str) -> None:
    """A stale due key is in the index no more, unless damage to the journal has brought it back."""
    if draft.is_due(key):
        log.error("spool: message %s: due %s; it is not any more", key[10:].hex(), wrong)
        draft.due.remove(key)


def _name_of(draft: Draft, queue_of: Any, record: Record) -> QueueName:
    """The name of a message's queue. What became of the message counts even if that is damaged: the event has none."""
    try:
        name: QueueName = queue_of(draft.txn, record.queue)
    except DamagedRecord as error:
        log.error("spool: message %016x: %s", record.id, error)
        return UNNAMED
    return name


def inflight_key(epoch: int, batch_no: int) -> bytes:
    return epoch.to_bytes(4, "big") + batch_no.to_bytes(8, "big")


def dispatch(
    draft: Draft, batch_no: int, ids: bytes, daily: dict[str, int], now_ms: int, queue_of: Any
) -> list[int]:
    """Make it known that these ids go out now, and what they charge.

    Returns the ids that do not: their recipients have been suppressed since they were accepted, and that is settled.
    """
    db = draft.env.db
    wanted = [id_ for (id_,) in ID_LE.iter_unpack(ids)]
    stopped = stop_queued(draft, wanted, now_ms, queue_of)
    going = set(wanted).difference(stopped)
    if stopped:
        ids = b"".join([ID_LE.pack(id_) for id_ in going])
    if going:
        draft.txn.put(inflight_key(draft.totals.epoch, batch_no), u48(now_ms) + ids, db=db["inflight"])
        draft.inflight[batch_no] = going
    for key, value in daily.items():
        draft.txn.put(key.encode(), value.to_bytes(8, "big"), db=db["state"])
    return stopped


def land(
    draft: Draft, flying: Mapping[int, set[int]], batch_no: int, ids: Sequence[int], *, kept: bool
) -> None:
    """These ids of a batch are in flight no longer; `flying` is what is committed.

    The durable row goes with the last id. Before that it is rewritten only if a message that has landed is still
    queued (`kept`): one that is gone cannot be taken for in flight after a crash.
    """
    current = draft.inflight.get(batch_no)
    if current is None:
        committed = flying.get(batch_no)
        if committed is None:
            return  # of an earlier epoch: its row went when the spool was opened
        current = draft.inflight[batch_no] = set(committed)
    current.difference_update(ids)
    key = inflight_key(draft.totals.epoch, batch_no)
    db = draft.env.db["inflight"]
    if not current:
        draft.txn.delete(key, db=db)
    elif kept:
        since = draft.txn.get(key, db=db)[:6]
        draft.txn.put(key, since + b"".join([ID_LE.pack(id_) for id_ in current]), db=db)


def mark_in_flight(draft: Draft) -> int:
    """After a restart: what was in flight may have been sent. Returns how many messages are marked."""
    db = draft.env.db
    marked = 0
    rows = [(bytes(k), bytes(v)) for k, v in draft.txn.cursor(db=db["inflight"])]
    for key, value in rows:
        for position in range(6, len(value), 8):
            id_ = int.from_bytes(value[position : position + 8], "little")
            record = _queued(draft, id_, "it was in flight, and cannot be marked")
            if record is None:
                continue
            draft.txn.put(
                id_.to_bytes(8, "big"),
                encode_record(
                    record.queue,
                    record.due_ms,
                    record.attempts,
                    record.flags | MAYBE_SENT,
                    record.accepted_ms,
                    record.expires_ms,
                    record.sender,
                    record.recipient,
                    record.content,
                    record.last,
                    record.options,
                ),
                db=db["messages"],
            )
            marked += 1
        draft.txn.delete(key, db=db["inflight"])
    return marked


def _queued(draft: Draft, id_: int, unless: str) -> Record | None:
    """The record of a message, None if it is not queued, or damaged: `unless` says in the log what is left undone."""
    stored = draft.txn.get(id_.to_bytes(8, "big"), db=draft.env.db["messages"])
    if stored is None:
        return None
    try:
        return decode_record(id_, stored)
    except DamagedRecord as error:
        log.error("spool: %s: %s", error, unless)
        return None


def cancel(draft: Draft, ids: Sequence[int], at_ms: int, queue_of: Any) -> int:
    """Cancel queued messages; returns how many there were. One whose record is damaged stays."""
    count = 0
    for id_ in ids:
        record = _queued(draft, id_, "not cancelled")
        if record is None:
            continue
        draft.due.remove(due_key(record.queue, record.due_ms, id_))
        draft.txn.delete(id_.to_bytes(8, "big"), db=draft.env.db["messages"])
        draft.finish(id_, OutcomeKind.CANCELLED)
        if len(record.content) == 4:
            draft.live(record.content[0], -1)
        _, stream, tenant, campaign = _name_of(draft, queue_of, record)
        draft.event(
            (
                at_ms,
                int(OutcomeKind.CANCELLED),
                id_,
                0,
                "",
                "cancelled",
                "",
                0xFFFF,
                record.flags,
                record.attempts,
                record.recipient,
                stream,
                tenant,
                campaign,
                "",
                False,
                "",
            )
        )
        count += 1
    return count
