"""The section `metrics` of fleet.yaml: who may read the figures of the regions, and where they are pushed.

Figures tell strangers what is sent and where it hurts. So the listener is for this machine alone, or it asks for a
token and speaks TLS; and a secret is never sent in the clear.
"""

import ipaddress
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

from engine.config.types import Count, Duration, HostPort, Name, Section, split_host


def _check_endpoint(text: str) -> str:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ValueError(f"allowed is a URL: {error}") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0 or len(parts.path) < 2:
        raise ValueError("allowed is the whole URL of the signal, as in http://127.0.0.1:4318/v1/metrics")
    if parts.username is not None or parts.password is not None:
        raise ValueError("allowed is a URL without a password: write it into headers_file")
    return text


def is_loopback(host: str) -> bool:
    """Whether only this machine can be meant. A name is not, whatever it stands for today; `localhost` is."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


Endpoint = Annotated[str, AfterValidator(_check_endpoint)]


class OtlpConfig(Section):
    endpoint: Endpoint = Field(
        description="Where metrics are sent by OTLP over HTTP, as `http://127.0.0.1:4318/v1/metrics`."
    )
    interval: Duration = Field(15.0, description="Time between two pushes, at least 1s.")
    timeout: Duration = Field(10.0, description="Deadline of one push, with its retries.")
    headers_file: Path | None = Field(
        None,
        description="File with headers to send, one `Name: value` a line, as for a token. Only with https, or to this "
        "machine. Read at each push.",
    )
    authorities: Path | None = Field(
        None,
        description="PEM file with the authorities that vouch for the receiver. Default: the system's.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        parts = urlsplit(self.endpoint)
        if self.headers_file is not None and parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            raise ValueError(
                "headers_file: allowed only with an https endpoint, or one of this machine: it may hold a secret"
            )
        if self.interval < 1:
            raise ValueError("interval: allowed is at least 1s")
        return self


class MetricsConfig(Section):
    """See docs/monitoring.md."""

    listen: dict[Name, HostPort] = Field(
        {},
        description="Address and port where Prometheus reads `/metrics`, by region. Any other than a loopback address "
        "needs `token_file`, `certificate` and `key`.",
    )
    token_file: Path | None = Field(
        None,
        description="File that holds the token, alone, that a reader shows (`Authorization: Bearer`). Default: whoever "
        "can connect may read.",
    )
    certificate: Path | None = Field(
        None,
        description="PEM file with the certificate chain for HTTPS. Read again when it has changed, as is the key.",
    )
    key: Path | None = Field(None, description="PEM file with its private key.")
    max_connections: Count = Field(20, description="Connections at once to a region's listener.")
    max_sources: Count = Field(
        500,
        description="So many sources, the first ones of `sources`, are told apart in labels; the others are `other`.",
    )
    otlp: OtlpConfig | None = Field(None, description="Push to a collector. Default: nothing is pushed.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("certificate: allowed only together with key")
        for region, address in self.listen.items():
            host, _ = split_host(address)
            if not is_loopback(host) and (self.token_file is None or self.certificate is None):
                raise ValueError(
                    f"listen: {region}: {address!r}: allowed is a loopback address, or any with token_file, "
                    "certificate and key"
                )
        return self
