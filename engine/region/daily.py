"""Today's counts on disk: key `daily/SOURCE/SITE`, value `day << 40 | used`. For all sources together SOURCE is empty.

They are written in the transaction that makes a batch's hand-over durable, so a crash never grants a cap twice.

A message counts for the day on which it is granted, and for the next one too if it is under way at midnight, because it
may be sent then. Whoever starts again after midnight has to know of those: in the last hour of a day what is under way
is written too, as `carried/SOURCE/SITE`, value `day << 40 | count`. A transaction takes less than that hour.
"""

from collections.abc import Callable, Iterable

from engine.region.sites import ALL, DAY_MS, Counts, Site, Sites

CARRY_MS = 3_600_000  # RFC 5321 section 4.5.3.2: the timeouts of a transaction add up to half of it
COUNT = (1 << 40) - 1


def daily_key(source: str, site: str) -> str:
    """State key of today's count of one source at one site, by name: a number may be another's after a change of
    fleet.yaml."""
    return f"daily/{source}/{site}"


def carried_key(source: str, site: str) -> str:
    """State key of what was under way at the last hand-over of a day's last hour."""
    return f"carried/{source}/{site}"


def counts_of(sites: Sites, cells: Iterable[tuple[Site, int]], now_ms: int) -> dict[str, int]:
    """What is to be written for these (site, source); those without a cap are left out."""
    found = {}
    is_last_hour = now_ms % DAY_MS >= DAY_MS - CARRY_MS
    for site, source in cells:
        for number in (source, ALL):
            if not site.is_capped(number):
                continue
            names = "" if number == ALL else sites.sources[number].name, site.name
            found[daily_key(*names)] = site.day << 40 | sites.used_today(site, number)
            if is_last_hour:
                site.carried.add(number)
                found[carried_key(*names)] = site.day << 40 | sites.under_way(site, number)
    return found


def settled_counts(sites: Sites, site: Site) -> dict[str, int]:
    """What is to be written when a site goes: nothing is under way there."""
    names = ["" if number == ALL else sites.sources[number].name for number in site.carried]
    return {carried_key(name, site.name): 0 for name in names}


def counts_on_disk(
    sites: Sites, site: str, provider: str, get_state: Callable[[str], bytes | None], now_ms: int
) -> Counts:
    """The day that counts at a site, what each source (`ALL`: all together) has used of its cap on it, and what may be
    under way still from before; from disk.

    A count of a later day means that the clock was set back: that day goes on, to the end of tomorrow at the latest,
    and nothing is granted twice.
    """
    profile = sites.profile(provider)
    capped = profile.daily_cap is not None
    keys = {n: s.name for n, s in sites.sources.items() if capped or s.warmup}
    if profile.daily_cap_total is not None:
        keys[ALL] = ""
    today = now_ms // DAY_MS
    used = _read(get_state, {number: daily_key(name, site) for number, name in keys.items()}, today + 1)
    carried = _read(get_state, {number: carried_key(name, site) for number, name in keys.items()}, today + 1)
    day = max(today, *(counted for counted, _ in used.values()), 0)
    # what was under way at midnight is in a count of today; without one it may all have been sent today
    before = {number: count for number, (counted, count) in carried.items() if counted == day - 1}
    of_day = {number: count for number, (counted, count) in used.items() if counted == day}
    return Counts(
        day=day,
        used=before | of_day,
        under_way={number: count for number, (counted, count) in carried.items() if counted == day},
    )


def _read(
    get_state: Callable[[str], bytes | None], keys: dict[int, str], last_day: int
) -> dict[int, tuple[int, int]]:
    """The day, `last_day` at most, and the count of those that are on disk."""
    found = {}
    for number, key in keys.items():
        state = get_state(key)
        if state is not None:
            value = int.from_bytes(state, "big")
            found[number] = min(value >> 40, last_day), value & COUNT
    return found
