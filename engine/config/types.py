"""The types of single values in fleet.yaml, and the base of its sections.

Written values become numbers here: a duration float seconds, a size int bytes, a rate `Rate`; in JSON they are written
with their unit again. Each type says what it allows when it refuses a value.
"""

import ipaddress
import re
from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    WithJsonSchema,
)

from engine.config.units import (
    MAX_SECONDS,
    Rate,
    format_duration,
    format_size,
    parse_duration,
    parse_rate,
    parse_size,
)
from engine.values.address import AddressError, ascii_domain

NAME = re.compile(r"[a-z0-9](?:[a-z0-9_.-]{0,62}[a-z0-9])?", re.ASCII)
_LABEL = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?", re.ASCII)
NAME_FORM = "1 to 64 of a-z, 0-9, '.', '_' and '-', beginning and ending with a letter or digit"
HOST_FORM = "a host name or an IP address, with a port if it is not 25, as in 127.0.0.1:2525 or [::1]:2525"


def is_host_name(text: str) -> bool:
    return 0 < len(text) <= 253 and all(_LABEL.fullmatch(label) for label in text.rstrip(".").split("."))


def _check_name(text: str) -> str:
    if not NAME.fullmatch(text):
        raise ValueError(f"allowed are {NAME_FORM}")
    return text


def _check_ip(text: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        raise ValueError("allowed is an IPv4 or IPv6 address") from None


def _check_source_ip(text: str) -> str:
    """One address of this host; an IPv4 address written as IPv6 is the IPv4 address."""
    address = ipaddress.ip_address(_check_ip(text))
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_unspecified or address.is_multicast or str(address) == "255.255.255.255":
        raise ValueError("allowed is an address of one host")
    return str(address)


def _check_netblock(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"allowed is a network as in 192.0.2.0/24: {error}") from None


def _check_ehlo(text: str) -> str:
    if text.startswith("[") or not is_host_name(text) or "." not in text:
        raise ValueError("allowed is a fully qualified host name, as in mta1.example.com")
    return text.lower()


def _check_pattern(text: str) -> str:
    """A recipient domain in ASCII form, `*.` before it for all below it, or `*`."""
    rest = text.removeprefix("*.")
    try:
        ascii_form = ascii_domain(rest)
    except AddressError:
        ascii_form = ""
    if text != "*" and not is_host_name(ascii_form):
        raise ValueError("allowed is a domain (example.com), all below it (*.example.com) or everything (*)")
    return text if text == "*" else text[: len(text) - len(rest)] + ascii_form.rstrip(".")


def split_host(text: str) -> tuple[str, int]:
    """Return (host name or address, port) of `HOST_FORM`; raises ValueError."""
    host, port = text, "25"
    if text.startswith("["):
        host, closing, tail = text[1:].partition("]")
        if not closing or (tail and not tail.startswith(":")):
            raise ValueError(f"allowed is {HOST_FORM}")
        port = tail[1:] or "25"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    if not re.fullmatch(r"[0-9]{1,5}", port, re.ASCII) or not 1 <= int(port) <= 65535:
        raise ValueError("allowed is a port from 1 to 65535")
    try:
        host = str(ipaddress.ip_address(host))
    except ValueError:
        if not is_host_name(host):
            raise ValueError(f"allowed is {HOST_FORM}") from None
        host = host.lower().rstrip(".")
    return host, int(port)


def _check_cluster(text: str) -> str:
    split_host(text)
    if not re.search(r":[0-9]+$", text, re.ASCII) or text.endswith("]"):
        raise ValueError("allowed is HOST:PORT, as in 10.0.0.10:6379")
    return text


def _check_zone(text: str) -> str:
    if not is_host_name(text) or "." not in text.rstrip("."):
        raise ValueError("allowed is a domain, as in example.com")
    return text.lower().rstrip(".")


def split_server(text: str) -> tuple[str, int]:
    """Return (address, port) of a name server, as 192.0.2.53, 192.0.2.53:5353 or [2001:db8::53]:53; ValueError."""
    bare = text.strip("[]") if text.count(":") > 1 and "]:" not in text else text
    try:
        return str(ipaddress.ip_address(bare)), 53
    except ValueError:
        host, port = split_host(text)
        try:
            return str(ipaddress.ip_address(host)), port
        except ValueError:
            raise ValueError("allowed is an IP address, with a port if it is not 53") from None


def _check_server(text: str) -> str:
    split_server(text)
    return text


def _check_host(text: str) -> str:
    split_host(text)
    return text


def _positive_seconds(value: object) -> float:
    seconds = parse_duration(value)
    if seconds <= 0:
        raise ValueError("allowed is a duration above zero")
    if seconds > MAX_SECONDS:
        raise ValueError(f"allowed is at most {format_duration(MAX_SECONDS)}")
    return seconds


def _positive_bytes(value: object) -> int:
    size = parse_size(value)
    if size <= 0:
        raise ValueError("allowed is a size above zero")
    return size


def _rate_or_unlimited(value: object) -> Rate | Literal["unlimited"]:
    return "unlimited" if value == "unlimited" else parse_rate(value)


Duration = Annotated[
    float,
    PlainValidator(_positive_seconds),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "title": "duration"}),
]


def _distinct(values: tuple[str, ...]) -> tuple[str, ...]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        raise ValueError(f"each is allowed once: {', '.join(twice)}")
    return values


def _size_within(least: int, most: int) -> Callable[[int], int]:
    def check(size: int) -> int:
        if not least <= size <= most:
            raise ValueError(f"allowed is from {format_size(least)} to {format_size(most)}")
        return size

    return check


Size = Annotated[
    int,
    PlainValidator(_positive_bytes),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "title": "size"}),
]
MapSize = Annotated[Size, AfterValidator(_size_within(16 << 20, 16 << 40))]
SegmentSize = Annotated[Size, AfterValidator(_size_within(1 << 20, 64 << 30))]
RateOrUnlimited = Annotated[
    Rate | Literal["unlimited"],
    PlainValidator(_rate_or_unlimited),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "title": "rate"}),
]
Name = Annotated[str, AfterValidator(_check_name)]
IpAddress = Annotated[str, AfterValidator(_check_ip)]
SourceIp = Annotated[str, AfterValidator(_check_source_ip)]
Netblock = Annotated[str, AfterValidator(_check_netblock)]
EhloName = Annotated[str, AfterValidator(_check_ehlo)]
DomainPattern = Annotated[str, AfterValidator(_check_pattern)]
ServerAddress = Annotated[str, AfterValidator(_check_server)]
ZoneName = Annotated[str, AfterValidator(_check_zone)]
HostPort = Annotated[str, AfterValidator(_check_host)]
ClusterAddress = Annotated[str, AfterValidator(_check_cluster)]
StreamName = Literal["transactional", "notification", "marketing"]
StreamNames = Annotated[tuple[StreamName, ...], Field(min_length=1), AfterValidator(_distinct)]
TlsMode = Literal["required", "disabled"]
Count = Annotated[int, Field(ge=1, le=1_000_000_000, strict=True)]
Port = Annotated[int, Field(ge=1, le=65535, strict=True)]


class Section(BaseModel):
    """A part of the configuration: frozen, nothing unknown in it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
