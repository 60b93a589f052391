"""The HTML report of a drill: one self-contained page, its timeline an SVG inside. Nothing is loaded from elsewhere."""

from collections.abc import Sequence
from html import escape

from engine.drill.figures import BIN_S
from engine.drill.record import DrillRecord

WIDTH, HEIGHT = 960, 260
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 44, 28
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .9rem .25rem 0;text-align:left;"
    "vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums}"
    ".met{color:#166534}.not{color:#b91c1c;font-weight:600}.note{color:#555}"
)
_CLASSES = {True: "met", False: "not", None: "note"}
ACCEPTED, DELIVERED, SHARE = "#9ca3af", "#2563eb", "#d97706"


def html(record: DrillRecord) -> str:
    figures = "".join(
        f'<tr><th>{escape(name)}</th><td class="n">{escape(value)}</td></tr>' for name, value in rows(record)
    )
    checks = "".join(
        f'<tr><td class="{_CLASSES[check.is_met]}">{check.state}</td>'
        f"<td>{escape(check.name)}</td><td>{escape(check.text)}</td></tr>"
        for check in record.checks
    )
    measured = f"{timeline(record)}<h2>Assertions</h2><table>{checks}</table><h2>Figures</h2><table>{figures}</table>"
    notes = "".join(f"<li>{escape(note)}</li>" for note in record.notes)
    caveat = f'<p class="note">Not rehearsed: {escape(record.caveat)}.</p>' if record.caveat else ""
    not_run = (
        f'<p class="not">{record.verdict.capitalize()}: {escape(record.reason)}.</p>' if record.reason else ""
    )
    kind = "live" if record.is_live else "temporary"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f"<title>drill {escape(record.scenario)}, {escape(record.at)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>Drill {escape(record.scenario)}: {record.verdict}</h1>"
        f"<p>{escape(record.title)} ({escape(record.target)}), {kind} fleet <b>{escape(record.fleet)}</b>, "
        f"{escape(record.at)}. Expected: {escape(record.expects)}.</p>{caveat}{not_run}"
        f"{'' if record.reason else measured}"
        f"{f'<h2>Notes</h2><ul>{notes}</ul>' if notes else ''}"
        f'<p class="note">{escape(record.machine)}</p></body></html>\n'
    )


def rows(record: DrillRecord) -> list[tuple[str, str]]:
    """The figures in words, for the report and the terminal; "-": not measured. None of a drill that has none."""
    found = record.figures
    if record.reason:
        return []
    twice = _count(found.duplicated)
    return [
        ("detection", _seconds(found.detection_s)),
        ("reroute: longest gap at the sink", _seconds(found.gap_s)),
        ("the same for what was hit", _seconds(found.share_gap_s)),
        ("longest gap before the fault", _seconds(found.gap_before_s)),
        ("drain of what had a receipt at the fault", _seconds(found.drain_s)),
        ("accepted", _count(found.accepted)),
        ("refused", _count(found.refused)),
        ("delivered", f"{found.delivered:,}"),
        ("lost", _count(found.lost)),
        ("sent twice", twice if found.unmarked is None else f"{twice}, {found.unmarked:,} without the mark"),
        ("receipts p50", _milliseconds(found.receipt_p50_ms)),
        ("receipts p99 before the fault", _milliseconds(found.receipt_p99_before_ms)),
        ("receipts p99 after it", _milliseconds(found.receipt_p99_ms)),
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f} s"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _count(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def timeline(record: DrillRecord) -> str:
    """Accepted and delivered per second over time, with the marks."""
    series = ((record.accepted, ACCEPTED), (record.delivered, DELIVERED), (record.delivered_share, SHARE))
    end_s = max(max((len(bins) for bins, _ in series), default=1) * BIN_S, 0.1)
    top = max((value for bins, _ in series for value in _smooth(bins)), default=1.0) or 1.0

    def x(at_s: float) -> float:
        return LEFT + at_s / end_s * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return HEIGHT - BOTTOM - value / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="100%" role="img" '
        'font-family="system-ui,sans-serif" font-size="12"><title>accepted and delivered over time</title>'
        '<rect width="100%" height="100%" fill="#fff"/>'
    ]
    for share in (0.0, 0.5, 1.0):
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(top * share):.1f}" y2="{y(top * share):.1f}" '
            f'stroke="#e5e7eb"/><text x="{LEFT - 6}" y="{y(top * share) + 4:.1f}" text-anchor="end">'
            f"{top * share:,.0f}/s</text>"
        )
    for bins, colour in series:
        points = " ".join(
            f"{x(number * BIN_S):.1f},{y(value):.1f}" for number, value in enumerate(_smooth(bins))
        )
        if points:
            parts.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>')
    for number, (at_s, text) in enumerate(record.marks):
        parts.append(
            f'<line x1="{x(at_s):.1f}" x2="{x(at_s):.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" stroke="#b91c1c" '
            f'stroke-dasharray="3 3"/><text x="{x(at_s) + 3:.1f}" y="{TOP + 10 + 13 * (number % 4)}" '
            f'fill="#b91c1c">{escape(text)}</text>'
        )
    legend = (("accepted", ACCEPTED), ("delivered", DELIVERED), ("delivered, of what was hit", SHARE))
    for number, (text, colour) in enumerate(legend):
        parts.append(f'<text x="{LEFT + 190 * number}" y="18" fill="{colour}">{text}</text>')
    for second in range(0, int(end_s) + 1, max(1, int(end_s / 10))):
        parts.append(f'<text x="{x(second):.1f}" y="{HEIGHT - 8}" text-anchor="middle">{second} s</text>')
    return "".join((*parts, "</svg>"))


def _smooth(bins: Sequence[int]) -> list[float]:
    """Per second: the mean of three tenths around each."""
    found = []
    for number in range(len(bins)):
        near = bins[max(0, number - 1) : number + 2]
        found.append(sum(near) / len(near) / BIN_S)
    return found
