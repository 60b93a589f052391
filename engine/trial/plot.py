"""A trial as a picture: accepted, acknowledged and delivered over time, as plain SVG."""

from collections.abc import Iterator
from pathlib import Path

from engine.trial.figures import TrialReport

WIDTH, HEIGHT = 720, 360
LEFT, RIGHT, TOP, BOTTOM = 80, 20, 60, 40
LINES = (("accepted", "#888888"), ("acknowledged", "#e6872a"), ("delivered", "#1f77b4"))
STEPS = 5


def write_plot(report: TrialReport, path: Path) -> None:
    """Write the picture; raises OSError."""
    path.write_text("".join(_parts(report)), encoding="utf-8")


def _parts(report: TrialReport) -> Iterator[str]:
    end_s = max((sample.at_s for sample in report.samples), default=1.0) or 1.0
    top = max(
        [report.messages, *(max(s.accepted, s.delivered) for s in report.samples)]
    )  # other mail may be counted too

    def x(at_s: float) -> float:
        return LEFT + at_s / end_s * (WIDTH - LEFT - RIGHT)

    def y(count: float) -> float:
        return HEIGHT - BOTTOM - count / top * (HEIGHT - TOP - BOTTOM)

    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        'font-family="sans-serif" font-size="12">\n<rect width="100%" height="100%" fill="white"/>\n'
    )
    yield (
        f'<text x="{LEFT}" y="20" font-size="14">{report.messages:,} messages of {report.size_bytes:,} bytes: '
        f"{report.delivered_per_s:,.0f} delivered per second</text>\n"
    )
    for number, (name, colour) in enumerate(LINES):
        yield f'<text x="{LEFT + number * 130}" y="42" fill="{colour}">{name}</text>\n'
    for step in range(STEPS + 1):
        count, at_s = top * step / STEPS, end_s * step / STEPS
        yield (
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(count):.1f}" y2="{y(count):.1f}" stroke="#dddddd"/>\n'
            f'<text x="{LEFT - 6}" y="{y(count) + 4:.1f}" text-anchor="end">{count:,.0f}</text>\n'
            f'<text x="{x(at_s):.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{at_s:.1f} s</text>\n'
        )
    for name, colour in LINES:
        points = " ".join(
            f"{x(at_s):.1f},{y(count):.1f}"
            for at_s, count in [(0.0, 0), *((s.at_s, getattr(s, name)) for s in report.samples)]
        )
        yield f'<polyline fill="none" stroke="{colour}" stroke-width="2" points="{points}"/>\n'
    yield "</svg>\n"
