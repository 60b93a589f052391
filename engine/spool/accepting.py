"""What a spool accepts: batches, campaigns and their chunks, each a function of (draft, arguments) inside the group's
transaction; and the idempotency keys that make a repeated acceptance find the first one.

A function either does all of its work or raises SpoolError before its first write; any other exception undoes it with
its group. It may be run again in another draft, so it changes nothing but its draft.

keys         digest of (tenant, key), or a batch key (16) -> expires_ms (6) and what was accepted for it
keys_expiry  expires_ms (6) key (16) -> nothing
"""

import hashlib
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack

from engine.spool.batches import (
    AcceptBatch,
    AcceptResult,
    CampaignRecord,
    ChunkBatch,
)
from engine.spool.draft import Draft
from engine.spool.errors import CampaignConflict
from engine.spool.records import (
    VERSION,
    due_key,
    encode_record,
    pack,
    u48,
)
from engine.spool.stopping import Stopped, stop
from engine.spool.suppressions import Lists
from engine.values.ids import SEQ_BITS
from engine.values.outcome import OutcomeKind

KEY_TTL_MS = 7 * 86_400_000
CHUNK_KEY_TTL_MS = (
    90 * 86_400_000
)  # a campaign may be sent again much later, when the region that had it is gone


def key_digest(tenant: str, key: str) -> bytes:
    return hashlib.blake2b(pack((tenant, key)), digest_size=16).digest()


def recipients_digest(recipients: Sequence[str]) -> bytes:
    return hashlib.blake2b(pack(recipients), digest_size=8).digest()


def remember(draft: Draft, key: bytes, value: bytes, now_ms: int, *, ttl_ms: int = KEY_TTL_MS) -> None:
    expires = u48(now_ms + ttl_ms)
    draft.txn.put(key, expires + value, db=draft.env.db["keys"])
    draft.txn.put(expires + key, b"", db=draft.env.db["keys_expiry"])
    draft.remembered += 1


def recall(draft: Draft, key: bytes) -> Any:
    stored = draft.txn.get(key, db=draft.env.db["keys"])
    return None if stored is None else msgpack.unpackb(stored[6:])


def recipients_of(txn: Any, db: Mapping[str, Any], digest: bytes) -> bytes | None:
    """The digest of the recipients for whom a message's key stands; None if it is unknown, or was kept without them."""
    stored = txn.get(digest, db=db["keys"])
    span = [] if stored is None else msgpack.unpackb(stored[6:])
    return bytes(span[2]) if len(span) > 2 else None


def accept(
    draft: Draft, batch: AcceptBatch, segment: int, base: int, now_ms: int, *, hold: bool = False
) -> AcceptResult:
    """Accept a batch whose blob stands in `segment` from `base` on. `hold`: in a fleet with copies; it is not due yet.

    An item without ids is refused: its key stands for a message to other recipients. With copies a message that has a
    key of its own comes in a batch under that key, and the protocol knows the keys of batches: a row that came with
    a copy does not say that anybody has the message.
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
            to = recipients_digest(item.recipients)
            span = known.get(digest) or (None if hold else recall(draft, digest))
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
        stored = draft.txn.get(key[6:], db=db["keys"])
        if stored is not None and bytes(stored[:6]) == key[:6]:  # else it has been used anew since
            draft.txn.delete(key[6:], db=db["keys"])
    return len(old)
