"""The schema of fleet.yaml: field, type, default, meaning.

Every model is frozen and refuses unknown keys; the types of single values are in engine/config/types.py.
`model_validate_json(model_dump_json())` gives an equal configuration. Larger sections have a module of their own
beside this one. The checks that concern more than one entry (unique names, references) are in
engine/config/checks.py.

`docs/configuration.md` is made from this file by tools/write_configuration_docs.py.
"""

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_serializer, model_validator

from engine.config.alerts import AlertsConfig
from engine.config.blocklists import BlocklistsConfig
from engine.config.bounces import BouncesConfig, IngressConfig, TokensConfig
from engine.config.dns_failover import DnsFailoverConfig
from engine.config.doctor import DoctorConfig
from engine.config.metrics import MetricsConfig
from engine.config.quality import QualityConfig, QualityName
from engine.config.reputation import ReputationConfig
from engine.config.shaping import AutomationRule, ShapingConfig
from engine.config.signing import DkimConfig
from engine.config.suppression import SuppressionConfig
from engine.config.tls import TlsConfig
from engine.config.types import (
    NAME,
    ClusterAddress,
    Count,
    DomainPattern,
    Duration,
    EhloName,
    HostPort,
    IpAddress,
    MapSize,
    Name,
    Netblock,
    Port,
    RateOrUnlimited,
    Section,
    SegmentSize,
    Size,
    SourceIp,
    StreamNames,
    TlsMode,
)
from engine.config.units import format_duration
from engine.config.unsubscribe import UnsubscribeConfig
from engine.config.warmup import WarmupConfig
from engine.values.ids import MAX_REGION_NUMBER

MAX_SOURCES = 65_000  # the scheduler numbers them with 16 bits


class FleetSection(Section):
    name: Name = Field("fleet", description="Name of the fleet: in metrics, and the name of its actors.")
    replicas: Literal[0, 1] = Field(
        0,
        description="Copies of each message in another region, or on another node of its region if it has several. "
        "With 1, a receipt waits for the copy, and a region that dies is covered by its peers; on trial "
        "(docs/failover.md).",
    )
    degraded: Literal["refuse", "accept_local"] = Field(
        "refuse",
        description="With `replicas: 1`, when no other region can take the copy: refuse new mail, or accept it with a "
        "receipt that is marked as degraded.",
    )
    hand_over_after: Duration | None = Field(
        None,
        description="Mail that no source of its region can send for at least so much longer, because all are "
        "suspended, out of the rotation or have used up their caps for its destination, is handed over to a region "
        "that can send it now (docs/failover.md). Each message at most once. Without it, it waits.",
    )
    hand_over_overloaded: Duration | None = Field(
        900.0,
        description="With `hand_over_after`: mail of a region in which what goes next to its destination has been "
        "ready for so long, whatever it waits for, is handed over to a region in which it leaves clearly sooner, in "
        "small portions (docs/failover.md). `null`: never.",
    )


class SpoolConfig(Section):
    directory: Path = Field(
        Path("var/spool"),
        description="Where each region keeps its spool, in a folder of its name. On a local disk.",
    )
    map_size: MapSize = Field(
        64 * 2**30,
        description="Largest size of a region's LMDB index: address space, not disk. Settling may go beyond it.",
    )
    min_free: Size = Field(
        512 * 2**20,
        description="Free disk space that accepting leaves, beside room to defer all that is queued.",
    )
    watermark: float = Field(
        0.8,
        gt=0,
        lt=1,
        description="Share of `map_size` at which nothing more is accepted; the rest is for settling.",
    )
    segment_size: SegmentSize = Field(64 * 2**20, description="Size at which a body segment file is sealed.")


class RegionConfig(Section):
    """A region of one node, or one node of a region of several: a shard of it (docs/adr/0034-shards.md)."""

    name: Name = Field(
        description="Name of the region, whose node carries the Ray resource `region:NAME`; or of a shard, whose node "
        "carries `shard:NAME` and `region:SHARD_OF`."
    )
    number: int = Field(
        ge=1,
        le=MAX_REGION_NUMBER,
        strict=True,
        description="Upper 16 bits of the region's (or shard's) message ids. Never give a number to another one.",
    )
    shard_of: Name | None = Field(
        None,
        description="The region of several nodes to which this one belongs, with all that name the same. Each shard "
        "has its own spool, sources and gateway; the others of its region cover for it first.",
    )

    @property
    def region(self) -> str:
        """The region that people mean: of a shard, the one to which it belongs."""
        return self.shard_of or self.name


