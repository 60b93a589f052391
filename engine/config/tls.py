"""The `tls` section of fleet.yaml: exceptions from what is demanded of every session, and how it is verified."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from engine.config.types import DomainPattern, Duration, Name, Section
from engine.values.address import AddressError, parse_address


class TlsException(Section):
    """The most specific one holds, by domain before by provider. It replaces DANE and MTA-STS; one by provider not the
    MTA-STS policy of a domain that is enforced."""

    provider: Name | None = Field(
        None,
        description="The provider it is for. Give this or `domain`. An enforced MTA-STS policy of a domain goes "
        "before: the provider is known by MX records, which can be forged.",
    )
    domain: DomainPattern | None = Field(None, description="The recipient domain or pattern it is for.")
    mode: Literal["disabled", "unverified", "verified"] = Field(
        description="`disabled`: mail goes in plain text. `unverified`: TLS is required, DANE and MTA-STS of the "
        "domain are not heeded. `verified`: the certificate must be good for the MX host's name."
    )
    reason: str = Field(min_length=3, description="Why; for whoever reads the metrics.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.provider is None) == (self.domain is None):
            raise ValueError("allowed is exactly one of provider and domain")
        return self


class MtaStsConfig(Section):
    enabled: bool = Field(
        True,
        strict=True,
        description="Whether the MTA-STS policies of recipient domains (RFC 8461) are heeded.",
    )
    timeout: Duration = Field(60.0, description="Deadline of fetching a policy.")


class TlsReportsConfig(Section):
    """Reports on the TLS of sessions, for the domains that ask for them (RFC 8460)."""

    directory: Path = Field(Path("var/tls-reports"), description="Where reports are written, one file each.")
    sender: str = Field(
        "",
        description="Address that mails them to `mailto` addresses; with it they are also posted to `https` ones. "
        "Default: reports are only written. It must be able to get bounces.",
    )
    organization: str = Field(
        "", description="Name of the organisation in them. Default: the domain of `sender`."
    )
    contact: str = Field("", description="How to reach you, in them. Default: `sender`.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sender:
            try:
                parse_address(self.sender)
            except AddressError as error:
                raise ValueError(f"sender: {error}") from None
        return self


class TlsConfig(Section):
    exceptions: tuple[TlsException, ...] = Field(
        (),
        description="Where something else than DANE, MTA-STS or required TLS holds. Nothing is ever sent in plain "
        "text without one.",
    )
    mta_sts: MtaStsConfig = Field(MtaStsConfig(), description="MTA-STS.")
    reports: TlsReportsConfig = Field(TlsReportsConfig(), description="TLS reports.")
    authorities: Path | None = Field(
        None, description="PEM file of the certificate authorities to trust. Default: those of the system."
    )
    deadline: Duration | None = Field(
        None,
        description="Age at which a message is bounced whose host offers no session that is secure enough. "
        "Default: it is tried until it expires.",
    )
