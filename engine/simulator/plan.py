"""The plan of a simulation: a fleet, its traffic, how the providers behave, and what happens when. YAML, validated.

A plan has no directories and no secrets; what it says about the fleet is the same as in fleet.yaml.
"""

import ipaddress
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, ValidationError, WithJsonSchema, model_validator

from engine.config.checks import Problem
from engine.config.load import ConfigError, parse_fleet
from engine.config.quality import QualityName
from engine.config.schema import FleetConfig
from engine.config.strict_yaml import YamlError, read_yaml
from engine.config.types import Count, Duration, IpAddress, Name, Netblock, Section, StreamName
from engine.config.units import format_duration, parse_duration
from engine.providers.profiles import load_profiles
from engine.simulator.models import ModelConfig

MAX_SOURCES = 5_000

Moment = Annotated[
    float,
    PlainValidator(parse_duration),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "title": "duration since the start"}),
]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1_000_000)]

# Weights of the 24 hours (UTC). `office` and `evening` are our guesses of two common campaigns.
PATTERNS: Mapping[str, tuple[float, ...]] = {
    "flat": (1,) * 24,
    "office": (0, 0, 0, 0, 0, 0, 1, 3, 6, 8, 8, 7, 5, 6, 7, 6, 5, 3, 1, 0, 0, 0, 0, 0),
    "evening": (1, 0, 0, 0, 0, 0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 6, 9, 10, 9, 7, 5, 3, 2),
    "burst": (0, 0, 0, 0, 0, 0, 0, 0, 1, *(0,) * 15),
}


class SourceGroup(Section):
    """`count` sources with addresses in a row, named NAME-1, NAME-2, ..."""

    name: Name
    region: Name
    count: Annotated[int, Field(ge=1, le=MAX_SOURCES, strict=True)] = 1
    first_ip: IpAddress
    streams: Annotated[tuple[StreamName, ...], Field(min_length=1)] = ("marketing",)
    warmup: Name | None = None
    netblock: Netblock | None = None
    tenancy: Any = "shared"
    quality: tuple[QualityName, ...] = ()
    history: Annotated[int, Field(ge=0, le=1_000_000_000, strict=True)] | None = Field(
        None,
        description="Messages a day that each provider is used to. Default: 0 with a warm-up, else plenty.",
    )

    def rows(self) -> list[dict[str, Any]]:
        """The sources as fleet.yaml writes them."""
        first = ipaddress.ip_address(self.first_ip)
        rows: list[dict[str, Any]] = []
        for number in range(self.count):
            row: dict[str, Any] = {
                "name": f"{self.name}-{number + 1}",
                "region": self.region,
                "ip": str(first + number),
                "ehlo": f"mta{number + 1}.{self.name}.example.com",
                "streams": list(self.streams),
                "tenancy": self.tenancy,
                "quality": list(self.quality),
            }
            rows.append(row | {k: v for k in ("warmup", "netblock") if (v := getattr(self, k)) is not None})
        return rows


class Traffic(Section):
    """Mail of one kind. `shares`: what goes to which site; they need not add up to 1."""

    name: Name
    per_day: Count
    tenant: Name = "default"
    stream: StreamName = "marketing"
    hours: (
        Literal["flat", "office", "evening", "burst"]
        | Annotated[tuple[Weight, ...], Field(min_length=24, max_length=24)]
    ) = "flat"
    shares: Annotated[dict[str, Weight], Field(min_length=1)] = Field(
        {"google": 0.5, "outlook": 0.25, "yahoo": 0.25}, description="Weights of providers and `mx:` sites."
    )
    unknown: Share = Field(0.005, description="Share of recipients that do not exist.")
    complaints: Share = Field(0.0003, description="Share of delivered messages that are reported as spam.")
    begins: Moment = 0.0
    ends: Moment | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not sum(self.shares.values()) > 0 or not sum(self.weights()) > 0:
            raise ValueError("shares, hours: allowed are weights of which one at least is above zero")
        return self

    def weights(self) -> tuple[float, ...]:
        return PATTERNS[self.hours] if isinstance(self.hours, str) else self.hours


class Happening(Section):
    """Something that happens at a time.

    storm: the provider defers `share` of all mail with its rate-limit reply. listing: the provider (all, if none is
    given) refuses the sources of a netblock with its netblock reply. block: the same for single sources, with the block
    reply. dnsbl: a DNS blocklist names the sources. region_down: the region stops, others take its mail over; it comes
    back from its state on disk. restart: the region's process dies and starts again from disk. owner_restart: the same
    for the owners of sources.
    """

    kind: Literal["storm", "listing", "block", "dnsbl", "region_down", "restart", "owner_restart"]
    at: Moment
    lasts: Duration = 3600.0
    provider: Name | None = None
    netblock: Netblock | None = None
    sources: tuple[Name, ...] = ()
    region: Name | None = None
    share: Share = 1.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        needs = {
            "storm": "provider",
            "listing": "netblock",
            "block": "sources",
            "dnsbl": "sources",
            "region_down": "region",
            "restart": "region",
            "owner_restart": "sources",
        }[self.kind]
        if not getattr(self, needs):
            raise ValueError(f"{needs}: needed by kind {self.kind}")
        return self


