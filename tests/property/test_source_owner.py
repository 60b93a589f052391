"""A source's owner looks at few of the sites that it knows in each answer: the region still knows all that holds."""

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from engine.reputation.allowance import EVERYWHERE, Allowance, SiteCounts, Summary, both
from engine.reputation.source import SourceOwner
from tests.support.fleets import fleet, fleet_data

MINUTE_MS = 60_000
DAY_MS = 86_400_000
SITES = ["google", "outlook", "mx:a", "mx:b", "mx:c"]
BLOCK = "550 5.7.1 part of their network is on our block list (S3140)."
SLOW = "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred"

row = st.builds(
    lambda site, kind: {
        "good": SiteCounts(site, 200, 0, 0, 0),
        "few": SiteCounts(site, 1, 0, 0, 0),
        "bounces": SiteCounts(site, 20, 0, 180, 0),
        "blocked": SiteCounts(site, 0, 50, 0, 50, replies=((BLOCK, 50),)),
        "slow": SiteCounts(site, 50, 50, 0, 0, replies=((SLOW, 50),)),
        "asked": SiteCounts(site, 0, 0, 0, 0),
    }[kind],
    st.sampled_from(SITES),
    st.sampled_from(["good", "good", "few", "bounces", "blocked", "slow", "asked"]),
)
step = st.tuples(
    st.sampled_from([250, 5_000, MINUTE_MS, 20 * MINUTE_MS, 3 * 60 * MINUTE_MS, DAY_MS, 20 * DAY_MS]),
    st.lists(row, max_size=3, unique_by=lambda r: r.site),
    st.sampled_from([None] * 6 + ["pause", "skip", "cancel", "full", "restart"]),
    st.sampled_from(SITES[:2]),
)


def matters(allowance: Allowance) -> Allowance:
    """Without what drifts all day; that comes with a site's own mail, and once a minute. A source that carries nothing
    has no use for connections."""
    connections = allowance.connections if allowance.weight else 0
    drifts = {"interval_us": 0, "daily_used": 0, "used_day": 0, "score": 0, "reason": ""}
    return replace(allowance, connections=connections, **drifts)


def known(held: dict[str, Allowance], site: str) -> Allowance:
    """What a region goes by: what it was told of the site and what holds everywhere (engine/region/allowances.py)."""
    found, everywhere = held.get(site), held.get(EVERYWHERE)
    if found is None:
        return Allowance(site) if everywhere is None else replace(everywhere, site=site)
    return found if everywhere is None else both(found, everywhere)


@given(warmup=st.sampled_from([None, "standard"]), steps=st.lists(step, max_size=30))
@settings(max_examples=250, deadline=None)
def test_the_region_knows_what_holds_at_every_site(
    warmup: str | None, steps: list[tuple[int, list[SiteCounts], str | None, str]]
) -> None:
    data = fleet_data()
    if warmup is not None:
        data["sources"][0]["warmup"] = warmup
    config = fleet(**data)
    owner = SourceOwner(config, "eu-1")
    held: dict[str, Allowance] = {}
    now_ms, full = 20_000 * DAY_MS, True
    for ahead_ms, rows, order, site in steps:
        now_ms += ahead_ms
        if order == "restart":
            owner = SourceOwner.from_state(config, "eu-1", owner.to_state())
            full = True  # the region could not reach it meanwhile
        elif order == "cancel":
            control = owner.shaping.sites.get(site)
            for name in list(control.orders) if control is not None else ():
                owner.order(now_ms, "cancel", site, name)
        elif order in ("pause", "skip") and warmup is not None:
            owner.order(now_ms, order, site, 3 if order == "skip" else None)
        full |= order == "full"
        answer = owner.observe(Summary(now_ms, full, 0, tuple(rows)))
        if full:
            held.clear()
        full = False
        for allowance in answer.allowances:
            held[allowance.site] = allowance
        for name in {*owner.warmup.plans, *owner.shaping.sites, *owner.reputation.unsettled, *held}:
            assert matters(known(held, name)) == matters(owner.allowance(now_ms, name)), name
        if answer.review_ms:
            assert answer.review_ms > now_ms