class Tenancy(Section):
    """Written `shared`, `{dedicated: acme}` or `{hybrid: acme}`."""

    kind: Literal["shared", "dedicated", "hybrid"] = "shared"
    tenant: str = ""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, Tenancy):
            return value
        if value == "shared":
            return {"kind": "shared"}
        if isinstance(value, Mapping) and len(value) == 1:
            kind, tenant = next(iter(value.items()))
            if kind in ("dedicated", "hybrid") and isinstance(tenant, str) and NAME.fullmatch(tenant):
                return {"kind": kind, "tenant": tenant}
        raise ValueError("allowed are `shared`, `{dedicated: TENANT}` and `{hybrid: TENANT}`")

    @model_serializer
    def _write(self) -> str | dict[str, str]:
        return "shared" if self.kind == "shared" else {self.kind: self.tenant}


def _netblock_of(data: dict[str, Any]) -> str:
    """The block that providers judge together by default: an IPv4 address's /24, an IPv6 one's /48."""
    address = ipaddress.ip_address(data["ip"])
    return str(ipaddress.ip_network((address, 24 if address.version == 4 else 48), strict=False))


class SourceConfig(Section):
    """An egress IP. Its number in the engine is its position in `sources`: append, do not reorder."""

    name: Name = Field(description="Name of the source in logs, metrics and events.")
    region: Name = Field(description="The region, or the shard of one, whose node holds the address.")
    ip: SourceIp = Field(description="The address that sessions are bound to.")
    ehlo: EhloName = Field(
        description="Name in EHLO: has an A or AAAA record for `ip`, and is the PTR of it."
    )
    streams: StreamNames = Field(description="The streams that may use it.")
    tenancy: Tenancy = Field(
        Tenancy.model_validate("shared"),
        description="`shared`; `{dedicated: TENANT}`: only that tenant; `{hybrid: TENANT}`: it first.",
    )
    netblock: Netblock = Field(
        default_factory=_netblock_of,
        description="Network that providers judge together. Default: /24 or /48 of `ip`.",
    )

    quality: tuple[QualityName, ...] = Field(
        (),
        description="Classes of tenants (`new`, `good`, `poor`) that share it. A class that a source of the stream "
        "names goes over those that name it only; a class that none names goes over the sources that name nothing.",
    )
    warmup: Name | None = Field(
        None,
        description="Warm-up table for a new address: `conservative`, `standard`, or one of `warmup.tables`. "
        "Default: the source is warm.",
    )

    def tenancy_of(self) -> tuple[str, str]:
        """(kind, tenant); the tenant of a shared source is ""."""
        return self.tenancy.kind, self.tenancy.tenant


