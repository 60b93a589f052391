"""The changes a spool can make, each a function of (draft, arguments) inside the group's transaction.

A function either does all of its work or raises SpoolError before its first write; any other exception undoes it with
its group. It may be run again in another draft, so it changes nothing but its draft.
"""

import hashlib
import logging
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from engine.spool import notices, sent, suppressions
from engine.spool.batches import (
    AcceptBatch,
    AcceptResult,
    CampaignRecord,
    ChunkBatch,
    Settlement,
    SettleResult,
)
from engine.spool.draft import Draft
from engine.spool.errors import CampaignConflict
from engine.spool.records import (
    MAYBE_SENT,
    VERSION,
    DamagedRecord,
    decode_record,
    due_key,
    encode_record,
    pack,
    u48,
)
from engine.spool.stopping import Stopped, hard_bounce, stop, stop_queued
from engine.spool.suppressions import Lists
from engine.values.ids import SEQ_BITS
from engine.values.outcome import FINAL_KINDS, OutcomeKind
from engine.values.suppression import Suppression

log = logging.getLogger(__name__)

ID_LE = struct.Struct("<Q")
DAMAGED_WAIT_MS = 3_600_000
NEVER = b"\xff" * 6  # as an expiry: what a damaged record says of its own is not known
KEY_TTL_MS = 7 * 86_400_000


def key_digest(tenant: str, key: str) -> bytes:
    return hashlib.blake2b(pack((tenant, key)), digest_size=16).digest()


def _recipients_digest(recipients: Sequence[str]) -> bytes:
    return hashlib.blake2b(pack(recipients), digest_size=8).digest()


def remember(draft: Draft, key: bytes, value: bytes, now_ms: int) -> None:
    expires = u48(now_ms + KEY_TTL_MS)
    draft.txn.put(key, expires + value, db=draft.env.db["keys"])
    draft.txn.put(expires + key, b"", db=draft.env.db["keys_expiry"])
    draft.remembered += 1


def recall(draft: Draft, key: bytes) -> Any:
    stored = draft.txn.get(key, db=draft.env.db["keys"])
    return None if stored is None else msgpack.unpackb(stored[6:])


def accept(
    draft: Draft, batch: AcceptBatch, segment: int, base: int, now_ms: int, *, hold: bool = False
) -> AcceptResult:
    """Accept a batch whose blob stands in `segment` from `base` on. `hold`: it is not due yet.

    An item without ids is refused: its key stands for a message to other recipients.
    """
    earlier = recall(draft, batch.batch_key)
    if earlier is not None:
        known_ids = [range(f, f + n) for f, n in earlier]
        return AcceptResult(known_ids, [], repeated=True, suppressed=_suppressed_among(draft, known_ids))
    totals = draft.totals
    prefix = totals.region << SEQ_BITS
    first_seq = seq = totals.next_seq
    ids: list[Sequence[int]] = []
    repeated: list[Sequence[int]] = []
    spans: list[tuple[int, int]] = []
    due_keys: list[bytes] = []
    messages: list[tuple[bytes, bytes]] = []
    due: list[tuple[bytes, bytes]] = []
    view = memoryview(batch.blob)
    live = 0
    lists = Lists(draft.env, draft.txn)
    stopped: list[Stopped] = []
    known: dict[bytes, tuple[int, int, bytes]] = {}
    for item in batch.items:
        if item.key:
            digest = key_digest(item.tenant, item.key)
            to = _recipients_digest(item.recipients)
            span = known.get(digest) or recall(draft, digest)
            if span is not None and len(span) > 2 and span[2] != to:  # earlier releases did not keep it
                spans.append((0, 0))
                ids.append(())
                continue
            if span is not None:
                spans.append((span[0], span[1]))
                ids.append(range(span[0], span[0] + span[1]))
                repeated.append(ids[-1])
                continue
        content = (
            segment,
            base + item.offset,
            item.length,
            zlib.crc32(view[item.offset : item.offset + item.length]),
        )
        first = seq
        expires = u48(item.expires_ms)
        wishes = item.options or (None,) * len(item.recipients)
        for recipient, domain, options in zip(item.recipients, item.domains, wishes, strict=True):
            id_ = prefix | seq
            seq += 1
            row = lists.find(recipient, item.tenant, item.stream)
            if row is not None:
                stopped.append(Stopped(id_, recipient, item.stream, item.tenant, item.campaign, row))
                continue
            live += 1
            queue = draft.queue(domain, item.stream, item.tenant, item.campaign)
            key = due_key(queue, item.due_ms, id_)
            due_keys.append(key)
            due.append((key, expires))
            messages.append(
                (
                    key[10:],
                    encode_record(
                        queue,
                        item.due_ms,
                        0,
                        0,
                        now_ms,
                        item.expires_ms,
                        item.sender,
                        recipient,
                        content,
                        None,
                        options,
                    ),
                )
            )
        count = seq - first
        spans.append((prefix | first, count))
        ids.append(range(prefix | first, (prefix | first) + count))
        if item.key:
            known[digest] = (prefix | first, count, to)
            remember(draft, digest, pack(known[digest]), now_ms)
    _put_new(draft, messages, [] if hold else due)
    totals.next_seq = seq
    draft.accepted(first_seq, seq - first_seq)
    if live:
        draft.live(segment, live)
    for one in stopped:
        stop(draft, one, now_ms)
    remember(draft, batch.batch_key, pack(spans), now_ms)
    suppressed = [one.id for one in stopped]
    if repeated:
        suppressed += [id_ for id_ in _suppressed_among(draft, repeated) if id_ not in suppressed]
    return AcceptResult(ids=ids, due_keys=due_keys, suppressed=suppressed)


