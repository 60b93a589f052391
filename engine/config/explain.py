"""Why the engine would treat a message as it does: each effective setting with its value and its origin.

An origin is a path in fleet.yaml, a profile file with the source of its number, or the built-in default.
Nothing is asked of the DNS here: without a static route the provider is the one whose profile lists the
domain, unless the caller passes the route that it has resolved.
"""

from collections.abc import Mapping
from typing import NamedTuple

from pydantic import BaseModel

from engine.config.schema import FleetConfig, RouteConfig, SourceConfig
from engine.config.signing import DkimConfig, DkimDomain
from engine.config.units import format_duration, format_size
from engine.providers.profiles import DEFAULT, Profile
from engine.routing.route import Failure, Route
from engine.routing.table import PatternTable
from engine.values.address import AddressError, ascii_domain, parse_address
from engine.values.stream import Stream

BUILT_IN = "built-in default"


class Setting(NamedTuple):
    """One effective value. `origin` says where it was read."""

    name: str
    value: str
    origin: str


def explain(
    config: FleetConfig,
    profiles: Mapping[str, Profile],
    recipient: str,
    stream: str,
    source: str | None = None,
    *,
    resolved: Route | Failure | None = None,
    header_from: str | None = None,
    tenant: str = "default",
) -> list[Setting]:
    """The settings for one recipient, stream and, if given, source (its name or IP).

    `header_from`: an address of the From header, for its signing domain; None: all signing domains are listed.

    Raises ValueError that names what is not known, and what is.
    """
    try:
        domain = parse_address(recipient).domain
    except AddressError as error:
        raise ValueError(
            f"recipient {recipient!r}: {error}: allowed is an address, as in user@example.com"
        ) from None
    Stream.parse(stream)
    provider, rows = _route(config, profiles, domain, resolved)
    rows = [Setting("recipient domain", domain, "recipient"), *rows]
    rows.append(_tls(config, domain, provider))
    rows += _profile(profiles[provider])
    rows += _section(getattr(config.retry, stream), _where(config.retry, stream, "retry"), "retry")
    rows += _signing(config.dkim, header_from, tenant)
    rows += _sources(config, stream, source)
    rows += _section(config.limits, _where(config, "limits", ""), "limits")
    return rows


def _where(parent: BaseModel, key: str, path: str) -> str:
    return f"{path}.{key}".lstrip(".") if key in parent.model_fields_set else ""


def _static(config: FleetConfig, domain: str) -> tuple[int, RouteConfig] | None:
    table: PatternTable[tuple[int, RouteConfig]] = PatternTable(
        (pattern, (index, route)) for index, route in enumerate(config.routes) for pattern in route.domains
    )
    return table.get(domain)


def _route(
    config: FleetConfig, profiles: Mapping[str, Profile], domain: str, resolved: Route | Failure | None
) -> tuple[str, list[Setting]]:
    static = _static(config, domain)
    if static is not None:
        index, entry = static
        place = f"fleet.yaml: routes[{index}]"
        given = "provider" in entry.model_fields_set
        rows = [Setting("provider", entry.provider, f"{place}.provider" if given else BUILT_IN)]
        if entry.hosts:
            return entry.provider, [Setting("route", ", ".join(entry.hosts), f"{place}.hosts"), *rows]
        return entry.provider, [
            Setting("route", "MX records, port 25", BUILT_IN),
            *rows,
            *_resolved(resolved),
        ]
    if isinstance(resolved, Route):
        how = f"MX rollup of {resolved.hosts[0].name}"
        return resolved.provider, [*_resolved(resolved), Setting("provider", resolved.provider, how)]
    rows = [Setting("route", "MX records, port 25", BUILT_IN), *_resolved(resolved)]
    for profile in profiles.values():
        if domain in profile.domains:
            return profile.name, [*rows, Setting("provider", profile.name, profile.origins["domains"])]
    return DEFAULT, [*rows, Setting("provider", DEFAULT, "not known without its MX records")]


def _resolved(resolved: Route | Failure | None) -> list[Setting]:
    if isinstance(resolved, Failure):
        return [Setting("route now", f"{resolved.kind}: {resolved.reply}", "DNS")]
    if isinstance(resolved, Route):
        hosts = ", ".join(f"{host.preference} {host.name}:{host.port}" for host in resolved.hosts)
        return [Setting("route now", hosts, "DNS"), Setting("site", resolved.site, "DNS")]
    return []


def _tls(config: FleetConfig, domain: str, provider: str) -> Setting:
    static = _static(config, domain)
    if static is not None and static[1].tls is not None:
        return Setting("tls", static[1].tls, f"fleet.yaml: routes[{static[0]}].tls")
    by_domain = PatternTable(
        (exception.domain, index)
        for index, exception in enumerate(config.tls.exceptions)
        if exception.domain is not None
    ).get(domain)
    by_provider = next((i for i, e in enumerate(config.tls.exceptions) if e.provider == provider), None)
    index = by_domain if by_domain is not None else by_provider
    if index is None:
        return Setting("tls", "required", BUILT_IN)
    found = config.tls.exceptions[index]
    return Setting("tls", found.mode, f"fleet.yaml: tls.exceptions[{index}] ({found.reason})")


