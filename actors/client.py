"""The Python client: submit mail, ask what became of it.

    client = connect("fleet.yaml")
    receipt = client.submit([Message(sender="a@example.com", recipients=("b@example.org",), body=...)])

docs/client.md is for those who use it.

A receipt means that the messages are on disk in a region. A batch whose answer was lost is sent again to the same
region under the same key until it answers, so it is accepted once; one that no region has seen goes to a region that
answers, and one that a region refuses because it is being drained goes to the next. Messages with a key of their own
always go to the region that their key stands for, because it knows the key; while that is being drained, it tells the
others.
"""

import asyncio
import hashlib
import itertools
import logging
import os
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgpack
import ray

from actors import RAY_CAME_FIRST
from actors.calls import Calls
from actors.deploy import NamedActor, actor_names, ask_head, connect_ray
from actors.environment import prepare
from actors.fleet import DRAINED_DOWN
from actors.local_cluster import LocalCluster
from actors.names import FLEET, region_actor, source_actor
from engine.campaign.record import parts_of
from engine.config.load import load_fleet
from engine.config.schema import FleetConfig
from engine.failover.rendezvous import keep_together, rank
from engine.ops.process import ProcessUsage
from engine.region.ports import RegionDraining
from engine.spool.errors import SpoolError
from engine.values.ids import region_of
from engine.values.message import CampaignChunk, CampaignTemplate, Message, Receipt
from engine.values.submission import batch_key_of, decode_receipt, encode_submission
from engine.values.suppression import Suppression, decode_rows, encode_rows

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 30.0
GIVE_UP_S = 120.0
SILENCE_S = 0.3  # then another region is asked, too
AVOID_S = 2.0
SILENT_TIMES = 4  # or so many times as long as an answer usually takes
USUAL_OF = 16  # answers, about
AGAIN_S = 0.15  # when all were asked: until one is asked again
SLOWER = 1.5  # and each time so much longer
FIRST_DELAY_S = 0.05
MAX_DELAY_S = 2.0
PAGE = 2000
STATUS_TIMEOUT_S = 2.0
USAGE_TIMEOUT_S = 2.0
DRAIN_TIMEOUT_S = 300.0  # at its end a region fetches the keys of the others


