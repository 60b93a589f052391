"""The points as Prometheus reads them: its text format, version 0.0.4.

Rendered here because it is a page of specification, and the package for it is a registry of instruments that a process
keeps: nothing is counted here. docs/adr/0032-metrics.md.
"""

from collections.abc import Iterable, Mapping

from engine.metrics.catalogue import CATALOGUE, Point, place_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_IN_TEXT = str.maketrans({"\\": r"\\", "\n": r"\n"})
_IN_VALUE = str.maketrans({"\\": r"\\", "\n": r"\n", '"': r"\""})


def render(by_region: Mapping[str, Iterable[Point]], shard_of: str | None = None) -> str:
    """The exposition of the points of these regions, metric by metric in the catalogue's order.

    `shard_of`: the region of several nodes whose shards they are.
    """
    lines: dict[str, list[str]] = {}
    for region, points in by_region.items():
        place = place_of(region, shard_of).items()
        for point in points:
            metric = CATALOGUE[point.metric]
            labels = [*place, *zip(metric.labels, point.labels, strict=True)]
            text = ",".join(
                f'{name.replace(".", "_")}="{value.translate(_IN_VALUE)}"' for name, value in labels
            )
            lines.setdefault(point.metric, []).append(f"{metric.prometheus}{{{text}}} {_number(point.value)}")
    parts = []
    for name, metric in CATALOGUE.items():
        if name in lines:
            parts.append(f"# HELP {metric.prometheus} {metric.text.translate(_IN_TEXT)}")
            parts.append(f"# TYPE {metric.prometheus} {metric.kind}")
            parts += sorted(lines[name])
    return "\n".join(parts) + "\n" if parts else ""


def _number(value: float) -> str:
    """Shortest form that reads back as the same number."""
    return str(int(value)) if value == int(value) else repr(value)
