"""The section `dns_failover` of fleet.yaml: the submission host name, kept to the healthy regions' addresses."""

import ipaddress
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from engine.config.types import Duration, IpAddress, Name, Section, ServerAddress, ZoneName

_MIN_TTL_S = 1.0
_MAX_TTL_S = 3600.0


class DnsFailoverConfig(Section):
    zone: ZoneName = Field(description="The zone that is updated (RFC 2136).")
    name: ZoneName = Field(
        description="The host name in it that clients submit to. All its A and AAAA records belong to the fleet."
    )
    addresses: dict[Name, Annotated[tuple[IpAddress, ...], Field(min_length=1)]] = Field(
        description="For each region the addresses at which it takes mail."
    )
    servers: Annotated[tuple[ServerAddress, ...], Field(min_length=1)] = Field(
        description="Servers that take updates, as 192.0.2.53 or 192.0.2.53:5353; the next if one cannot."
    )
    key_file: Path = Field(
        description="File with the TSIG key (RFC 8945), as tsig-keygen writes it, or `ALGORITHM:NAME:SECRET`. "
        "Readable by its owner only."
    )
    authorities: tuple[ServerAddress, ...] = Field(
        (),
        description="Servers that must give the new records after an update. Default: all name servers of the zone, "
        "by its NS records.",
    )
    ttl: Duration = Field(
        30.0, description="TTL of the records: so long a client may still use the old ones."
    )
    min_regions: Annotated[int, Field(ge=1, le=1000, strict=True)] = Field(
        1, description="So many regions stay in the records, whatever their health: the last known good ones."
    )
    down_after: Duration = Field(1.0, description="A region that is down for so long leaves the records.")
    up_after: Duration = Field(60.0, description="A region that is healthy for so long comes back.")
    interval: Duration = Field(10.0, description="Least time between two updates.")
    check: Duration = Field(60.0, description="How often the records are looked at when nothing changes.")
    timeout: Duration = Field(3.0, description="Deadline of one question or update at one server.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.name != self.zone and not self.name.endswith(f".{self.zone}"):
            raise ValueError(f"name: allowed is {self.zone} or a name below it")
        if not self.addresses:
            raise ValueError("addresses: allowed is at least one region")
        if self.min_regions > len(self.addresses):
            raise ValueError(
                f"min_regions: allowed is at most {len(self.addresses)}, the regions of addresses"
            )
        if not (_MIN_TTL_S <= self.ttl <= _MAX_TTL_S and self.ttl == int(self.ttl)):
            raise ValueError("ttl: allowed are whole seconds from 1s to 1h")
        seen: dict[str, str] = {}
        for region, addresses in self.addresses.items():
            for address in addresses:
                if seen.setdefault(address, region) != region:
                    raise ValueError(f"addresses: {address} is both {seen[address]}'s and {region}'s")
                if ipaddress.ip_address(address).is_unspecified or ipaddress.ip_address(address).is_multicast:
                    raise ValueError(f"addresses: {address}: allowed are addresses of hosts")
        return self
