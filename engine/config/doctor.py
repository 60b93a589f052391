"""The section `doctor` of fleet.yaml: what `sendfleet doctor` looks at besides the domain itself."""

from pydantic import Field

from engine.config.types import Section, ZoneName


class DoctorConfig(Section):
    blocklists: tuple[ZoneName, ...] = Field(
        (),
        description="DNS blocklists (RFC 5782) that `sendfleet doctor` asks about each source, as "
        "`zen.spamhaus.org`. Many refuse public resolvers and large users: read their terms.",
    )
    domain_blocklists: tuple[ZoneName, ...] = Field(
        (), description="The same for domain names, as `dbl.spamhaus.org`."
    )
