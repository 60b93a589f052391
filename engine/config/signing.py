"""The `dkim` section of fleet.yaml: which domains are signed for, and where their keys are.

Only paths stand in the configuration; a private key never does, so it is in no copy of it either.
"""

import functools
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from engine.config.types import DomainPattern, Duration, Name, Section

MIN_MARGIN_S = 3600.0


class DkimKey(Section):
    selector: Name = Field(description="Selector: the public key is in DNS at `SELECTOR._domainkey.DOMAIN`.")
    file: Path = Field(
        description="PEM file with the private key, RSA of 2048 bits or more, or Ed25519, on each node that sends; "
        "not readable for all users. Watched: a new key is used without a restart."
    )


class DkimDomain(Section):
    domain: DomainPattern = Field(description="Signing domain, the `d=` of the signature.")
    senders: tuple[DomainPattern, ...] = Field(
        (),
        description="Domains of the From header that it signs for, as `example.com` or `*.example.com`. "
        "Default: the domain and all below it.",
    )
    sign_all: bool = Field(
        False,
        strict=True,
        description="Add its signatures to all mail, beside those of the From header's domain.",
    )
    tenants: tuple[Name, ...] = Field(
        (),
        description="The tenants that may send in the name of these domains; mail of others with such a From header "
        "is bounced. Default: all.",
    )
    keys: Annotated[tuple[DkimKey, ...], Field(min_length=1, max_length=4)] = Field(
        description="One signature is added for each: usually one RSA and one Ed25519 key (RFC 8463)."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "*" in self.domain:
            raise ValueError("domain: allowed is a domain without `*`")
        selectors = [key.selector for key in self.keys]
        if len(set(selectors)) != len(selectors):
            raise ValueError("keys: allowed is each selector once")
        return self

    def is_for(self, tenant: str) -> bool:
        return not self.tenants or tenant in self.tenants

    def patterns(self) -> tuple[str, ...]:
        """The domains of From that it signs for."""
        if self.senders:
            return self.senders
        return () if self.sign_all else (self.domain, f"*.{self.domain}")


class DkimConfig(Section):
    domains: tuple[DkimDomain, ...] = Field(
        (), description="Signing domains. For a From header the most specific one signs; none: unsigned."
    )
    margin: Duration = Field(
        5 * 86400.0,
        description="A signature expires so long after the message would: it is still good at a host that "
        "held it back. At least 1h.",
    )
    reload: Duration = Field(10.0, description="How often key files are looked at for changes.")
    threads: Annotated[int, Field(ge=1, le=64, strict=True)] = Field(
        2, description="Threads of a pool that sign. An RSA-2048 signature takes 0.2 to 1 ms of one core."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.margin < MIN_MARGIN_S:
            raise ValueError(
                "margin: allowed is 1h or more: a signature must outlive its message's time in the queue"
            )
        names = [domain.domain for domain in self.domains]
        if len(set(names)) != len(names):
            raise ValueError("domains: allowed is each signing domain once")
        seen: dict[str, str] = {}
        for domain in self.domains:
            for pattern in domain.patterns():
                if seen.setdefault(pattern, domain.domain) != domain.domain:
                    raise ValueError(f"domains: both {seen[pattern]} and {domain.domain} sign for {pattern}")
        return self

    def signing_domain(self, from_domain: str) -> DkimDomain | None:
        """The one that signs for a domain of From (in lower case): the most specific pattern decides."""
        found = self._by_pattern.get(from_domain)
        rest = from_domain
        while found is None and rest:
            rest = rest.partition(".")[2]
            found = self._by_pattern.get(f"*.{rest}" if rest else "*")
        return found

    def signing_domains(self, from_domain: str, tenant: str) -> list[DkimDomain]:
        """All that sign a tenant's mail with that domain of From; whether the first is the tenant's, is not asked."""
        own = self.signing_domain(from_domain)
        others = [one for one in self.domains if one.sign_all and one is not own and one.is_for(tenant)]
        return others if own is None else [own, *others]

    @functools.cached_property
    def _by_pattern(self) -> dict[str, DkimDomain]:
        return {pattern: domain for domain in self.domains for pattern in domain.patterns()}