def _put_new(draft: Draft, messages: list[tuple[bytes, bytes]], due: list[tuple[bytes, bytes]]) -> None:
    if not messages:
        return
    db = draft.env.db
    with draft.txn.cursor(db["messages"]) as cursor:
        # adopted ids of a region with a higher number lie behind our own
        is_last = not cursor.last() or bytes(cursor.key()) < messages[0][0]
        _, added = cursor.putmulti(messages, append=is_last)
    if added != len(messages):  # an append out of order is skipped silently by LMDB
        raise ValueError(f"only {added} of {len(messages)} new ids are above those in the index")
    draft.due.add_new(due)


def put_campaign(draft: Draft, record: CampaignRecord, *, alias: str = "") -> int:
    """Store a campaign; its number. The same name with other content is refused. `alias`: stored under that name."""
    db = draft.env.db
    name = key_digest(record.tenant, alias or record.campaign)
    value = bytes(
        pack(
            (
                VERSION,
                record.campaign,
                record.tenant,
                record.stream,
                record.sender,
                list(record.field_names),
                record.template,
            )
        )
    )
    stored = draft.txn.get(name, db=db["campaign_names"])
    if stored is not None:
        if draft.txn.get(stored, db=db["campaigns"]) != value:
            raise CampaignConflict(
                f"campaign {record.campaign!r} of tenant {record.tenant!r} exists with another template: "
                "use another campaign id"
            )
        return int.from_bytes(stored, "big")
    draft.totals.campaigns += 1
    key = draft.totals.campaigns.to_bytes(4, "big")
    draft.txn.put(key, value, db=db["campaigns"])
    draft.txn.put(name, key, db=db["campaign_names"])
    return draft.totals.campaigns


