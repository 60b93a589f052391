"""Checks that concern more than one entry: unique names, numbers and addresses, references, gaps.

They read the plain data, not the parsed models, and pass over whatever has the wrong shape: so they report
their findings together with those of the schema, also when the schema refuses a part of the file.
"""

import ipaddress
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from engine.config.schema import FleetConfig, FleetSection
from engine.config.units import format_duration
from engine.values.address import AddressError, ascii_domain
from engine.values.stream import Stream


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong: where (`sources[2].ip`), the value found there, and what is allowed."""

    path: str
    value: object
    message: str

    def __str__(self) -> str:
        shown = repr(self.value)
        if len(shown) > 80:
            shown = shown[:77] + "..."
        return f"{self.path or '(file)'}: {shown}: {self.message}"


def cross_check(
    data: Mapping[str, Any], profiles: Collection[str], warmup_tables: Collection[str]
) -> list[Problem]:
    """Every problem between entries. `profiles` and `warmup_tables` are the names of those that are shipped."""
    problems: list[Problem] = []
    problems += _duplicates(data, "regions", "name")
    problems += _duplicates(data, "regions", "number")
    problems += _duplicates(data, "sources", "name")
    problems += _duplicates(data, "sources", "ip")
    problems += _shards(data)
    problems += _references(data, profiles)
    problems += _warmup(data, warmup_tables)
    problems += _patterns(data)
    problems += _plain_routes(data)
    problems += _dns_failover(data)
    problems += _what_comes_back(data)
    problems += _metrics(data)
    problems += _hand_over(data)
    problems += _copies(data)
    return problems


def classes_without_sources(config: FleetConfig) -> list[Problem]:
    """Classes of tenants whose mail would wait for ever, because all shared sources are for others."""
    problems = []
    for index, region in enumerate(config.regions):
        for stream in Stream:
            shared = [
                source
                for source in config.sources
                if source.region == region.name
                and str(stream) in source.streams
                and source.tenancy.kind != "dedicated"
            ]
            named = {name for source in shared for name in source.quality}
            missing = [name for name in ("new", "good", "poor") if name not in named]
            if shared and missing and all(source.quality for source in shared):
                problems.append(
                    Problem(
                        f"regions[{index}]",
                        region.name,
                        f"no source of the stream {stream} is for tenants of the class {', '.join(missing)}: name it "
                        "in `quality` of one, or leave `quality` of one out",
                    )
                )
    return problems


def find_gaps(config: FleetConfig) -> list[Problem]:
    """What is allowed but probably not meant: warnings."""
    gaps = []
    for index, region in enumerate(config.regions):
        mine = [source for source in config.sources if source.region == region.name]
        for stream in Stream:
            name = str(stream)
            if not any(name in source.streams for source in mine):
                gaps.append(
                    Problem(
                        f"regions[{index}]",
                        region.name,
                        f"no source for the stream {name}: it is refused there",
                    )
                )
            elif not any(name in source.streams and source.tenancy.kind != "dedicated" for source in mine):
                gaps.append(
                    Problem(f"regions[{index}]", region.name, f"only dedicated sources for the stream {name}")
                )
    if config.fleet.replicas and len(config.regions) == 1:
        gaps.append(
            Problem("fleet.replicas", 1, "nobody can hold the copies: every receipt is marked as degraded")
        )
    return [*gaps, *_dns_gaps(config)]


def _dns_gaps(config: FleetConfig) -> Iterator[Problem]:
    section = config.dns_failover
    if section is not None and len(section.addresses) > 1:
        for version in (4, 6):
            having = [
                name
                for name, own in section.addresses.items()
                if any(ipaddress.ip_address(address).version == version for address in own)
            ]
            if len(having) == 1:
                yield Problem(
                    "dns_failover.addresses",
                    having[0],
                    f"it alone has IPv{version} addresses: they stay in the records while it is down, and clients that "
                    f"prefer IPv{version} go there; give another region one as well, or leave them out",
                )
    if section is not None and section.min_regions == len(section.addresses):
        yield Problem(
            "dns_failover.min_regions",
            section.min_regions,
            f"no region ever leaves the records, there are {len(section.addresses)}: less is usual",
        )


def _entries(data: Mapping[str, Any], section: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    entries = data.get(section)
    if isinstance(entries, list):
        for index, entry in enumerate(entries):
            if isinstance(entry, Mapping):
                yield index, entry


def _strings(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def _duplicates(data: Mapping[str, Any], section: str, key: str) -> Iterator[Problem]:
    seen: dict[object, int] = {}
    for index, entry in _entries(data, section):
        value = entry.get(key)
        if not isinstance(value, str | int):
            continue
        first = seen.setdefault(_same(value) if key == "ip" else value, index)
        if first != index:
            yield Problem(
                f"{section}[{index}].{key}", value, f"is also that of {section}[{first}]; must be unique"
            )


def _same(value: str | int) -> object:
    """An address by its value, because one address can be written in several ways."""
    try:
        address = ipaddress.ip_address(str(value))
    except ValueError:
        return value
    return getattr(address, "ipv4_mapped", None) or address


def _same_domain(pattern: str) -> str:
    rest = pattern.removeprefix("*.")
    try:
        return pattern[: len(pattern) - len(rest)] + ascii_domain(rest).rstrip(".")
    except AddressError:
        return pattern


def _references(data: Mapping[str, Any], profiles: Collection[str]) -> Iterator[Problem]:
    regions = _region_names(data)
    for index, source in _entries(data, "sources"):
        region = source.get("region")
        if isinstance(region, str) and region not in regions:
            yield Problem(f"sources[{index}].region", region, _allowed_regions(data, region))
    providers = data.get("providers")
    known = {*profiles, *(providers if isinstance(providers, Mapping) else ())}
    for index, route in _entries(data, "routes"):
        provider = route.get("provider")
        if isinstance(provider, str) and provider not in known:
            yield Problem(
                f"routes[{index}].provider", provider, f"allowed are the providers {_listing(known)}"
            )
    for index, exception in _exceptions(data):
        provider = exception.get("provider")
        if isinstance(provider, str) and provider not in known:
            yield Problem(
                f"tls.exceptions[{index}].provider", provider, f"allowed are the providers {_listing(known)}"
            )
    for region in regions if data.get("sources") else ():
        if not any(source.get("region") == region for _, source in _entries(data, "sources")):
            yield Problem("sources", region, "no source is in this region: it could send nothing")


def _warmup(data: Mapping[str, Any], shipped: Collection[str]) -> Iterator[Problem]:
    section = data.get("warmup")
    tables = section.get("tables") if isinstance(section, Mapping) else None
    known = {*shipped, *(tables if isinstance(tables, Mapping) else ())}
    for index, source in _entries(data, "sources"):
        name = source.get("warmup")
        if isinstance(name, str) and name not in known:
            yield Problem(f"sources[{index}].warmup", name, f"allowed are the tables {_listing(known)}")


def _patterns(data: Mapping[str, Any]) -> Iterator[Problem]:
    seen: dict[str, int] = {}
    for index, route in _entries(data, "routes"):
        for position, pattern in enumerate(_strings(route.get("domains"))):
            first = seen.setdefault(_same_domain(pattern), index)
            if first != index:
                yield Problem(f"routes[{index}].domains[{position}]", pattern, f"is also in routes[{first}]")


def _plain_routes(data: Mapping[str, Any]) -> Iterator[Problem]:
    """A route without TLS is an exception, and exceptions have a written reason."""
    excepted = {
        str(value).lower()
        for _, exception in _exceptions(data)
        for value in (exception.get("provider"), exception.get("domain"))
        if value is not None
    }
    for index, route in _entries(data, "routes"):
        if route.get("tls") != "disabled":
            continue
        names = {str(route.get("provider", "default"))}
        domains = {pattern.lower() for pattern in _strings(route.get("domains"))}
        if not names & excepted and not domains <= excepted:
            yield Problem(
                f"routes[{index}].tls",
                "disabled",
                "allowed only where tls.exceptions names the provider, or each of the domains, with a reason",
            )


def _dns_failover(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Addresses belong to regions, and a region that clients could not find is a slip."""
    section = data.get("dns_failover")
    addresses = section.get("addresses") if isinstance(section, Mapping) else None
    if not isinstance(addresses, Mapping):
        return
    regions = _region_names(data)
    for name in addresses:
        if name not in regions:
            yield Problem("dns_failover.addresses", name, _allowed_regions(data, name))
    for name in regions:
        if name not in addresses:
            yield Problem("dns_failover.addresses", name, "the region's addresses are missing")


