"""Line charts as SVG text, without a library: for the report of a simulation and the plots of the docs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#17becf", "#7f7f7f")
LEFT, RIGHT, TOP, BOTTOM = 64, 12, 26, 24


@dataclass(frozen=True, slots=True)
class Line:
    """`values[i]` belongs to `times[i]` of the chart; None is a gap. `is_step`: it holds until the next one."""

    name: str
    values: Sequence[float | None]
    colour: str = ""
    is_step: bool = False
    dashed: bool = False


@dataclass(frozen=True, slots=True)
class Band:
    """A coloured stretch of time behind the lines, with its name."""

    begin: float
    end: float
    colour: str
    name: str = ""


def chart(
    title: str,
    times: Sequence[float],
    lines: Sequence[Line],
    *,
    bands: Sequence[Band] = (),
    marks: Sequence[tuple[float, str]] = (),
    width: int = 860,
    height: int = 190,
    top: float | None = None,
    log: bool = False,
) -> str:
    """One chart. `times` are seconds; `top` the largest value of the axis (default: of the lines); `log`: decades."""
    end = max(times, default=1.0) or 1.0
    values = [v for line in lines for v in line.values if v is not None]
    limit = top if top is not None else nice(max(values, default=1.0) or 1.0)
    floor = 1.0 if log else 0.0
    wide, high = width - LEFT - RIGHT, height - TOP - BOTTOM

    def x(time: float) -> float:
        return LEFT + time / end * wide

    def y(value: float) -> float:
        part = value / limit
        if log:
            part = math.log10(max(value, floor)) / math.log10(max(limit, 10.0))
        return TOP + high * (1 - min(1.0, max(0.0, part)))

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for band in bands:
        parts.append(
            f'<rect x="{x(band.begin):.1f}" y="{TOP}" width="{max(0.5, x(band.end) - x(band.begin)):.1f}" '
            f'height="{high}" fill="{band.colour}" fill-opacity="0.25"><title>{escape(band.name)}</title></rect>'
        )
    for value in ticks(limit, is_log=log):
        parts.append(
            f'<line x1="{LEFT}" x2="{width - RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}" stroke="#ddd"/>'
            f'<text x="{LEFT - 5}" y="{y(value) + 4:.1f}" text-anchor="end" fill="#555">{short(value)}</text>'
        )
    for time, label in time_ticks(end):
        parts.append(
            f'<text x="{x(time):.1f}" y="{height - 8}" text-anchor="middle" fill="#555">{label}</text>'
            f'<line x1="{x(time):.1f}" x2="{x(time):.1f}" y1="{TOP + high}" y2="{TOP + high + 4}" stroke="#999"/>'
        )
    for time, label in marks:
        parts.append(
            f'<line x1="{x(time):.1f}" x2="{x(time):.1f}" y1="{TOP}" y2="{TOP + high}" stroke="#000" '
            f'stroke-dasharray="3 3"><title>{escape(label)}</title></line>'
            f'<text x="{x(time) + 3:.1f}" y="{TOP + 10}" fill="#000">{escape(label)}</text>'
        )
    legend = LEFT + 8 + 6.4 * len(title)
    parts.append(f'<text x="{LEFT}" y="16" font-weight="bold">{escape(title)}</text>')
    for number, line in enumerate(lines):
        colour = line.colour or COLOURS[number % len(COLOURS)]
        dash = ' stroke-dasharray="5 3"' if line.dashed else ""
        for points in stretches(times, line):
            path = " ".join(f"{x(time):.1f},{y(value):.1f}" for time, value in points)
            parts.append(
                f'<polyline fill="none" stroke="{colour}" stroke-width="1.5"{dash} points="{path}"/>'
            )
        parts.append(f'<text x="{legend:.0f}" y="16" fill="{colour}">{escape(line.name)}</text>')
        legend += 12 + 6.4 * len(line.name)
    parts.append("</svg>")
    return "".join(parts)


def stretches(times: Sequence[float], line: Line) -> list[list[tuple[float, float]]]:
    """The points of a line, cut at its gaps."""
    found: list[list[tuple[float, float]]] = []
    is_open = False
    for time, value in zip(times, line.values, strict=False):
        if value is None:
            is_open = False
            continue
        if not is_open:
            found.append([])
            is_open = True
        elif line.is_step:
            found[-1].append((time, found[-1][-1][1]))
        found[-1].append((time, value))
    return found


def nice(value: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(power * step for step in (1, 2, 5, 10) if power * step >= value - 1e-12)


def ticks(limit: float, *, is_log: bool) -> list[float]:
    if is_log:
        return [10.0**n for n in range(math.ceil(math.log10(max(limit, 10.0))) + 1)]
    return [limit * part / 4 for part in range(5)]


def short(value: float) -> str:
    """As 950, 1.5k, 20M."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def time_ticks(end_s: float) -> list[tuple[float, str]]:
    """About eight labels in a unit that fits."""
    for unit_s, name in ((86_400.0, "d"), (3_600.0, "h"), (60.0, "min"), (1.0, "s")):
        if end_s >= 2 * unit_s or name == "s":
            break
    step = max(1.0, nice(end_s / unit_s / 8)) if end_s / unit_s > 8 else 1.0
    count = int(end_s / unit_s / step + 1e-9)
    return [(n * step * unit_s, f"{n * step:g} {name}") for n in range(count + 1)]
