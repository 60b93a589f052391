"""Today's counts on disk: key `daily/SOURCE/SITE`, value `day << 40 | used`. For all sources together SOURCE is empty.

They are written in the transaction that makes a batch's hand-over durable, so a crash never grants a cap twice.
"""

from collections.abc import Callable, Iterable

from engine.region.sites import ALL, DAY_MS, Site, Sites


def daily_key(source: str, site: str) -> str:
    """State key of today's count of one source at one site, by name: a number may be another's after a change of
    fleet.yaml."""
    return f"daily/{source}/{site}"


def counts_of(sites: Sites, cells: Iterable[tuple[Site, int]]) -> dict[str, int]:
    """What is to be written for these (site, source); those without a cap are left out."""
    found = {}
    for site, source in cells:
        if source in site.caps:
            key = daily_key(sites.sources[source].name, site.name)
            found[key] = site.day << 40 | sites.used_today(site, source)
        if site.cap_total is not None:
            found[daily_key("", site.name)] = site.day << 40 | sites.used_today(site, ALL)
    return found


def used_today(
    sites: Sites, site: str, provider: str, get_state: Callable[[str], bytes | None], now_ms: int
) -> tuple[int, dict[int, int]]:
    """The day that counts at a site, and what each source (`ALL`: all together) has used of its cap on it, from disk.

    A count of a later day means that the clock was set back: that day goes on, nothing is granted twice.
    """
    profile = sites.profile(provider)
    capped = profile.daily_cap is not None
    counts: dict[int, tuple[int, int]] = {}
    keys = {n: s.name for n, s in sites.sources.items() if capped or s.warmup}
    if profile.daily_cap_total is not None:
        keys[ALL] = ""
    for number, name in keys.items():
        state = get_state(daily_key(name, site))
        if state is not None:
            value = int.from_bytes(state, "big")
            counts[number] = value >> 40, value & (1 << 40) - 1
    day = max(now_ms // DAY_MS, *(counted for counted, _ in counts.values()), 0)
    return day, {number: count for number, (counted, count) in counts.items() if counted == day}