def _what_comes_back(data: Mapping[str, Any]) -> Iterator[Problem]:
    """Return paths and unsubscribe links need a key to sign them and a listener to come back to."""
    regions = _region_names(data)
    ingress = _section(data, "ingress")
    has_key = bool(_section(data, "tokens").get("keys"))
    for kind in ("mail", "http"):
        for name in _section(ingress, kind):
            if name not in regions:
                yield Problem(f"ingress.{kind}.{name}", name, _allowed_regions(data, name))
        if ingress.get(kind) and not has_key:
            yield Problem(f"ingress.{kind}", ingress[kind], "allowed only with a key in tokens.keys")
    for section, name, kind in (
        ("bounces", "return_paths", "mail"),
        ("bounces", "feedback", "mail"),
        ("unsubscribe", "links", "http"),
    ):
        value = _section(data, section).get(name)
        if value and not ingress.get(kind):
            yield Problem(f"{section}.{name}", value, f"allowed only with a listener in ingress.{kind}")


def _metrics(data: Mapping[str, Any]) -> Iterator[Problem]:
    regions = _region_names(data)
    for name in _section(_section(data, "metrics"), "listen"):
        if name not in regions:
            yield Problem(f"metrics.listen.{name}", name, _allowed_regions(data, name))


def _hand_over(data: Mapping[str, Any]) -> Iterator[Problem]:
    fleet = _section(data, "fleet")
    overloaded = fleet.get("hand_over_overloaded")
    default = FleetSection.model_fields["hand_over_overloaded"].default
    is_chosen = overloaded not in (None, default, format_duration(default))  # not what a dump has written
    if is_chosen and fleet.get("hand_over_after") is None:
        yield Problem(
            "fleet.hand_over_overloaded",
            overloaded,
            "takes effect only with `hand_over_after`, which is not given; allowed without it is null",
        )


