"""The `unsubscribe` section of fleet.yaml: links in mail by which its recipients unsubscribe."""

import ipaddress
import re
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from engine.config.types import Duration, Name, Section, StreamName

_URL = re.compile(r"[!-;=?-~]{1,200}")


class UnsubscribeLink(Section):
    url: str = Field(
        description="Where the link leads, without the token: `https://news.example.com/u`. Requests for what is below "
        "it go to the `ingress.http` of any region."
    )
    tenants: tuple[Name, ...] = Field((), description="Mail of these tenants. Default: of all.")
    streams: tuple[StreamName, ...] = Field(("marketing",), description="Mail of these streams.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts = urlsplit(self.url)
        is_secure = parts.scheme == "https" or (parts.scheme == "http" and _is_loopback(parts.hostname))
        if (
            not _URL.fullmatch(self.url)
            or not is_secure
            or not parts.hostname
            or parts.query
            or parts.fragment
        ):
            raise ValueError("url: allowed is an https: address without a query (RFC 8058 section 3.1)")
        if self.url.endswith("/"):
            raise ValueError(
                "url: allowed is an address that does not end with `/`: the token follows behind one"
            )
        return self


def _is_loopback(host: str | None) -> bool:
    """Plain HTTP is for tests on this machine."""
    try:
        return host is not None and ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class UnsubscribeConfig(Section):
    """One-click unsubscription (RFC 8058). See docs/bounces.md."""

    links: tuple[UnsubscribeLink, ...] = Field(
        (),
        description="Which mail gets the headers List-Unsubscribe and List-Unsubscribe-Post, with a signed link for "
        "each recipient; the first entry that fits. A message that has a List-Unsubscribe of its own keeps it.",
    )
    expire: Duration = Field(365 * 86400.0, description="So long after acceptance a link works.")

    def link(self, tenant: str, stream: str) -> UnsubscribeLink | None:
        """The entry for mail of a tenant and stream."""
        for entry in self.links:
            if (not entry.tenants or tenant in entry.tenants) and stream in entry.streams:
                return entry
        return None
