"""The figures of one source for metrics and alerts, made by its owner: by provider, over all sites there."""

from collections import Counter

from engine.metrics.bounding import ALL, merged
from engine.metrics.catalogue import Point
from engine.reputation.source import SourceOwner
from engine.warmup.warmup import provider_of


def source_points(owner: SourceOwner, now_ms: int) -> list[Point]:
    """Score and states; of a warm-up that is going on, today's cap and what is used of it."""
    reputation = owner.reputation
    named = owner.name
    standings = [(provider_of(s.site), s) for s in reputation.sites.values()]
    standings.append((ALL, reputation.whole))
    states = Counter((provider, named, str(s.state)) for provider, s in standings)
    points = [Point("sendfleet.source.sites", labels, count) for labels, count in states.items()]
    points += [Point("sendfleet.source.score", (provider, named), s.score) for provider, s in standings]
    for view in owner.warmup.views(now_ms):
        if view.day_cap:
            place = provider_of(view.site), named
            points += [
                Point("sendfleet.warmup.cap", place, view.day_cap),
                Point("sendfleet.warmup.attempts", place, view.attempts),
                Point("sendfleet.warmup.delivered", place, view.delivered),
                Point("sendfleet.warmup.held", place, view.held_days),
            ]
    return merged(points)
