"""A PoolEngine with everything around it in memory."""

import asyncio
import random
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from engine.delivery.pool import PoolEngine
from engine.delivery.wire import ENTRY, Header, decode_report, encode_header
from engine.routing.route import HostAnswer, HostStatus
from engine.smtp.opener import open_session
from engine.tls.policy import ENCRYPT, PLAIN, VERIFIED, HostPolicy, PolicyRefusal
from engine.values.clock import SystemClock
from engine.values.options import Options
from engine.values.outcome import Outcome

BODY = b"Message-ID: <1@example.com>\r\nDate: x\r\n\r\n.hidden dot\r\nbye\r\n"
PATIENT: Mapping[str, Any] = {"timeouts_s": (0.0, *[20.0] * 7), "open_timeout_s": 20.0, "hold_s": 20.0}
"""So that no timeout runs out on a loaded machine; a test that is about one sets it short."""


@dataclass(frozen=True, slots=True)
class Record:
    sender: str
    recipient: str
    content: tuple[int, ...]
    id: int = 0
    accepted_ms: int = 1_700_000_000_000
    expires_ms: int = 1_700_000_600_000
    options: Options | None = None


@dataclass(frozen=True, slots=True)
class Host:
    name: str
    port: int
    preference: int = 0


@dataclass(frozen=True, slots=True)
class Route:
    site: str
    hosts: tuple[Host, ...]
    tls: str = "disabled"
    auth: Any = None


@dataclass(frozen=True, slots=True)
class Rate:
    count: int
    period_s: float


@dataclass(frozen=True, slots=True)
class Profile:
    name: str = "test"
    max_connections: int = 2
    max_connections_total: int = 0
    messages_per_connection: int = 100
    max_recipients: int = 1
    rate: Rate | None = None
    rate_total: Rate | None = None
    pipelining: bool = True
    chunking: bool = True
    idle_timeout_s: float = 60.0
    transaction_timeout_s: float = 7200.0
    min_data_rate: int = 500


@dataclass(frozen=True, slots=True)
class Source:
    ip: str = "127.0.0.2"
    ehlo: str = "mta.example.com"
    name: str = "mta"


@dataclass
class World:
    """Records, routes and the reports of one pool. Ids are small numbers; recipients are u<id>@<domain>."""

    routes: dict[str, Any]
    domain_of: dict[int, str] = field(default_factory=dict)
    body_bytes: bytes = BODY
    same_body: bool = False
    tenant: str = "default"
    expires_ms: int = 1_700_000_600_000
    options: dict[int, Options] = field(default_factory=dict)
    gone: set[int] = field(default_factory=set)
    outcomes: list[Outcome] = field(default_factory=list)
    batch_numbers: list[int] = field(default_factory=list)
    sequences: list[int] = field(default_factory=list)
    notices: list[tuple[str, str]] = field(default_factory=list)
    hosts: dict[str, HostAnswer] = field(default_factory=dict)
    policies: dict[str, HostPolicy | PolicyRefusal] = field(default_factory=dict)

    def record(self, id_: int) -> Record | None:
        if id_ in self.gone:
            return None
        domain = self.domain_of.get(id_, "example.net")
        content = (1, 0 if self.same_body else id_, len(self.body_bytes), 0)
        recipient = f"u{id_}@{domain}"
        options = self.options.get(id_)
        return Record(
            "sender@example.com", recipient, content, id_, expires_ms=self.expires_ms, options=options
        )

    def fetch(self, ids: bytes) -> Sequence[Any]:
        return [self.record(id_) for (id_,) in struct.iter_unpack("<Q", ids)]

    def body(self, content: Any) -> bytes:
        return self.body_bytes

    def tenant_of(self, record: Any) -> str:
        return self.tenant

    def cached(self, domain: str) -> Any:
        return self.routes.get(domain)

    async def route(self, domain: str) -> Any:
        await asyncio.sleep(0)
        return self.routes[domain]

    async def addresses(self, host: str) -> HostAnswer:
        usable = HostAnswer(HostStatus.USABLE, ((4, "127.0.0.1"),), canonical=host)
        return self.hosts.get(host, usable)

    async def policy(self, route: Route, host: Host, answer: HostAnswer) -> HostPolicy | PolicyRefusal:
        if route.auth is not None:
            return VERIFIED
        return self.policies.get(host.name, PLAIN if route.tls == "disabled" else ENCRYPT)

    def wished(self, route: Route, tls_wish: int) -> Route:
        return replace(route, tls=f"wish {tls_wish}")

    def report(self, data: bytes) -> None:
        report = decode_report(data)
        self.outcomes += report.outcomes
        self.batch_numbers += report.batch_numbers
        self.sequences.append(report.sequence)
        self.notices += report.notices

    def of(self, id_: int) -> Outcome:
        found = [outcome for outcome in self.outcomes if outcome.id == id_]
        assert len(found) == 1, f"id {id_}: {len(found)} outcomes"
        return found[0]


def make_pool(world: World, profile: Profile | None = None, **options: Any) -> PoolEngine:
    settings: dict[str, Any] = {
        "profile": profile or Profile(),
        "reader": world,
        "router": world,
        "sources": {0: Source(), 1: Source("127.0.0.3")},
        "clock": SystemClock(),
        "report": world.report,
        "render": lambda id_, record: BODY,
        "rng": random.Random(7),
        "opener": open_session,
        "tick_s": 0.01,
        **PATIENT,
    }
    return PoolEngine(**(settings | options))


async def hand_over(
    pool: PoolEngine,
    ids: Sequence[int],
    *,
    batch: int = 1,
    epoch: int = 1,
    source: int = 0,
    send_at_ns: int = 0,
) -> None:
    entries = b"".join(ENTRY.pack(id_, send_at_ns, 9, source, 0, 0, 0, 0) for id_ in ids)
    await pool.deliver(encode_header(Header(batch, epoch, {9: "test"})), entries)


async def settled(world: World, count: int, *, timeout_s: float = 60.0) -> None:
    """Wait until so many outcomes have been reported, and a little longer for one too many."""
    async with asyncio.timeout(timeout_s):
        while len(world.outcomes) < count:
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.02)