class ResolverConfig(Section):
    nameservers: tuple[IpAddress, ...] = Field(
        (), description="Resolvers to ask; empty: those of /etc/resolv.conf."
    )
    port: Port = Field(53, description="Port of `nameservers`.")
    dnssec: Literal["ignore", "trust"] = Field(
        "ignore",
        description="`trust`: the `nameservers` validate DNSSEC and the way to them is safe (loopback, own "
        "network): their word that an answer is authentic counts, and DANE (RFC 7672) with it. Needs `nameservers`.",
    )
    timeout: Duration = Field(5.0, description="Deadline of one look-up, with all its retries.")
    cache_entries: Count = Field(
        100_000, description="Answers kept in memory; the least recently used goes first."
    )
    min_ttl: Duration = Field(30.0, description="An answer is kept at least so long, whatever its TTL says.")
    max_ttl: Duration = Field(86400.0, description="An answer is kept at most so long.")
    negative_ttl: Duration = Field(300.0, description="A permanent negative answer is kept at most so long.")
    failure_ttl: Duration = Field(
        30.0, description="A failed look-up (SERVFAIL, timeout) is not repeated for so long."
    )
    max_hosts: Annotated[int, Field(ge=1, le=100, strict=True)] = Field(
        10,
        description="MX hosts and addresses per host used at most, the most preferred first. Of more equal MX hosts "
        "than that, others every quarter of an hour.",
    )
    private_addresses: Literal["refuse", "allow"] = Field(
        "refuse",
        description="Whether an MX host may be on a loopback, private or other non-public address. "
        "`allow` is for tests: a stranger's DNS could point the engine at your own network.",
    )
    private_networks: tuple[Netblock, ...] = Field(
        (),
        description="Non-public networks in which MX hosts may be nevertheless, as in 10.20.0.0/16.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.dnssec == "trust" and not self.nameservers:
            raise ValueError("dnssec: trust is allowed only together with nameservers")
        if self.min_ttl > self.max_ttl:
            raise ValueError("min_ttl: allowed is at most max_ttl")
        return self


class AuthConfig(Section):
    username: str = Field(min_length=1, description="User name at the smart host.")
    password_file: Path = Field(
        description="File that holds the password, alone. Not in the configuration itself."
    )


class RouteConfig(Section):
    """The most specific pattern wins: a whole domain, then the longest `*.` pattern, then `*`."""

    domains: Annotated[tuple[DomainPattern, ...], Field(min_length=1)] = Field(
        description="Recipient domains: `example.com`, `*.example.com` (all below it), `*` (all)."
    )
    provider: Name = Field("default", description="The provider profile that holds for them.")
    hosts: tuple[HostPort, ...] = Field(
        (),
        description="Static hosts, in order of preference (smart host, tests). Empty: by MX, always port 25.",
    )
    tls: TlsMode | None = Field(
        None,
        description="`disabled` needs an entry in `tls.exceptions` too. Default: required unless excepted.",
    )
    auth: AuthConfig | None = Field(
        None, description="Credentials for a smart host. Only with `hosts` and TLS."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.auth is not None and not self.hosts:
            raise ValueError("auth: allowed only together with hosts")
        if self.auth is not None and self.tls == "disabled":
            raise ValueError("auth: a password is never sent without TLS; allowed is tls: required")
        return self


class ProviderConfig(Section):
    """Overrides of a provider profile; what is not given stays as in engine/providers/<name>.yaml."""

    mx_suffixes: tuple[DomainPattern, ...] | None = Field(
        None, description="A domain belongs to the provider if its best MX host is one of these or below one."
    )
    domains: tuple[DomainPattern, ...] | None = Field(
        None,
        description="Recipient domains known to belong to it, for `config explain` without DNS.",
    )
    max_connections: Count | None = Field(None, description="Connections at once from one source.")
    max_connections_total: Count | None = Field(
        None, description="Connections at once from all sources of a node."
    )
    adaptive_connections: bool | None = Field(
        None,
        description="Use fewer connections while answers are slow or much is deferred (`shaping.adaptive`).",
        strict=True,
    )
    messages_per_connection: Count | None = Field(None, description="Messages before a session is closed.")
    max_recipients: Count | None = Field(None, description="Recipients in one transaction.")
    rate: RateOrUnlimited | None = Field(
        None, description="Messages per time from one source, as `100/min`, or `unlimited`."
    )
    daily_cap: Count | None = Field(None, description="Messages per UTC day from one source.")
    rate_total: RateOrUnlimited | None = Field(
        None,
        description="Messages per time from all sources of a region together, or `unlimited` (default). Its pool is "
        "one process then.",
    )
    daily_cap_total: Count | None = Field(
        None, description="Messages per UTC day from all sources of a region together. Default: no cap."
    )
    pipelining: bool | None = Field(None, description="Use PIPELINING if the server offers it.", strict=True)
    chunking: bool | None = Field(
        None, description="Use CHUNKING (BDAT) if the server offers it.", strict=True
    )
    idle_timeout: Duration | None = Field(None, description="An idle session is closed after so long.")
    transaction_timeout: Duration | None = Field(
        None, description="From MAIL to the last reply, however often the peer shows a little progress."
    )
    min_data_rate: Size | None = Field(
        None,
        description="What a message must leave at per second, after three minutes (RFC 5321 section 4.5.3.2.5), "
        "or the session ends and the message is deferred.",
    )
    automation: tuple[AutomationRule, ...] | None = Field(
        None, description="What this provider's replies change; given, it replaces the shipped rules."
    )


class RetryConfig(Section):
    first: Duration = Field(300.0, description="Wait after the first attempt.")
    factor: float = Field(2.0, ge=1, le=10, description="Each further wait is so much longer.")
    max: Duration = Field(4 * 3600.0, description="Longest wait.")
    jitter: float = Field(
        0.2, ge=0, lt=1, description="Each wait is varied at random by this share of itself."
    )
    schedule: tuple[Duration, ...] = Field(
        (), description="Explicit waits instead of first, factor and max; the last one repeats."
    )
    expire: Duration = Field(5 * 86400.0, description="Age at which an undelivered message is given up.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        first = self.schedule[0] if self.schedule else self.first
        if not self.schedule and self.max < self.first:
            raise ValueError(f"max: allowed is at least first ({format_duration(self.first)})")
        if self.expire <= first:
            raise ValueError(f"expire: allowed is more than the first wait ({format_duration(first)})")
        return self


class MarketingRetryConfig(RetryConfig):
    """As RetryConfig, but bulk mail that is two days late is not wanted any more."""

    expire: Duration = Field(2 * 86400.0, description="Age at which an undelivered message is given up.")


class RetryStreams(Section):
    transactional: RetryConfig = Field(RetryConfig(), description="Retries of transactional mail.")
    notification: RetryConfig = Field(RetryConfig(), description="Retries of notifications.")
    marketing: MarketingRetryConfig = Field(MarketingRetryConfig(), description="Retries of marketing mail.")


class LimitsConfig(Section):
    max_message_size: Size = Field(50 * 2**20, description="Largest message accepted.")
    max_recipients: Count = Field(1000, description="Most recipients of one submitted message.")
    ready_window: Count = Field(
        2000, description="Ready messages in memory for one flow; the rest stays on disk."
    )
    ready_total: Count = Field(200_000, description="Ready messages in memory for all flows of a region.")
    pool_credits: Count = Field(2000, description="Messages that one process of a pool may hold unsettled.")
    pool_shards: Annotated[int, Field(ge=1, le=32, strict=True)] | None = Field(
        None,
        description="Most processes that one provider's pool may have on a node; never more than cores. Without it: one"
        " core is left to the region, the others are for pools.",
    )
    pool_busy: Annotated[float, Field(gt=0, le=1)] = Field(
        0.85,
        description="Share of a core that a pool's busiest process uses for three seconds before another is started.",
    )
    pool_spares: Annotated[int, Field(ge=0, le=8, strict=True)] = Field(
        1,
        description="Spare processes on each node: one takes the place of a pool's process that dies, or is the next "
        "that is needed. 0: mail waits until one is started.",
    )
    batch: Annotated[int, Field(ge=1, le=10_000, strict=True)] = Field(
        500, description="Most messages in one batch between region and pool."
    )
    window_per_connection: Count = Field(
        50,
        description="Messages in flight per connection of a source: keeps it busy over a round trip.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.ready_total < self.ready_window:
            raise ValueError("ready_total: allowed is at least ready_window")
        if self.pool_credits < self.batch:
            raise ValueError("pool_credits: allowed is at least batch")
        return self


class TenantConfig(Section):
    weight: Annotated[int, Field(ge=1, le=1000, strict=True)] = Field(
        1, description="Share of a tenant relative to the others within a stream."
    )
    quality: Literal["auto"] | QualityName = Field(
        "auto", description="`auto`: as its own mail earns it (section `quality`); else it is always that."
    )


class RayConfig(Section):
    address: ClusterAddress | None = Field(
        None, description="Address of a running cluster. Default: `up` starts one on this machine."
    )


class EventsConfig(Section):
    directory: Path = Field(
        Path("var/events"), description="Where each region writes its events as JSON lines."
    )
    max_file: Size = Field(
        256 * 2**20, description="Size at which an events file is closed and the next begun."
    )


class FleetConfig(Section):
    """The whole of fleet.yaml."""

    fleet: FleetSection = Field(FleetSection(), description="The fleet.")
    spool: SpoolConfig = Field(SpoolConfig(), description="The durable queue of each region.")
    regions: Annotated[tuple[RegionConfig, ...], Field(min_length=1)] = Field(description="The regions.")
    sources: Annotated[tuple[SourceConfig, ...], Field(min_length=1, max_length=MAX_SOURCES)] = Field(
        description="The egress IPs."
    )
    resolver: ResolverConfig = Field(ResolverConfig(), description="DNS.")
    routes: tuple[RouteConfig, ...] = Field((), description="Domains that do not go by their MX records.")
    providers: dict[Name, ProviderConfig] = Field(
        {}, description="Overrides of provider profiles, and new ones."
    )
    retry: RetryStreams = Field(RetryStreams(), description="When deferred mail is tried again, per stream.")
    limits: LimitsConfig = Field(LimitsConfig(), description="Bounds.")
    tls: TlsConfig = Field(TlsConfig(), description="Transport security.")
    dkim: DkimConfig = Field(DkimConfig(), description="Signatures of outgoing mail.")
    reputation: ReputationConfig = Field(
        ReputationConfig(), description="When a source leaves the rotation, and how it returns."
    )
    blocklists: BlocklistsConfig = Field(
        BlocklistsConfig(),
        description="DNS blocklists that take a source out of the rotation. Default: none is asked.",
    )
    quality: QualityConfig = Field(
        QualityConfig(), description="When a tenant is moved to a pool apart, and how it returns."
    )
    warmup: WarmupConfig = Field(WarmupConfig(), description="Warm-up of new sources.")
    shaping: ShapingConfig = Field(ShapingConfig(), description="How limits fall and rise with the replies.")
    suppression: SuppressionConfig = Field(
        SuppressionConfig(), description="Which suppression list an address goes to, by what happened."
    )
    tokens: TokensConfig = Field(
        TokensConfig(), description="Keys that sign return paths and unsubscribe links."
    )
    bounces: BouncesConfig = Field(BouncesConfig(), description="Bounces and complaints that come as mail.")
    unsubscribe: UnsubscribeConfig = Field(UnsubscribeConfig(), description="Unsubscribe links.")
    ingress: IngressConfig = Field(IngressConfig(), description="What comes in: the gateways' listeners.")
    metrics: MetricsConfig = Field(
        MetricsConfig(), description="Figures for Prometheus and OpenTelemetry. Default: nobody gets them."
    )
    alerts: AlertsConfig = Field(AlertsConfig(), description="When the fleet calls for somebody.")
    tenants: dict[Name, TenantConfig] = Field({}, description="Tenants with settings of their own.")
    ray: RayConfig = Field(RayConfig(), description="The Ray cluster.")
    events: EventsConfig = Field(EventsConfig(), description="The event log.")
    dns_failover: DnsFailoverConfig | None = Field(
        None, description="Keeps the submission host name to the healthy regions. Default: no DNS is updated."
    )
    doctor: DoctorConfig = Field(DoctorConfig(), description="What `sendfleet doctor` looks at.")

    def members(self, name: str) -> tuple[str, ...]:
        """The shards of a region, in the order of the configuration; of a shard or a region of one node, that one.

        ValueError: there is no such region.
        """
        found = tuple(entry.name for entry in self.regions if name in (entry.name, entry.region))
        if not found:
            known = dict.fromkeys(n for entry in self.regions for n in (entry.region, entry.name))
            raise ValueError(f"region {name!r}: allowed are {', '.join(known)}")
        return found

    def shard_of(self, name: str) -> str | None:
        """The region of several nodes to which this one belongs."""
        return next(entry.shard_of for entry in self.regions if entry.name == name)

    def near_first(self, name: str) -> list[RegionConfig]:
        """All of them: this one, its siblings, then those of other regions."""
        near = (name, *self.siblings(name))
        return sorted(self.regions, key=lambda e: near.index(e.name) if e.name in near else len(near))

    def siblings(self, name: str) -> tuple[str, ...]:
        """The other shards of the same region."""
        own = next(entry.region for entry in self.regions if entry.name == name)
        return tuple(entry.name for entry in self.regions if entry.region == own and entry.name != name)
