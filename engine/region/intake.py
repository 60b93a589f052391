"""Mail in: batches, campaigns and their chunks, and what the region writes itself.

A receipt is given when what it names is on disk, and with copies in other regions (engine/region/cover.py) when one of
those has it too, or the receipt says that none does.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Protocol

import msgpack

from engine.config.schema import FleetConfig
from engine.region.admission import Admission
from engine.region.awaiting import awaited
from engine.region.cover import Cover
from engine.region.ports import RegionAway
from engine.region.refills import TOGETHER_MS
from engine.region.retry import RetrySchedule
from engine.spool.accepting import recipients_digest
from engine.spool.batches import AcceptBatch, AcceptItem, AcceptResult, CampaignRecord, ChunkBatch
from engine.spool.errors import CampaignUnknown
from engine.spool.store import Spool
from engine.values.address import AddressError, parse_address
from engine.values.clock import Clock
from engine.values.engagement import Engagement
from engine.values.message import KEY_OF_ANOTHER, ItemError, Receipt
from engine.values.stream import Stream
from engine.values.submission import MalformedBatch, chunk_key_of, decode_submission, encode_receipt

# further apart than what the windows read together
AHEAD_MS = {
    Engagement.ENGAGED: 10 * TOGETHER_MS,
    Engagement.NORMAL: 5 * TOGETHER_MS,
    Engagement.UNENGAGED: 0,
    Engagement.UNKNOWN: 0,
}


class Gate(Protocol):
    """Whether mail of clients is accepted now (engine/region/handing.py)."""

    @property
    def is_closed(self) -> bool: ...

    async def admit(self, *, key: bytes = b"", chunk: bytes = b"", has_keys: bool = False) -> None:
        """RegionDraining, RegionAway: it is not, and this was not accepted before."""


class Intake:
    """See the module docstring. `streams`: those that the sources serve; `offer`: these due keys are on disk; `gate`:
    asked before anything is accepted from a client; `accepted`: the messages with these due keys are safe."""

    def __init__(
        self,
        *,
        config: FleetConfig,
        name: str,
        spool: Spool,
        clock: Clock,
        streams: frozenset[int],
        retry: Mapping[int, RetrySchedule],
        cover: Cover | None,
        offer: Callable[[Sequence[bytes]], None],
        gate: Gate,
        accepted: Callable[[Sequence[bytes]], None],
    ) -> None:
        self._config = config
        self._name = name
        self._spool = spool
        self._clock = clock
        self._streams = streams
        self._retry = retry
        self._cover = cover
        self._offer = offer
        self._gate = gate
        self._accepted = accepted
        self._admission = Admission(
            limits=config.limits,
            streams=streams,
            expire_ms={number: schedule.expire_ms for number, schedule in retry.items()},
        )

    async def accept(self, header: bytes, blob: bytes, *, again: bool = False) -> bytes:
        """Accept a batch (engine/values/submission.py). The answer is a receipt: what it names is on disk.

        `again`: another region may have accepted it before. RegionAway: nothing is promised. RegionDraining: it never
        will be.
        """
        submission = decode_submission(header, len(blob))
        if self._gate.is_closed:
            await self._gate.admit(key=submission.batch_key, has_keys=any(raw[6] for raw in submission.items))
        now_ms = self._clock.wall_ms()
        admitted = self._admission.admit(submission, now_ms)
        ids: list[Sequence[int]] = [()] * len(submission.items)
        errors = admitted.errors
        repeated = False
        suppressed: tuple[int, ...] = ()
        degraded = False
        if admitted.items:
            batch = AcceptBatch(batch_key=submission.batch_key, items=admitted.items, blob=blob)
            if self._cover is not None:
                result, degraded = await self._covered(batch.batch_key, batch, again=again)
            else:
                result = await self._stored(self._spool.accept(batch))
            repeated = result.repeated
            suppressed = tuple(result.suppressed)
            if len(result.ids) != len(admitted.items):
                raise MalformedBatch(f"batch key: it stands for another batch, of {len(result.ids)} messages")
            for position, item, item_ids in zip(admitted.positions, admitted.items, result.ids, strict=True):
                if repeated and item.key and self._is_of_another(item):
                    item_ids = ()
                ids[position] = item_ids
                if not len(item_ids):
                    errors.append(ItemError(position, "key", item.key[:80], KEY_OF_ANOTHER))
            self._accepted(result.due_keys)
        return encode_receipt(
            Receipt(
                region=self._name,
                ids=tuple(tuple(item) for item in ids),
                errors=tuple(sorted(errors, key=lambda error: error.index)),
                repeated=repeated,
                suppressed=suppressed,
                degraded=degraded,
            )
        )

    def _is_of_another(self, item: AcceptItem) -> bool:
        """Whether a key that was used before stands for a message to other recipients. RegionAway: ask another region,
        this one does not know."""
        stands_for = self._spool.recipients_of(item.tenant, item.key)
        if stands_for is None:
            raise RegionAway(f"region {self._name}: another knows for whom the key {item.key[:80]!r} stands")
        return stands_for != recipients_digest(item.recipients)

    async def accept_own(self, batch: AcceptBatch) -> None:
        """Accept mail that the region itself writes."""
        result = await self._stored(self._spool.accept(batch))
        self._accepted(result.due_keys)
        if self._cover is not None:
            self._cover.owns([int.from_bytes(key[10:], "big") for key in result.due_keys])

    async def _stored(self, stored: "Future[AcceptResult]") -> AcceptResult:
        """What is on disk becomes due, also if the caller leaves before it hears of that."""
        try:
            result = await awaited(stored)
        except asyncio.CancelledError:
            stored.add_done_callback(lambda done: done.exception() or self._offer(done.result().due_keys))
            raise
        self._offer(result.due_keys)
        return result

    async def _covered(
        self, key: bytes, batch: AcceptBatch | ChunkBatch, *, again: bool
    ) -> tuple[AcceptResult, bool]:
        """Accept a batch whose receipt waits for a copy. It becomes due through `_offer`, when that is safe."""
        assert self._cover is not None
        done = await self._cover.accept(key, batch, again=again)
        if done.result is not None:
            if done.repeated and not done.result.repeated:  # another call was first, and counts what is new
                return replace(done.result, due_keys=(), repeated=True), done.degraded
            return done.result, done.degraded
        # another region has accepted it, or another call for the same batch, whose caller has gone
        known = await awaited(self._cover.look_up(key))
        spans = done.spans if known is None else known.spans
        runs = [range(first, first + count) for first, count in spans]
        if isinstance(batch, ChunkBatch):
            return AcceptResult([(id_,) for run in runs for id_ in run], [], repeated=True), done.degraded
        return AcceptResult(runs, [], repeated=True, suppressed=self._suppressed(runs)), done.degraded

    def _suppressed(self, runs: Sequence[range]) -> list[int]:
        """Those of the ids that were never sent to, as far as they are known here."""
        words = {id_: self._spool.status(id_) for run in runs for id_ in run}
        return [id_ for id_, word in words.items() if word is not None and word["state"] == "suppressed"]

    async def put_campaign(self, record: bytes) -> int:
        """Store a campaign's template (msgpack of CampaignRecord's fields); returns its number here."""
        campaign = CampaignRecord(**msgpack.unpackb(record))
        if campaign.stream not in self._streams:
            raise ValueError(f"stream {Stream(campaign.stream)}: no source of region {self._name} serves it")
        link = self._config.unsubscribe.link(campaign.tenant, str(Stream(campaign.stream)))
        if link is None and "unsubscribe_url" in str(campaign.template):
            raise ValueError(
                f"campaign {campaign.campaign!r}: its template has unsubscribe_url, but unsubscribe.links has no "
                f"entry for the stream {Stream(campaign.stream)} of tenant {campaign.tenant!r}"
            )
        return await awaited(self._spool.put_campaign(campaign))

    def progress(self, tenant: str, campaign: str) -> dict[int, bytes]:
        """Numbers and digests of the campaign's chunks that are safe in this region."""
        return self._spool.campaign_progress(tenant, campaign)

    async def accept_chunk(self, data: bytes, *, again: bool = False) -> bytes:
        """Accept a campaign chunk: msgpack [campaign_no, number, digest, field_names, recipients, fields, engagement,
        tenant, campaign]; the last ones are left out by senders of earlier releases. `again`: as in `accept`.

        CampaignUnknown: the number is not that campaign's.

        Mail is taken in the order of its due time (engine/region/windows.py), so what is engaged is due a little
        earlier than what came before it.
        """
        campaign_no, number, digest, _, recipients, fields, *rest = msgpack.unpackb(data)
        engagement = Engagement(rest[0]) if rest else Engagement.UNKNOWN
        if self._gate.is_closed:
            await self._gate.admit(chunk=campaign_no.to_bytes(4, "big") + number.to_bytes(4, "big"))
        campaign = self._spool.campaign(campaign_no)
        if rest[1:] and rest[1:] != [campaign.tenant, campaign.campaign]:
            raise CampaignUnknown(f"campaign number {campaign_no} of region {self._name} is another one")
        now_ms = self._clock.wall_ms()
        good: list[int] = []
        addresses: list[str] = []
        domains: list[str] = []
        errors: list[ItemError] = []
        for index, recipient in enumerate(recipients):
            try:
                address = parse_address(recipient)
            except AddressError as error:
                errors.append(ItemError(index, "recipient", recipient[:80], str(error)))
                continue
            good.append(index)
            addresses.append(address.text)
            domains.append(address.domain)
        chunk = ChunkBatch(
            campaign_no=campaign_no,
            number=number,
            digest=digest,
            recipients=addresses,
            domains=domains,
            fields=[fields[index] for index in good],
            due_ms=now_ms - AHEAD_MS[engagement],
            expires_ms=now_ms + self._retry[campaign.stream].expire_ms,
            tenant=campaign.tenant,
            stream=campaign.stream,
        )
        degraded = False
        if self._cover is not None:
            key = chunk_key_of(campaign.tenant, campaign.campaign, number, digest)
            result, degraded = await self._covered(key, chunk, again=again)
        else:
            result = await self._stored(self._spool.accept_chunk(chunk))
        self._accepted(result.due_keys)
        ids: list[tuple[int, ...]] = [()] * len(recipients)
        for index, item_ids in zip(good, result.ids, strict=True):
            ids[index] = tuple(item_ids)
        return encode_receipt(
            Receipt(
                region=self._name,
                ids=tuple(ids),
                errors=tuple(errors),
                repeated=result.repeated,
                suppressed=tuple(result.suppressed),
                degraded=degraded,
            )
        )
