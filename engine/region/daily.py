"""Today's counts of the sources on disk: key `daily/SOURCE/SITE`, value `day << 40 | used`.

They are written in the transaction that makes a batch's hand-over durable, so a crash never grants a cap twice.
"""

from collections.abc import Callable, Iterable

from engine.region.sites import DAY_MS, Site, Sites


def daily_key(source: str, site: str) -> str:
    """State key of today's count of one source at one site, by name: a number may be another's after a change of
    fleet.yaml."""
    return f"daily/{source}/{site}"


def counts_of(sites: Sites, cells: Iterable[tuple[Site, int]]) -> dict[str, int]:
    """What is to be written for these (site, source); those without a cap are left out."""
    return {
        daily_key(sites.sources[source].name, site.name): site.day << 40 | sites.used_today(site, source)
        for site, source in cells
        if source in site.caps
    }


def used_today(
    sites: Sites, site: str, provider: str, get_state: Callable[[str], bytes | None], now_ms: int
) -> tuple[int, dict[int, int]]:
    """The day that counts at a site, and what each source has used of its cap on it, from disk.

    A count of a later day means that the clock was set back: that day goes on, nothing is granted twice.
    """
    capped = sites.profile(provider).daily_cap is not None
    counts: dict[int, tuple[int, int]] = {}
    for number, source in sites.sources.items():
        state = get_state(daily_key(source.name, site)) if capped or source.warmup else None
        if state is not None:
            value = int.from_bytes(state, "big")
            counts[number] = value >> 40, value & (1 << 40) - 1
    day = max(now_ms // DAY_MS, *(counted for counted, _ in counts.values()), 0)
    return day, {number: count for number, (counted, count) in counts.items() if counted == day}
