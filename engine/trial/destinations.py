"""Where the mail of a trial may go: to hosts that somebody has named, never to where DNS points.

Only recipient domains of routes with static hosts are used. Without a word from the user these must all be on this
machine. `sink` (HOST:PORT) names another receiver: then only routes are used that lead there and nowhere else.
`may_leave` allows every static route.
"""

import ipaddress

from engine.config.schema import FleetConfig
from engine.config.types import split_host


class UnsafeTrial(ValueError):
    """The mail of the trial would go where nobody has said that it may."""


def destinations_of(
    config: FleetConfig, count: int, *, sink: str | None = None, may_leave: bool = False
) -> list[str]:
    """`count` recipient domains, fewer different ones if the routes have fewer; raises UnsafeTrial if none may be
    used, ValueError if `sink` is no host and port."""
    wanted = None if sink is None else split_host(sink)
    domains: list[str] = []
    for route in config.routes:
        hosts = [split_host(host) for host in route.hosts]
        if not hosts or not _is_allowed(hosts, wanted, may_leave=may_leave):
            continue
        for pattern in route.domains:
            if pattern == "*":
                domains.extend(f"d{n}.bench.invalid" for n in range(count))
            elif pattern.startswith("*."):
                domains.extend(f"d{n}{pattern[1:]}" for n in range(count))
            else:
                domains.append(pattern)
    if not domains:
        raise UnsafeTrial(_refusal(config, sink))
    return [domains[n % len(domains)] for n in range(count)]


def _is_allowed(hosts: list[tuple[str, int]], wanted: tuple[str, int] | None, *, may_leave: bool) -> bool:
    if wanted is not None:
        return all(host == wanted for host in hosts)
    return may_leave or all(is_loopback(host) for host, _ in hosts)


def _refusal(config: FleetConfig, sink: str | None) -> str:
    leads = sorted({host for route in config.routes for host in route.hosts}) or ["where DNS points"]
    if sink is not None:
        return (
            f"--sink {sink}: no route of this fleet leads only there; its routes lead to {', '.join(leads)}"
        )
    return (
        "no route of this fleet leads to this machine only, and a trial sends to nobody unasked: name the receiver "
        f"with --sink HOST:PORT, or say --may-leave; its routes lead to {', '.join(leads)}"
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