class AsyncClient:
    """The client for code that runs on an event loop. Safe to use from many tasks at once."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self._numbers = {region.number: region.name for region in config.regions}
        self._regions = {region.name: NamedActor(region_actor(region.name)) for region in config.regions}
        self._region_of = {entry.name: entry.region for entry in config.regions}
        self._sources = {source.name: NamedActor(source_actor(source.name)) for source in config.sources}
        self._fleet = NamedActor(FLEET)
        self._silent_until: dict[str, float] = {}  # regions that did not answer lately are asked last
        self._usual_s = 0.0  # how long a region takes for a receipt
        self._others: dict[str, NamedActor] = {}  # by name, those that answered `usage` last
        self._next = int.from_bytes(os.urandom(4), "big")

    async def submit(
        self, batch: Sequence[Message], *, key: bytes | None = None, region: str = ""
    ) -> Receipt:
        """Submit up to a few hundred messages. `key` (16 bytes) makes the batch idempotent across processes.

        `region`: the region, or a shard of one, that is to have it if it takes it; others otherwise. Who submits
        something again under a key names the same region as before.

        ConnectionError: the outcome is unknown. A batch of messages with keys of their own may have been accepted in
        part then; each of them can be submitted again. ValueError: there is no such region.
        """
        batch = tuple(batch)
        first = self.config.members(region) if region else ()
        homes: dict[str, list[int]] = {}
        if len(self._regions) > 1 and any(message.key for message in batch):
            for position, message in enumerate(batch):
                homes.setdefault(self._home_of(message, first), []).append(position)
        if not homes:
            return await self._submit_whole(batch, key, first)
        whole = key or os.urandom(16)
        calls = [
            self._submit_whole(
                [batch[position] for position in positions], self._key_towards(whole, home, first), first
            )
            for home, positions in homes.items()
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        receipts: list[Receipt] = []
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
            receipts.append(answer)
        return joined(receipts, list(homes.values()))

    async def _submit_whole(
        self, batch: Sequence[Message], key: bytes | None, first: Sequence[str]
    ) -> Receipt:
        batch_key = key or os.urandom(16)
        header, blob = encode_submission(batch, batch_key)
        if self.config.fleet.replicas:
            return decode_receipt(await self._submit_covered(batch_key, header, blob, first))
        return decode_receipt(await self._accepted_by_one(self._order(key, first), header, blob))

    async def _accepted_by_one(self, names: Sequence[str], header: bytes, blob: bytes) -> bytes:
        """The first of these regions decides; the next one only if it is being drained and has not accepted it."""
        deadline = time.monotonic() + GIVE_UP_S
        for turn in itertools.count():
            try:
                return bytes(await self._persist(names[turn % len(names)], "accept", header, blob))
            except RegionDraining as error:
                self._silent_until[names[turn % len(names)]] = time.monotonic() + AVOID_S
                if time.monotonic() > deadline:
                    raise ConnectionError(f"no region has taken it for {GIVE_UP_S:.0f} s: {error}") from error
            if turn % len(names) == len(names) - 1:
                await asyncio.sleep(MAX_DELAY_S)
        raise AssertionError("unreachable")

    def _home_of(self, message: Message, first: Sequence[str]) -> str:
        """The region that knows the message's key; "" for a message without one."""
        if not message.key:
            return ""
        return self._ranked(batch_key_of("key", message.tenant, message.key), first)[0]

    def _ranked(self, key: bytes, first: Sequence[str]) -> list[str]:
        """The regions in the order in which they are asked for a key, in a fleet with copies."""
        return keep_together(rank(key, self._regions), self._region_of, first)

    def _key_towards(self, whole: bytes, home: str, first: Sequence[str]) -> bytes:
        """A key for the part of a batch that is for one region, which chooses that region."""
        for number in itertools.count():
            key = batch_key_of("part", whole, home, str(number))
            chosen = (self._ranked if self.config.fleet.replicas else self._order)(key, first)[0]
            if home in ("", chosen):
                return key
        raise AssertionError("unreachable")

    async def submit_encoded(self, region: str, header: bytes, blob: bytes) -> Receipt:
        """Submit a batch that was encoded before (benches)."""
        return decode_receipt(await self._persist(region, "accept", header, blob))

    def _choose(self) -> str:
        return self._order(None, ())[0]

    def _order(self, key: bytes | None, first: Sequence[str]) -> list[str]:
        """The regions as they are to be asked, `first` before the others. A key has always the same order."""
        names = [region.name for region in self.config.regions]
        if key is not None:
            names.sort(key=lambda name: hashlib.sha256(key + name.encode()).digest(), reverse=True)
            return keep_together(names, self._region_of, first)
        self._next += 1
        turn = self._next % len(names)
        near = keep_together(names[turn:] + names[:turn], self._region_of, first)
        return self._silent_last(near)

    def _silent_last(self, names: Sequence[str]) -> list[str]:
        """That order, but those that did not answer lately at its end."""
        now = time.monotonic()
        return sorted(names, key=lambda name: self._silent_until.get(name, 0.0) > now)

    async def _persist(self, region: str, method: str, *args: Any) -> Any:
        """Call one region until it answers: its calls are idempotent, another region's would not be.

        RegionDraining: it has not done it and will not.
        """
        deadline = time.monotonic() + GIVE_UP_S
        delay_s = FIRST_DELAY_S
        while True:
            try:
                answer = await self._regions[region].call(method, *args, timeout_s=ANSWER_TIMEOUT_S)
                self._silent_until.pop(region, None)
                return answer
            except RegionDraining:
                raise
            except (ConnectionError, TimeoutError) as error:
                self._silent_until[region] = time.monotonic() + AVOID_S
                if method == "accept" and await self._is_drained_and_down(region):
                    raise RegionDraining(f"region {region} is drained, and down") from error
                if time.monotonic() > deadline:
                    raise ConnectionError(
                        f"region {region} gave no answer for {GIVE_UP_S:.0f} s; the outcome of {method} is unknown"
                    ) from error
                await asyncio.sleep(delay_s)
                delay_s = min(delay_s * 2, MAX_DELAY_S)

    async def _is_drained_and_down(self, region: str) -> bool:
        """Whether a region does not answer that was drained before: the others know what it has accepted."""
        try:
            health = await self._fleet.call("health", timeout_s=STATUS_TIMEOUT_S)
        except (ConnectionError, TimeoutError):
            return False
        return bool(health.get(region) == DRAINED_DOWN)

    async def _submit_covered(self, key: bytes, header: bytes, blob: bytes, first: Sequence[str]) -> bytes:
        """Ask one region after the other until one gives the receipt; the earlier ones may still do it meanwhile.

        Regions find out among themselves who has the batch: it is accepted once, whoever answers.
        """
        began = time.monotonic()
        names = self._silent_last(self._ranked(key, first))
        calls = Calls()
        asked: set[str] = set()
        pause_s = AGAIN_S
        try:
            for turn in itertools.count():
                name = names[turn % len(names)]
                if not calls.has(name):  # one that has it already needs it no second time
                    call = self._regions[name].call(
                        "accept", header, blob, not asked <= calls.refused, timeout_s=ANSWER_TIMEOUT_S
                    )
                    calls.begin(name, call)
                    asked.add(name)
                if turn < len(names) - 1:
                    answer, is_silent = await self._hear(calls, self._silence_s())
                else:  # every region was asked: the less haste the longer it takes
                    rest_until = time.monotonic() + pause_s * random.uniform(0.7, 1.0)
                    answer, is_silent = await self._hear(calls, pause_s)
                    while answer is None and (left_s := rest_until - time.monotonic()) > 0:
                        answer, _ = await self._hear(calls, left_s)
                    pause_s = min(pause_s * SLOWER, MAX_DELAY_S)
                if answer is not None:
                    return answer
                if is_silent:
                    self._silent_until[name] = time.monotonic() + AVOID_S
                if time.monotonic() - began > GIVE_UP_S:
                    raise ConnectionError(
                        f"no region gave a receipt for {GIVE_UP_S:.0f} s; the outcome is unknown: {calls.error}"
                    ) from calls.error
        finally:
            await calls.end()
        raise AssertionError("unreachable")

    def _silence_s(self) -> float:
        """So long without an answer is a silence: regions that are all slow are not helped by asking twice as many."""
        return min(max(SILENCE_S, self._usual_s * SILENT_TIMES), MAX_DELAY_S)

    async def _hear(self, calls: Calls, wait_s: float) -> tuple[bytes | None, bool]:
        """The receipt, if one comes in that time; and whether nothing came at all. A refusal ends the wait."""
        done = await calls.wait(wait_s)
        for region, since, task in done:
            failure = task.exception()
            if failure is None:
                self._silent_until.pop(region, None)
                self._usual_s += (time.monotonic() - since - self._usual_s) / USUAL_OF
                return task.result(), False
            if not isinstance(failure, ConnectionError | TimeoutError):
                raise failure
            self._silent_until[region] = time.monotonic() + AVOID_S
            if isinstance(failure, RegionDraining):
                calls.refused.add(region)
            calls.error = failure
        return None, not done

    # the port of engine.campaign.sender

    async def put_campaign(self, region: str, template: CampaignTemplate, field_names: Sequence[str]) -> int:
        record = msgpack.packb(
            {
                "campaign": template.campaign,
                "tenant": template.tenant,
                "stream": int(template.stream),
                "sender": template.sender,
                "field_names": list(field_names),
                "template": parts_of(template),
            }
        )
        return int(await self._persist(region, "put_campaign", record))

    async def progress(self, region: str, tenant: str, campaign: str) -> dict[int, bytes]:
        return dict(await self._persist(region, "progress", tenant, campaign))

    async def accept_chunk(self, region: str, campaign_no: int, chunk: CampaignChunk) -> Receipt:
        content = (chunk.number, chunk.digest, chunk.field_names, chunk.recipients, chunk.fields)
        data = msgpack.packb((campaign_no, *content, int(chunk.engagement)))
        return decode_receipt(await self._persist(region, "accept_chunk", data))

    # looking in

    async def status(self, message_id: int) -> dict[str, object] | None:
        """What is known of one message, or None if its region never accepted it."""
        region = self._numbers.get(region_of(message_id))
        if region is None:
            return None
        if not self.config.fleet.replicas:
            found: dict[str, object] | None = await self._regions[region].ask("message_status", message_id)
            if found is None or found["state"] != "moved":
                return found
        return await self._covered_status(message_id)

    async def _covered_status(self, message_id: int) -> dict[str, object] | None:
        """Ask every region: one that has adopted it or taken it over knows more than one that gave it up."""
        calls = [
            actor.ask("message_status", message_id, timeout_s=STATUS_TIMEOUT_S)
            for actor in self._regions.values()
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found = [answer for answer in answers if isinstance(answer, dict)]
        if not found and any(isinstance(answer, BaseException) for answer in answers):
            raise ConnectionError(f"message {message_id:016x}: the regions that know it do not answer")
        return min(found, key=lambda status: status["state"] == "moved", default=None)

    async def trace(
        self, message_id: int, *, recipient: str = "", stream: int = 0, tenant: str = ""
    ) -> dict[str, Any] | None:
        """Where a message stands and which sources may carry it now. A message that is not queued any more is traced
        by what its events say; None if its region never accepted it."""
        region = self._numbers.get(region_of(message_id))
        if region is None:
            return None
        found: dict[str, Any] | None = None
        for name in [region, *(other for other in self._regions if other != region)]:
            answer = await self._regions[name].ask("trace", message_id, recipient, stream, tenant)
            found = answer or found
            if found is None or found["status"]["state"] != "moved":
                return found
        return found

    async def source(self, name: str) -> dict[str, Any]:
        """One source's standings, warm-up and shaping, as its owner sees them."""
        return dict(await self._source(name).ask("snapshot"))

    async def order(self, source: str, name: str, site: str, argument: int | str | None = None) -> bool:
        """An operator's order to a source's owner: `pause`, `resume`, `skip` (to stage `argument`) a warm-up,
        `cancel` the order of the shaping rule `argument`. Returns whether it changed anything; ValueError if it makes
        no sense.
        """
        return bool(await self._source(source).call("order", name, site, argument))

    async def move_tenant(self, tenant: str, quality: str) -> dict[str, bool]:
        """An operator puts a tenant into a class (`new`, `good`, `poor`) in every region; which of them it changed.
        ValueError if it is not allowed; ConnectionError if a region does not answer: ask again."""
        names = list(self._regions)
        changed = await asyncio.gather(
            *(self._regions[name].call("move_tenant", tenant, quality) for name in names)
        )
        return dict(zip(names, map(bool, changed), strict=True))

    def _source(self, name: str) -> NamedActor:
        if name not in self._sources:
            raise ValueError(f"source {name!r}: allowed are {', '.join(self._sources)}")
        return self._sources[name]

    async def cancel(self, ids: Sequence[int]) -> int:
        """Cancel queued messages that are not on the wire; returns how many were."""
        by_region: dict[str, list[int]] = {}
        for id_ in ids:
            region = self._numbers.get(region_of(id_))
            if region is not None:  # nobody of this fleet has accepted the others
                by_region.setdefault(region, []).append(id_)
        count = 0
        for region, group in by_region.items():
            left = len(group)
            for name in [region, *(other for other in self._regions if other != region)]:
                if left:  # the others may have taken them over
                    left -= int(await self._regions[name].call("cancel", group))
            count += len(group) - left
        return count

    async def drain(self, region: str, *, end: bool = False) -> bool:
        """Have a region accept nothing more and hand over what waits there, or `end` that; whether it changed anything.

        ValueError: there is no such region, or no other. ConnectionError: it does not answer; it can be repeated.
        """
        if region not in self._regions:
            raise ValueError(f"region {region!r}: allowed are {', '.join(self._regions)}")
        return bool(await self._regions[region].call("drain", not end, timeout_s=DRAIN_TIMEOUT_S))

    # suppression

    async def suppress(self, rows: Sequence[Suppression]) -> int:
        """Put addresses on suppression lists, or off them, in every region; how many rows changed something.

        One region has them on disk before this returns and passes them on; the others are told at once if they answer,
        and by that region otherwise.
        """
        first = self._choose()
        pages = [rows[start : start + PAGE] for start in range(0, len(rows), PAGE)]
        return sum([await self._suppress_page(first, page) for page in pages])

    async def _suppress_page(self, first: str, rows: Sequence[Suppression]) -> int:
        data = encode_rows(rows)
        changed = int(await self._persist(first, "suppress", data, True))
        others = [region for region in self._regions if region != first]
        answers = await asyncio.gather(
            *(self._regions[r].call("suppress", data, False, timeout_s=ANSWER_TIMEOUT_S) for r in others),
            return_exceptions=True,
        )
        for region, answer in zip(others, answers, strict=True):
            if isinstance(answer, ConnectionError | TimeoutError | SpoolError):
                log.warning(
                    "region %s hears of suppressions later, from region %s: %s", region, first, answer
                )
            elif isinstance(answer, BaseException):
                raise answer
        return changed

    async def suppressions(self, address: str = "") -> AsyncIterator[Suppression]:
        """The rows of the suppression list, all or those of one address, with those that were taken off."""
        region = self._choose()
        if address:
            for row in decode_rows(await self._persist(region, "suppressions_of", address)):
                yield row
            return
        after = b""
        while True:
            after, data = await self._persist(region, "suppressions", after, PAGE)
            for row in decode_rows(data):
                yield row
            if not after:
                return

    async def snapshot(self) -> dict[str, Any]:
        """The fleet's state: every region's counts and gauges."""
        return dict(await self._fleet.ask("snapshot"))

    async def figures(self) -> dict[str, Any]:
        """Every region's figures for metrics, and the alerts that fire."""
        return dict(await self._fleet.ask("figures"))

    async def usage(self) -> dict[str, ProcessUsage]:
        """What each actor has used, by its name; those that do not answer are left out."""
        names = await ask_head("list actors", actor_names)
        answers = await asyncio.gather(
            *(self._actor(name).call("usage", timeout_s=USAGE_TIMEOUT_S) for name in names),
            return_exceptions=True,
        )
        found: dict[str, ProcessUsage] = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, ConnectionError | TimeoutError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            found[name] = answer
        self._others = {name: actor for name, actor in self._others.items() if name in found}
        return found

    def _actor(self, name: str) -> NamedActor:
        actor = self._others.get(name)
        if actor is None:
            actor = self._others[name] = NamedActor(name)
        return actor

    async def events(self, *, follow: bool = False) -> AsyncIterator[bytes]:
        """Lines of the events logs on this machine, oldest first."""
        offsets: dict[Path, int] = {}
        root = Path(self.config.events.directory)
        while True:
            for path in sorted(root.glob("*/events-*.jsonl")):
                with path.open("rb") as file:
                    file.seek(offsets.get(path, 0))
                    for line in file:
                        if not line.endswith(b"\n"):
                            break
                        offsets[path] = offsets.get(path, 0) + len(line)
                        yield line
            if not follow:
                return
            await asyncio.sleep(0.2)


def joined(receipts: Sequence[Receipt], positions: Sequence[Sequence[int]]) -> Receipt:
    """One receipt for a batch that went to several regions; `positions[i]` are those of receipt i's items."""
    ids: list[tuple[int, ...]] = [()] * sum(map(len, positions))
    errors = []
    for receipt, places in zip(receipts, positions, strict=True):
        for place, item in zip(places, receipt.ids, strict=True):
            ids[place] = item
        errors += [replace(error, index=places[error.index]) for error in receipt.errors]
    return Receipt(
        region=",".join(sorted({receipt.region for receipt in receipts})),
        ids=tuple(ids),
        errors=tuple(sorted(errors, key=lambda error: error.index)),
        repeated=all(receipt.repeated for receipt in receipts),
        suppressed=tuple(id_ for receipt in receipts for id_ in receipt.suppressed),
        degraded=any(receipt.degraded for receipt in receipts),
    )


class Client:
    """The same for code without an event loop."""

    def __init__(self, config: FleetConfig) -> None:
        self._loop = asyncio.new_event_loop()
        self.asynchronous = AsyncClient(config)

    def submit(self, batch: Sequence[Message], *, key: bytes | None = None, region: str = "") -> Receipt:
        return self._loop.run_until_complete(self.asynchronous.submit(batch, key=key, region=region))

    def status(self, message_id: int) -> dict[str, object] | None:
        return self._loop.run_until_complete(self.asynchronous.status(message_id))

    def events(self, *, follow: bool = False) -> Iterator[bytes]:
        """Lines of the events logs on this machine, oldest first; `follow`: and those to come, without end."""
        lines = self.asynchronous.events(follow=follow)
        while (line := self._loop.run_until_complete(anext(lines, None))) is not None:
            yield line

    def cancel(self, ids: Sequence[int]) -> int:
        return self._loop.run_until_complete(self.asynchronous.cancel(ids))

    def suppress(self, rows: Sequence[Suppression]) -> int:
        return self._loop.run_until_complete(self.asynchronous.suppress(rows))

    def snapshot(self) -> dict[str, Any]:
        return self._loop.run_until_complete(self.asynchronous.snapshot())

    def close(self) -> None:
        self._loop.close()
        ray.shutdown()


def connect(fleet: str | Path | FleetConfig, address: str | None = None) -> Client:
    """Connect to the fleet of a fleet.yaml, at the Ray address, by default `ray.address` or the fleet on this machine.

    ConfigError: fleet.yaml is wrong. ConnectionError: no such fleet runs. RuntimeError: Ray was imported first.
    """
    if RAY_CAME_FIRST:
        raise RuntimeError(
            "ray was imported before actors.client, and would not show the fleet's token: import actors.client first"
        )
    config = fleet if isinstance(fleet, FleetConfig) else load_fleet(fleet)
    prepare(config)
    cluster = LocalCluster(config)
    address = address or config.ray.address
    if address is None and not cluster.running():
        raise ConnectionError(
            f"no fleet {config.fleet.name} runs on this machine: start it with `sendfleet up`"
        )
    connect_ray(address or cluster.address())
    return Client(config)
