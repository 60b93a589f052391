"""The sections of fleet.yaml about what comes back: `tokens`, `bounces` and `ingress`.

Only paths stand in the configuration; a secret never does, so it is in no copy of it either.
"""

from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from engine.config.types import (
    Count,
    DomainPattern,
    Duration,
    EhloName,
    HostPort,
    Name,
    Netblock,
    Section,
    Size,
    StreamName,
)
from engine.values.address import AddressError, parse_address


class TokenKey(Section):
    id: Annotated[int, Field(ge=0, le=255, strict=True)] = Field(
        description="Number of the key, written into every token. Never give it to another key."
    )
    file: Path = Field(
        description="File with the key: 64 hexadecimal digits, as `sendfleet bounces new-key FILE` writes it. "
        "The same on every node. Further lines are further keys, which are good and do not sign."
    )


class TokensConfig(Section):
    """Tokens in return paths and unsubscribe links are signed, so that nobody else can make one."""

    keys: tuple[TokenKey, ...] = Field(
        (),
        description="The first one signs, all of them are good. A new key goes to the front; an old one may go "
        "when its tokens have expired.",
    )
    reload: Duration = Field(10.0, description="How often key files are looked at for changes.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        numbers = [key.id for key in self.keys]
        if len(set(numbers)) != len(numbers):
            raise ValueError("keys: allowed is each id once")
        return self


class ReturnPath(Section):
    domain: DomainPattern = Field(
        description="Bounce domain: its MX is the `ingress.mail` of the regions, and its SPF record names the sources."
    )
    tenants: tuple[Name, ...] = Field((), description="Mail of these tenants. Default: of all.")
    streams: tuple[StreamName, ...] = Field((), description="Mail of these streams. Default: of all.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if "*" in self.domain:
            raise ValueError("domain: allowed is a domain without `*`")
        return self


class PostmasterConfig(Section):
    """Mail to postmaster@ and abuse@ of the bounce and feedback domains, and of the listener's host name."""

    forward: str = Field(
        "",
        description="Address that it is passed on to, enclosed in a message with the null sender. Default: it is kept "
        "in `directory`.",
    )
    directory: Path = Field(
        Path("var/postmaster"),
        description="Where it is kept if it is not passed on, one file each, on the node of the gateway. Whoever reads "
        "them removes them.",
    )
    max_stored: Size = Field(
        64 * 2**20, description="Size of all files in `directory`, above which it is refused for the moment."
    )
    max_per_hour: Count = Field(
        100, description="Messages per hour, above which it is refused for the moment."
    )


class BouncesConfig(Section):
    """Bounces and complaints that come as mail. See docs/bounces.md."""

    return_paths: tuple[ReturnPath, ...] = Field(
        (),
        description="Where bounces of which mail go; the first that fits. Each message gets a return path of its "
        "own there (VERP), in place of its sender. Mail that none fits keeps its sender, and so does mail with the "
        "null sender.",
    )
    feedback: tuple[str, ...] = Field(
        (),
        description="Addresses that feedback loops of mailbox providers send complaints to (ARF).",
    )
    postmaster: PostmasterConfig = Field(
        PostmasterConfig(),
        description="Mail to postmaster and abuse, which is never refused for good (RFC 5321 section 4.5.1).",
    )
    expire: Duration = Field(
        14 * 86400.0,
        description="So long after dispatch a return path is good, and it is known to whom the message was sent.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for address in self.feedback:
            local, at, domain = address.rpartition("@")
            if not at or not local or "." not in domain or not address.isascii() or not address.isprintable():
                raise ValueError(f"feedback: {address!r}: allowed are addresses, as in fbl@example.com")
        if self.postmaster.forward:
            try:
                forward = parse_address(self.postmaster.forward)
            except AddressError as error:
                raise ValueError(f"postmaster.forward: {error}") from None
            if forward.domain in {entry.domain for entry in self.return_paths}:
                raise ValueError(
                    f"postmaster.forward: {self.postmaster.forward!r}: allowed is an address outside of the bounce "
                    "domains, whose mail comes in here"
                )
        return self

    def domains(self) -> set[str]:
        """The domains whose mail comes in here."""
        return {entry.domain for entry in self.return_paths} | {
            address.rpartition("@")[2].lower() for address in self.feedback
        }

    def return_path(self, tenant: str, stream: str) -> ReturnPath | None:
        """The entry for mail of a tenant and stream."""
        for entry in self.return_paths:
            if (not entry.tenants or tenant in entry.tenants) and (
                not entry.streams or stream in entry.streams
            ):
                return entry
        return None


class IngressConfig(Section):
    """What every region's gateway listens on."""

    mail: dict[Name, HostPort] = Field(
        {},
        description="Address and port for bounces and complaints, by region. Mail for anybody else but postmaster and "
        "abuse is refused.",
    )
    http: dict[Name, HostPort] = Field(
        {},
        description="Address and port for unsubscribe links, by region. HTTPS with `http_certificate`; without it "
        "plain HTTP, for a reverse proxy that speaks TLS.",
    )
    http_certificate: Path | None = Field(
        None,
        description="PEM file with the certificate chain for `http`. Read again when it has changed, as is the key.",
    )
    http_key: Path | None = Field(None, description="PEM file with its private key.")
    proxies: tuple[Netblock, ...] = Field(
        (), description="Addresses of reverse proxies whose X-Forwarded-For names the client."
    )
    name: EhloName | None = Field(
        None, description="Host name in the greeting. Default: `ehlo` of the region's first source."
    )
    certificate: Path | None = Field(
        None, description="PEM file with the certificate chain for STARTTLS. Default: no TLS is offered."
    )
    key: Path | None = Field(None, description="PEM file with its private key.")
    max_message: Size = Field(
        4 * 2**20, description="Largest message taken in: a bounce may have the whole message in it."
    )
    max_connections: Count = Field(100, description="Connections at once, of each listener.")
    max_per_client: Count = Field(20, description="Connections at once from one address.")
    idle_timeout: Duration = Field(
        300.0,
        description="A command, or the data of a message, takes no longer (RFC 5321 section 4.5.3.2.7).",
    )
    session_timeout: Duration = Field(600.0, description="No session takes longer.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate: allowed only together with key")
        if (self.http_certificate is None) != (self.http_key is None):
            raise ValueError("http_certificate: allowed only together with http_key")
        return self
