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
import logging
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgpack
import ray

from actors import RAY_CAME_FIRST
from actors.deploy import actor_names, connect_ray
from actors.environment import prepare
from actors.local_cluster import LocalCluster
from actors.names import FLEET, POOLS, region_actor, source_actor
from actors.ray_calls import NamedActor, ask_head
from actors.region_calls import ANSWER_TIMEOUT_S, ANY_TIMEOUT_S, RegionCalls
from actors.submitting import Submitting
from engine.campaign.record import parts_of
from engine.config.load import load_fleet
from engine.config.schema import FleetConfig
from engine.ops.process import ProcessUsage
from engine.spool.errors import SpoolError
from engine.values.ids import region_of
from engine.values.message import CampaignChunk, CampaignTemplate, Message, Receipt
from engine.values.submission import decode_receipt
from engine.values.suppression import Suppression, decode_rows, encode_rows

log = logging.getLogger(__name__)

PAGE = 2000
STATUS_TIMEOUT_S = 2.0
USAGE_TIMEOUT_S = 2.0
CANCELLED_AT_ONCE = 2000  # a region writes so many well within ANY_TIMEOUT_S
DRAIN_TIMEOUT_S = 300.0  # at its end a region fetches the keys of the others


class AsyncClient:
    """The client for code that runs on an event loop. Safe to use from many tasks at once."""

    def __init__(self, config: FleetConfig) -> None:
        self.config = config
        self._numbers = {region.number: region.name for region in config.regions}
        self._sources = {source.name: NamedActor(source_actor(source.name)) for source in config.sources}
        self._fleet = NamedActor(FLEET)
        actors = {region.name: NamedActor(region_actor(region.name)) for region in config.regions}
        self._regions = RegionCalls(config, actors, self._fleet)
        self._submitting = Submitting(config, self._regions)
        self._others: dict[str, NamedActor] = {}  # by name, those that answered `usage` last

    async def submit(
        self, batch: Sequence[Message], *, key: bytes | None = None, region: str = ""
    ) -> Receipt:
        """Submit up to a few hundred messages. `key` (16 bytes) makes the batch idempotent across processes.

        `region`: the region, or a shard of one, that is to have it if it takes it; others otherwise. Who submits
        something again under a key names the same region as before.

        ConnectionError: the outcome is unknown. A batch of messages with keys of their own may have been accepted in
        part then; each of them can be submitted again. ValueError: there is no such region.
        """
        return await self._submitting.submit(batch, key=key, region=region)

    async def close(self) -> None:
        """To be called when nothing is submitted any more."""
        await self._submitting.end()

    async def submit_new(self, batch: Sequence[Message], key: bytes) -> Receipt:
        """As `submit` in a fleet with copies, of a batch whose key has been made for this call (benches)."""
        return await self._submitting.submit_new(batch, key)

    async def submit_encoded(self, region: str, header: bytes, blob: bytes) -> Receipt:
        """Submit a batch that was encoded before (benches)."""
        return decode_receipt(await self._regions.persist(region, "accept", header, blob))

    # the port of engine.campaign.giving

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
        return int(await self._of_campaign(region, "put_campaign", record))

    async def progress(self, region: str, tenant: str, campaign: str) -> dict[int, bytes]:
        return dict(await self._of_campaign(region, "progress", tenant, campaign))

    async def accept_chunk(
        self, region: str, campaign_no: int, chunk: CampaignChunk, *, again: bool = False
    ) -> Receipt:
        content = (chunk.number, chunk.digest, chunk.field_names, chunk.recipients, chunk.fields)
        whose = (int(chunk.engagement), chunk.tenant, chunk.campaign)
        data = msgpack.packb((campaign_no, *content, *whose))
        if not again:
            return decode_receipt(await self._regions.persist(region, "accept_chunk", data))
        return decode_receipt(await self._of_campaign(region, "accept_chunk", data, again))

    async def _of_campaign(self, region: str, method: str, *args: Any) -> Any:
        """With copies it is asked once: if it is silent, another region does it."""
        if self.config.fleet.replicas:
            return await self._regions.actors[region].call(method, *args, timeout_s=ANSWER_TIMEOUT_S)
        return await self._regions.persist(region, method, *args)

    # looking in

    async def status(self, message_id: int) -> dict[str, object] | None:
        """What is known of one message, or None if its region never accepted it."""
        region = self._numbers.get(region_of(message_id))
        if region is None:
            return None
        if not self.config.fleet.replicas:
            found: dict[str, object] | None = await self._regions.actors[region].ask(
                "message_status", message_id
            )
            if found is None or found["state"] != "moved":
                return found
        return await self._covered_status(message_id)

    async def _covered_status(self, message_id: int) -> dict[str, object] | None:
        """Ask every region: one that has adopted it or taken it over knows more than one that gave it up."""
        calls = [
            actor.ask("message_status", message_id, timeout_s=STATUS_TIMEOUT_S)
            for actor in self._regions.actors.values()
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
        by what its events say; None if its region never accepted it. ConnectionError: who knows it does not answer."""
        region = self._numbers.get(region_of(message_id))
        if region is None:
            return None
        timeout_s = ANY_TIMEOUT_S if self.config.fleet.replicas else ANSWER_TIMEOUT_S
        found: dict[str, Any] | None = None
        failure: Exception | None = None
        for name in self._regions.from_first(region):
            try:
                answer = await self._regions.actors[name].ask(
                    "trace", message_id, recipient, stream, tenant, timeout_s=timeout_s
                )
            except (ConnectionError, TimeoutError) as error:
                failure = error
                continue
            found = answer or found
            if found is not None and found["status"]["state"] != "moved":
                return found
            if found is None and name == region and not self.config.fleet.replicas:
                return None
        if found is None and failure is not None:
            raise ConnectionError(
                f"message {message_id:016x}: the regions that know it do not answer: {failure}"
            ) from failure
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
        names = list(self._regions.actors)
        changed = await asyncio.gather(
            *(self._regions.actors[name].call("move_tenant", tenant, quality) for name in names)
        )
        return dict(zip(names, map(bool, changed), strict=True))

    def _source(self, name: str) -> NamedActor:
        if name not in self._sources:
            raise ValueError(f"source {name!r}: allowed are {', '.join(self._sources)}")
        return self._sources[name]

    async def cancel(self, ids: Sequence[int]) -> int:
        """Cancel queued messages that are not on the wire; returns how many were.

        ConnectionError: of some that are not cancelled no region could say whether they wait there; it can be repeated.
        """
        by_region: dict[str, list[int]] = {}
        for id_ in ids:
            region = self._numbers.get(region_of(id_))
            if region is not None:  # nobody of this fleet has accepted the others
                by_region.setdefault(region, []).append(id_)
        count = 0
        unknown = 0
        failure: Exception | None = None
        timeout_s = ANY_TIMEOUT_S if self.config.fleet.replicas else ANSWER_TIMEOUT_S
        silent: set[str] = set()
        for region, page in _pages(by_region, CANCELLED_AT_ONCE):
            left = len(page)
            for name in self._regions.from_first(region):
                if not left:  # otherwise the others may have taken them over
                    break
                if name in silent:
                    continue
                try:
                    left -= int(await self._regions.actors[name].call("cancel", page, timeout_s=timeout_s))
                except (ConnectionError, TimeoutError) as error:
                    failure = error
                    silent.add(name)
            count += len(page) - left
            unknown += left if silent else 0
        if unknown:
            raise ConnectionError(
                f"{count} messages are cancelled; {unknown} may wait in a region that does not answer: {failure}"
            ) from failure
        return count

    async def drain(self, region: str, *, end: bool = False) -> bool:
        """Have a region accept nothing more and hand over what waits there, or `end` that; whether it changed anything.

        ValueError: there is no such region, or no other. ConnectionError: it does not answer; it can be repeated.
        """
        if region not in self._regions.actors:
            raise ValueError(f"region {region!r}: allowed are {', '.join(self._regions.actors)}")
        return bool(await self._regions.actors[region].call("drain", not end, timeout_s=DRAIN_TIMEOUT_S))

    # suppression

    async def suppress(self, rows: Sequence[Suppression]) -> int:
        """Put addresses on suppression lists, or off them, in every region; how many rows changed something.

        One region has them on disk before this returns and passes them on; the others are told at once if they answer,
        and by that region otherwise. ConnectionError: no region answers; it can be repeated.
        """
        silent: set[str] = set()
        pages = [rows[start : start + PAGE] for start in range(0, len(rows), PAGE)]
        return sum([await self._suppress_page(page, silent) for page in pages])

    async def _suppress_page(self, rows: Sequence[Suppression], silent: set[str]) -> int:
        """Regions that do not answer join the `silent`, which are not told."""
        data = encode_rows(rows)
        first, changed = await self._regions.persist_in_any("suppress", data, True)
        others = [region for region in self._regions.actors if region != first and region not in silent]
        answers = await asyncio.gather(
            *(self._regions.actors[r].call("suppress", data, False, timeout_s=ANY_TIMEOUT_S) for r in others),
            return_exceptions=True,
        )
        for region, answer in zip(others, answers, strict=True):
            if isinstance(answer, ConnectionError | TimeoutError | SpoolError):
                silent.add(region)
                log.warning(
                    "region %s hears of suppressions later, from region %s: %s", region, first, answer
                )
            elif isinstance(answer, BaseException):
                raise answer
        return int(changed)

    async def suppressions(self, address: str = "") -> AsyncIterator[Suppression]:
        """The rows of the suppression list, all or those of one address, with those that were taken off."""
        if address:
            _, data = await self._regions.persist_in_any("suppressions_of", address)
            for row in decode_rows(data):
                yield row
            return
        region = ""
        after = b""
        while True:
            region, (after, data) = await self._regions.persist_in_any(
                "suppressions", after, PAGE, first=region
            )
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
        """What each actor has used, by its name, a pool's by the pool's; those that do not answer are left out."""
        actors = await self._running()
        answers = await asyncio.gather(
            *(self._actor(actor).call("usage", timeout_s=USAGE_TIMEOUT_S) for actor in actors.values()),
            return_exceptions=True,
        )
        found: dict[str, ProcessUsage] = {}
        for name, answer in zip(actors, answers, strict=True):
            if isinstance(answer, ConnectionError | TimeoutError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            found[name] = answer
        self._others = {name: self._others[name] for name in actors.values()}
        return found

    async def _running(self) -> dict[str, str]:
        """All actors by what people call them. Regions say which process is which pool, and which are spares."""
        names = await ask_head("list actors", actor_names)
        found = {name: name for name in names if not name.startswith(POOLS)}
        answers = await asyncio.gather(
            *(actor.call("pools", timeout_s=USAGE_TIMEOUT_S) for actor in self._regions.actors.values()),
            return_exceptions=True,
        )
        for region, answer in zip(self._regions.actors, answers, strict=True):
            if isinstance(answer, ConnectionError | TimeoutError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            for pool in answer:
                name = (
                    f"{POOLS}{region}:{pool.name}" if pool.name else f"spare:{pool.actor.removeprefix(POOLS)}"
                )
                found[name] = pool.actor
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
        self._loop.run_until_complete(self.asynchronous.close())
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


def _pages(groups: Mapping[str, list[int]], size: int) -> Iterator[tuple[str, list[int]]]:
    for name, group in groups.items():
        for first in range(0, len(group), size):
            yield name, group[first : first + size]
