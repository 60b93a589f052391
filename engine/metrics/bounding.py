"""Bounds of labels, and one figure of several: what reaches an exporter has each combination of labels once.

Providers are those of the profiles, shipped and configured; any other value becomes `other`. Sources are told apart
up to `metrics.max_sources`, the first ones of the configuration; the rest are one, `other`. Streams, states, outcomes
and results are fixed sets of the engine.
"""

from collections.abc import Collection, Iterable, Mapping

from engine.metrics.catalogue import CATALOGUE, Merge, Metric, Point

OTHER = "other"
ALL = "all"
UNKNOWN = "unknown"


class Bounds:
    """The values of labels that are told apart. `providers`: all that are known; `sources`: those with a name."""

    def __init__(self, providers: Collection[str], sources: Collection[str]) -> None:
        self._allowed: Mapping[str, frozenset[str]] = {
            "provider": frozenset({*providers, ALL, UNKNOWN}),
            "source": frozenset({*sources, ALL}),
        }

    def apply(self, points: Iterable[Point]) -> list[Point]:
        """The points with bounded labels, each combination once. ValueError: one is not in the catalogue."""
        return merged(self._bounded(point) for point in points)

    def _bounded(self, point: Point) -> Point:
        labels = tuple(
            value if value in self._allowed.get(name, (value,)) else OTHER
            for name, value in zip(_metric(point).labels, point.labels, strict=True)
        )
        return Point(point.metric, labels, point.value)


def merged(points: Iterable[Point]) -> list[Point]:
    """Each combination of labels once. ValueError: a point is not in the catalogue."""
    found: dict[tuple[str, tuple[str, ...]], float] = {}
    for point in points:
        how = _metric(point).merge
        key = point.metric, point.labels
        before = found.get(key)
        found[key] = point.value if before is None else _merge(how, before, point.value)
    return [Point(name, labels, value) for (name, labels), value in found.items()]


def _metric(point: Point) -> Metric:
    metric = CATALOGUE.get(point.metric)
    if metric is None or len(point.labels) != len(metric.labels):
        raise ValueError(f"{point!r}: not in the catalogue, or with other labels")
    return metric


def _merge(how: Merge, one: float, other: float) -> float:
    if how is Merge.MAX:
        return max(one, other)
    return min(one, other) if how is Merge.MIN else one + other