class Plan(Section):
    """The whole of a plan."""

    name: Name
    about: str = ""
    seed: Annotated[int, Field(ge=0, le=2**31, strict=True)] = 1
    start: str = Field("2026-01-05", description="The UTC day at which the clock begins.")
    duration: Duration
    tick: Duration = Field(1.0, description="Step of the clock; also how far ahead the scheduler may grant.")
    report: Duration = Field(5.0, description="Time between the regions' reports to the sources' owners.")
    samples: Annotated[int, Field(ge=10, le=5000, strict=True)] = 240
    window: Count = Field(20_000, description="Messages of one kind for one site in a region's memory.")
    sources: Annotated[tuple[SourceGroup, ...], Field(min_length=1)]
    traffic: Annotated[tuple[Traffic, ...], Field(min_length=1)]
    models: dict[str, ModelConfig] = Field(
        {}, description="How providers behave, beside the built-in models."
    )
    events: tuple[Happening, ...] = ()
    fleet: dict[str, Any] = Field({}, description="Other sections of fleet.yaml.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            datetime.strptime(self.start, "%Y-%m-%d")
        except ValueError:
            raise ValueError(f"start {self.start!r}: allowed is a day as in 2026-01-05") from None
        if not 0.01 <= self.tick <= 3600:
            raise ValueError("tick: allowed is 10ms to 1h")
        if self.duration < self.tick:
            raise ValueError("duration: allowed is at least tick")
        names = [group.name for group in self.sources]
        kinds = [traffic.name for traffic in self.traffic]
        for key, values in (("sources", names), ("traffic", kinds)):
            if len(set(values)) < len(values):
                raise ValueError(f"{key}: a name is given twice")
        if sum(group.count for group in self.sources) > MAX_SOURCES:
            raise ValueError(f"sources: allowed are {MAX_SOURCES} in all")
        return self

    @property
    def start_ms(self) -> int:
        return round(datetime.strptime(self.start, "%Y-%m-%d").replace(tzinfo=UTC).timestamp() * 1000)

    def fleet_config(self) -> FleetConfig:
        """The fleet that is simulated; raises ConfigError."""
        regions = dict.fromkeys(group.region for group in self.sources)
        data: dict[str, Any] = {
            "regions": [{"name": name, "number": number} for number, name in enumerate(regions, 1)],
            **self.fleet,
            "sources": [row for group in self.sources for row in group.rows()],
        }
        config = parse_fleet(data, f"plan {self.name}")
        names = {source.name for source in config.sources}
        known = set(load_profiles(config.providers))
        places = [("models", name) for name in self.models]
        places += [(f"traffic.{t.name}.shares", site) for t in self.traffic for site in t.shares]
        places += [("events.provider", e.provider) for e in self.events if e.provider is not None]
        for place, site in places:
            if site not in known and not (site.startswith("mx:") and len(site) > 3):
                problem = Problem(
                    f"{place}.{site}", site, f"allowed are mx: sites and {', '.join(sorted(known))}"
                )
                raise ConfigError(f"plan {self.name}", (problem,))
        for event in self.events:
            unknown = sorted(set(event.sources) - names)
            if unknown:
                raise ConfigError(
                    f"plan {self.name}",
                    (Problem("events.sources", unknown[0], f"allowed are {len(names)} sources"),),
                )
            if event.region is not None and event.region not in regions:
                allowed = ", ".join(regions)
                problem = Problem("events.region", event.region, f"allowed are {allowed}")
                raise ConfigError(f"plan {self.name}", (problem,))
        return config


def load_plan(path: Path) -> Plan:
    """Read and check a plan; raises ConfigError with everything that is wrong with it."""
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(str(path), (Problem("", str(path), f"cannot be read: {error}"),)) from error
    except YamlError as error:
        raise ConfigError(
            str(path), (Problem(error.place, str(path), f"not YAML: {error.message}"),)
        ) from error
    return parse_plan(data, str(path))


def parse_plan(data: object, file: str = "plan.yaml") -> Plan:
    """Check plain data; raises ConfigError."""
    if not isinstance(data, Mapping):
        raise ConfigError(
            file, (Problem("", data, "allowed is a mapping with name, duration, sources, ..."),)
        )
    try:
        plan = Plan.model_validate(data)
    except ValidationError as error:
        problems = tuple(
            Problem(".".join(str(part) for part in e["loc"]), e["input"], e["msg"]) for e in error.errors()
        )
        raise ConfigError(file, problems) from error
    plan.fleet_config()
    return plan