def accept_chunk(
    draft: Draft, chunk: ChunkBatch, sender: str, campaign: str, now_ms: int, *, hold: bool = False
) -> AcceptResult:
    """Accept a numbered chunk of a campaign, once. `hold`: it is not due yet."""
    db = draft.env.db
    name = chunk.campaign_no.to_bytes(4, "big") + chunk.number.to_bytes(4, "big")
    stored = draft.txn.get(name, db=db["chunks"])
    if stored is not None:
        digest, first, count = msgpack.unpackb(stored)
        if digest != chunk.digest:
            raise CampaignConflict(
                f"campaign {campaign!r}: part {chunk.number} was accepted before with other recipients"
            )
        ids = [(id_,) for id_ in range(first, first + count)]
        suppressed = _suppressed_among(draft, [range(first, first + count)])
        return AcceptResult(ids, [], repeated=True, suppressed=suppressed)
    totals = draft.totals
    first_seq = totals.next_seq
    first = totals.region << SEQ_BITS | first_seq
    expires = u48(chunk.expires_ms)
    messages: list[tuple[bytes, bytes]] = []
    due: list[tuple[bytes, bytes]] = []
    due_keys: list[bytes] = []
    lists = Lists(draft.env, draft.txn)
    stopped: list[Stopped] = []
    id_ = first
    for recipient, domain, fields in zip(chunk.recipients, chunk.domains, chunk.fields, strict=True):
        row = lists.find(recipient, chunk.tenant, chunk.stream)
        if row is not None:
            stopped.append(Stopped(id_, recipient, chunk.stream, chunk.tenant, campaign, row))
            id_ += 1
            continue
        queue = draft.queue(domain, chunk.stream, chunk.tenant, campaign)
        key = due_key(queue, chunk.due_ms, id_)
        due_keys.append(key)
        due.append((key, expires))
        content = (chunk.campaign_no, fields)
        messages.append(
            (
                key[10:],
                encode_record(
                    queue, chunk.due_ms, 0, 0, now_ms, chunk.expires_ms, sender, recipient, content, None
                ),
            )
        )
        id_ += 1
    count = id_ - first
    _put_new(draft, messages, [] if hold else due)
    totals.next_seq += count
    draft.accepted(first_seq, count)
    for one in stopped:
        stop(draft, one, now_ms)
    draft.txn.put(name, pack((chunk.digest, first, count)), db=db["chunks"])
    ids = [(i,) for i in range(first, first + count)]
    return AcceptResult(ids=ids, due_keys=due_keys, suppressed=[one.id for one in stopped])


def _suppressed_among(draft: Draft, ids: Sequence[Sequence[int]]) -> list[int]:
    """Of ids that were accepted before, those whose last word is that they are not sent."""
    if not draft.totals.counts[OutcomeKind.SUPPRESSED]:
        return []
    return [id_ for span in ids for id_ in span if draft.word(id_) == OutcomeKind.SUPPRESSED]


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
            if draft.is_due(key):
                raise LookupError(f"message {outcome.id:016x}: due without a record")
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
        if key[:10] != due_key(record.queue, record.due_ms, 0)[:10] or (has_offers and not draft.is_due(key)):
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
        _, stream, tenant, campaign = queue_of(txn, record.queue)
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
            id_key = id_.to_bytes(8, "big")
            stored = draft.txn.get(id_key, db=db["messages"])
            if stored is None:
                continue
            try:
                record = decode_record(id_, stored)
            except DamagedRecord as error:
                log.error("spool: %s: it was in flight, and cannot be marked", error)
                continue
            draft.txn.put(
                id_key,
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


def cancel(draft: Draft, ids: Sequence[int], at_ms: int, queue_of: Any) -> int:
    """Cancel queued messages; returns how many there were."""
    db = draft.env.db
    count = 0
    for id_ in ids:
        id_key = id_.to_bytes(8, "big")
        stored = draft.txn.get(id_key, db=db["messages"])
        if stored is None:
            continue
        record = decode_record(id_, stored)
        draft.due.remove(due_key(record.queue, record.due_ms, id_))
        draft.txn.delete(id_key, db=db["messages"])
        draft.finish(id_, OutcomeKind.CANCELLED)
        if len(record.content) == 4:
            draft.live(record.content[0], -1)
        _, stream, tenant, campaign = queue_of(draft.txn, record.queue)
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


def sweep_keys(draft: Draft, now_ms: int, limit: int) -> int:
    """Forget idempotency keys that have expired; returns how many."""
    db = draft.env.db
    old: list[bytes] = []
    with draft.txn.cursor(db=db["keys_expiry"]) as cursor:
        for key in cursor.iternext(keys=True, values=False):
            if int.from_bytes(key[:6], "big") > now_ms or len(old) == limit:
                break
            old.append(bytes(key))
    for key in old:
        draft.txn.delete(key, db=db["keys_expiry"])
        draft.txn.delete(key[6:], db=db["keys"])
    return len(old)
