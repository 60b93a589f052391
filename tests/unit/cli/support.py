"""A fleet in memory behind the port of the commands."""

import hashlib
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from engine.cli.main import build_cli
from engine.config.load import load_fleet
from engine.reputation.source import SourceOwner
from engine.values.message import CampaignChunk, CampaignTemplate, ItemError, Message, Receipt
from engine.values.quality import Quality
from engine.values.suppression import Suppression

FLEET = Path(__file__).parents[3] / "examples" / "fleet.yaml"


class MemoryFleet:
    def __init__(self) -> None:
        self.config = load_fleet(FLEET)
        self.chunks: dict[tuple[str, int], CampaignChunk] = {}
        self.batches: dict[bytes, list[Message]] = {}
        self.templates: list[CampaignTemplate] = []
        self.refused: set[str] = set()
        self.away: set[str] = set()
        self.degraded = False
        self.state: dict[str, Any] = {"fleet": "demo", "regions": {}}
        self.error: Exception | None = None
        self.now_ms = 20_000 * 86_400_000
        self.owners: dict[str, SourceOwner] = {}
        self.traced: dict[int, dict[str, Any]] = {}
        self.draining: set[str] = set()
        self.moved: dict[str, Quality] = {}
        self.suppressed: dict[tuple[str, str, int], Suppression] = {}

    async def put_campaign(self, region: str, template: CampaignTemplate, field_names: Sequence[str]) -> int:
        if self.error is not None:
            raise self.error
        self.templates.append(template)
        return 1

    async def progress(self, region: str, tenant: str, campaign: str) -> dict[int, bytes]:
        return {number: chunk.digest for (name, number), chunk in self.chunks.items() if name == region}

    async def accept_chunk(
        self, region: str, campaign_no: int, chunk: CampaignChunk, *, again: bool = False
    ) -> Receipt:
        assert again is bool(self.config.fleet.replicas)
        if region in self.away:
            raise ConnectionError("the actor is away")
        repeated = (region, chunk.number) in self.chunks
        self.chunks[region, chunk.number] = chunk
        errors = [
            ItemError(i, "recipient", r, "no") for i, r in enumerate(chunk.recipients) if r in self.refused
        ]
        ids = tuple((n,) for n in range(len(chunk.recipients)))
        return Receipt(region, ids, tuple(errors), repeated, degraded=self.degraded)

    async def submit(self, batch: Sequence[Message], *, key: bytes | None = None) -> Receipt:
        assert key is not None
        repeated = key in self.batches
        self.batches.setdefault(key, list(batch))
        base = int.from_bytes(hashlib.sha256(key).digest()[:4], "big")
        return Receipt("eu", tuple((base,) for _ in batch), (), repeated, degraded=self.degraded)

    async def status(self, message_id: int) -> dict[str, object] | None:
        return {"state": "delivered", "attempts": 1} if message_id == 0x0001000000000001 else None

    async def source(self, name: str) -> dict[str, Any]:
        return self.owner(name).snapshot(self.now_ms)

    async def order(self, source: str, name: str, site: str, argument: int | str | None = None) -> bool:
        return self.owner(source).order(self.now_ms, name, site, argument)

    def owner(self, name: str) -> SourceOwner:
        """The real one, without its actor."""
        if name not in self.owners:
            self.owners[name] = SourceOwner(self.config, name)
        return self.owners[name]

    async def move_tenant(self, tenant: str, quality: str) -> dict[str, bool]:
        changed = self.moved.get(tenant) != Quality.parse(quality)
        self.moved[tenant] = Quality.parse(quality)
        return {"eu": changed}

    async def drain(self, region: str, *, end: bool = False) -> bool:
        if region not in [entry.name for entry in self.config.regions]:
            raise ValueError(f"region {region!r}: allowed are eu, us")
        changed = (region in self.draining) is end
        (self.draining.discard if end else self.draining.add)(region)
        return changed

    async def trace(
        self, message_id: int, *, recipient: str = "", stream: int = 0, tenant: str = ""
    ) -> dict[str, Any] | None:
        return self.traced.get(message_id)

    async def suppress(self, rows: Sequence[Suppression]) -> int:
        changed = 0
        for row in rows:
            known = self.suppressed.get(row[:3])
            if row.is_live != (known is not None and known.is_live):
                self.suppressed[row[:3]] = row
                changed += 1
        return changed

    async def suppressions(self, address: str = "") -> AsyncIterator[Suppression]:
        for row in self.suppressed.values():
            if address in ("", row.address):
                yield row

    async def figures(self) -> dict[str, Any]:
        return {"regions": {}, "alerts": self.state.get("alerts")}

    async def snapshot(self) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        return self.state

    def recipients(self) -> list[str]:
        return [recipient for chunk in self.chunks.values() for recipient in chunk.recipients]


def invoke(*arguments: str | Path, fleet: MemoryFleet | None = None) -> Result:
    running = fleet or MemoryFleet()
    cli = build_cli(lambda path: running, read=lambda path: running.config)
    return CliRunner().invoke(cli, [str(argument) for argument in arguments])