def _copies(data: Mapping[str, Any]) -> Iterator[Problem]:
    """A copy needs another region, or another shard: a fleet of one that refuses without a peer accepts nothing."""
    fleet = _section(data, "fleet")
    degraded = fleet.get("degraded", FleetSection.model_fields["degraded"].default)
    if fleet.get("replicas") == 1 and len(_region_names(data)) == 1 and degraded == "refuse":
        yield Problem(
            "fleet.replicas",
            1,
            "nobody can hold the copies, and all mail would be refused; allowed with one region is 0, or 1 with "
            "`degraded: accept_local` for when another is added",
        )


def _shards(data: Mapping[str, Any]) -> Iterator[Problem]:
    """A name is that of one node, or of a region of several, never both: an order to it would be in doubt."""
    names = {entry.get("name"): index for index, entry in reversed(list(_entries(data, "regions")))}
    for index, entry in _entries(data, "regions"):
        region = entry.get("shard_of")
        if isinstance(region, str) and region in names:
            yield Problem(
                f"regions[{index}].shard_of",
                region,
                f"is the name of regions[{names[region]}]; allowed is the name of a region that is none of its shards",
            )


def _region_names(data: Mapping[str, Any]) -> list[str]:
    """Those of regions of one node, and of shards."""
    return [entry["name"] for _, entry in _entries(data, "regions") if isinstance(entry.get("name"), str)]


def _allowed_regions(data: Mapping[str, Any], wrong: object) -> str:
    """What may stand where a region's or shard's name does, of something that is none."""
    regions = _region_names(data)
    shards = [
        entry["name"]
        for _, entry in _entries(data, "regions")
        if isinstance(entry.get("name"), str) and isinstance(wrong, str) and entry.get("shard_of") == wrong
    ]
    if shards:
        return f"is a region of several nodes; allowed is one of its shards: {_listing(shards)}"
    return f"allowed are the regions {_listing(regions)}"


def _section(data: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = data.get(name)
    return section if isinstance(section, Mapping) else {}


def _exceptions(data: Mapping[str, Any]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    tls = data.get("tls")
    return _entries(tls, "exceptions") if isinstance(tls, Mapping) else iter(())


def _listing(names: Collection[str]) -> str:
    return ", ".join(sorted(set(names)))
