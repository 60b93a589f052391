"""The section `blocklists` of fleet.yaml: DNS blocklists (RFC 5782) that take a source out of the rotation."""

import ipaddress
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from engine.config.types import Count, Duration, Section, ZoneName

LISTINGS = ipaddress.ip_network("127.0.0.0/8")
REFUSALS = ipaddress.ip_network("127.255.255.0/24")  # Spamhaus' answers to those it does not serve


def _check_code(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or address not in LISTINGS or address in REFUSALS:
        raise ValueError(
            f"{text!r}: allowed are addresses of 127.0.0.0/8 as in 127.0.0.2, not those of 127.255.255.0/24"
        )
    return str(address)


Code = Annotated[str, AfterValidator(_check_code)]


class BlocklistZone(Section):
    zone: ZoneName = Field(description="The list's zone, as `zen.spamhaus.org`.")
    codes: dict[Code, str] = Field(
        {},
        description="Answers that count, with what they mean, as {127.0.0.2: SBL}. Default: every address of "
        "127.0.0.0/8 counts; those of 127.255.255.0/24 never do.",
    )


class BlocklistsConfig(Section):
    zones: tuple[BlocklistZone, ...] = Field(
        (),
        description="Lists that each region asks about its own sources. A source that is listed leaves the rotation at "
        "all sites; when it is not listed any more it returns through probation. Many lists refuse public "
        "resolvers and large users: read their terms.",
    )
    interval: Duration = Field(900.0, description="Time between two looks at a source.")
    parallel: Annotated[Count, Field(le=100)] = Field(8, description="Questions under way at once.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [zone.zone for zone in self.zones]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"zones: {', '.join(twice)} is given twice")
        if self.interval < 60:
            raise ValueError("interval: allowed is at least 1m, out of respect for the lists")
        return self