def _profile(profile: Profile) -> list[Setting]:
    rows = []
    for key in ("max_connections", "max_connections_total", "messages_per_connection", "max_recipients"):
        rows.append(Setting(key, str(getattr(profile, key)), profile.origins[key]))
    rows.append(Setting("rate", str(profile.rate or "unlimited"), profile.origins["rate"]))
    cap = profile.daily_cap
    rows.append(Setting("daily_cap", "none" if cap is None else str(cap), profile.origins["daily_cap"]))
    together = profile.rate_total
    rows.append(Setting("rate_total", str(together or "unlimited"), profile.origins["rate_total"]))
    cap = profile.daily_cap_total
    rows.append(
        Setting("daily_cap_total", "none" if cap is None else str(cap), profile.origins["daily_cap_total"])
    )
    for key in ("pipelining", "chunking"):
        rows.append(Setting(key, "yes" if getattr(profile, key) else "no", profile.origins[key]))
    rows.append(
        Setting("idle_timeout", format_duration(profile.idle_timeout_s), profile.origins["idle_timeout"])
    )
    whole = format_duration(profile.transaction_timeout_s)
    rows.append(Setting("transaction_timeout", whole, profile.origins["transaction_timeout"]))
    least = f"{format_size(profile.min_data_rate)} per second"
    rows.append(Setting("min_data_rate", least, profile.origins["min_data_rate"]))
    for rule in profile.automation:
        text = f"{rule.action} {rule.scope} for {format_duration(rule.duration)}"
        rows.append(Setting(f"automation: {rule.name}", text, profile.origins["automation"]))
    return rows


def _section(section: BaseModel, path: str, label: str) -> list[Setting]:
    """Every field of a section; `path` is "" if the section is not in fleet.yaml."""
    written = section.model_dump(mode="json")
    rows = []
    for key in type(section).model_fields:
        if key == "schedule" and not written[key]:
            continue
        given = path and key in section.model_fields_set
        value = ", ".join(written[key]) if isinstance(written[key], list) else str(written[key])
        value = "none" if written[key] is None else value
        rows.append(Setting(f"{label}.{key}", value, f"fleet.yaml: {path}.{key}" if given else BUILT_IN))
    return rows


def _signing(dkim: DkimConfig, header_from: str | None, tenant: str) -> list[Setting]:
    if not dkim.domains:
        return [Setting("dkim", "no signing domain: mail goes unsigned", BUILT_IN)]
    places = {domain.domain: f"fleet.yaml: dkim.domains[{i}]" for i, domain in enumerate(dkim.domains)}
    if header_from is None:
        return [Setting("dkim", _signing_domain(domain), places[domain.domain]) for domain in dkim.domains]
    from_domain = ascii_domain(header_from.rpartition("@")[2].strip("> ")).rstrip(".")
    own = dkim.signing_domain(from_domain)
    if own is not None and not own.is_for(tenant):
        allowed = f"bounced: allowed for the tenants {', '.join(own.tenants)}"
        return [Setting("dkim", allowed, f"{places[own.domain]}.tenants")]
    chosen = dkim.signing_domains(from_domain, tenant)
    if not chosen:
        return [
            Setting("dkim", f"none signs for {from_domain}: mail goes unsigned", "fleet.yaml: dkim.domains")
        ]
    return [Setting("dkim", _signing_domain(domain), places[domain.domain]) for domain in chosen]


def _signing_domain(domain: DkimDomain) -> str:
    selectors = ", ".join(key.selector for key in domain.keys)
    senders = ", ".join((*domain.patterns(), *(["all mail"] if domain.sign_all else [])))
    tenants = f"; tenants {', '.join(domain.tenants)}" if domain.tenants else ""
    return f"d={domain.domain}; selectors {selectors}; From {senders}{tenants}"


def _sources(config: FleetConfig, stream: str, wanted: str | None) -> list[Setting]:
    if wanted is None:
        able = [s.name for s in config.sources if stream in s.streams]
        return [Setting("sources", ", ".join(able) or "none", "fleet.yaml: sources[].streams")]
    for index, source in enumerate(config.sources):
        if wanted in (source.name, source.ip):
            return _source(index, source, stream)
    known = ", ".join(f"{s.name} ({s.ip})" for s in config.sources)
    raise ValueError(f"source {wanted!r}: allowed are {known}")


def _source(index: int, source: SourceConfig, stream: str) -> list[Setting]:
    place = f"fleet.yaml: sources[{index}]"
    kind, tenant = source.tenancy_of()
    rows = [
        Setting("source", source.name, f"{place}.name"),
        Setting("source.ip", source.ip, f"{place}.ip"),
        Setting("source.region", source.region, f"{place}.region"),
        Setting("source.ehlo", source.ehlo, f"{place}.ehlo"),
        Setting("source.carries the stream", "yes" if stream in source.streams else "no", f"{place}.streams"),
    ]
    for key, value in (("tenancy", f"{kind} {tenant}".strip()), ("netblock", source.netblock)):
        given = key in source.model_fields_set
        rows.append(Setting(f"source.{key}", value, f"{place}.{key}" if given else BUILT_IN))
    return rows
