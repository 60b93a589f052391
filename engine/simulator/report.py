"""The report of a simulation: JSON, and one HTML page with its plots inside. Both depend on the data alone."""

import json
from html import escape
from typing import Any

from engine.simulator.plot import Band, Line, chart, short

STATE_COLOURS = {
    "warming": "#ffd27f",
    "degraded": "#ffb3b3",
    "removed": "#d62728",
    "probation": "#9ecae1",
    "region down": "#555555",
}
STYLE = (
    "body{font-family:sans-serif;max-width:900px;margin:2em auto;color:#222}table{border-collapse:collapse}"
    "td,th{padding:2px 10px;text-align:right;border-bottom:1px solid #eee}td:first-child,th:first-child{"
    "text-align:left}code{font-size:90%}h2{margin-top:2em}svg{max-width:100%;height:auto}span.s{padding:0 6px}"
)


def json_text(data: dict[str, Any]) -> str:
    """The data as text, the same for the same data."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True) + "\n"


def html_text(data: dict[str, Any]) -> str:
    """The page for the data of Record.as_json."""
    plan = data["plan"]
    marks = [(event["at_s"], event["kind"].replace("_", " ")) for event in data["happenings"]]
    parts = [
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{escape(plan["name"])}</title>',
        f"<style>{STYLE}</style></head><body><h1>{escape(plan['name'])}</h1><p>{escape(plan['about'])}</p>",
        _totals(data),
        "<h2>All sources, by provider</h2>",
    ]
    times = data["times_s"]
    for site, series in sorted(data["sites"].items()):
        parts.append(f"<h3>{escape(site)}</h3>")
        volume = [Line("delivered", series["delivered"]), Line("refused", series["refused"])]
        parts.append(chart(f"{site}: messages per sample", times, volume, marks=marks))
        parts.append(chart(f"{site}: waiting", times, [Line("messages", series["depth"])], height=120))
        rotating = [Line("sources", series["in_rotation"], is_step=True)]
        parts.append(chart(f"{site}: sources in rotation", times, rotating, height=110))
        if any(value is not None for value in series["utilisation"]):
            used = [Line("share of what the limits allow, while mail waits", series["utilisation"])]
            parts.append(chart(f"{site}: utilisation", times, used, height=120, top=1.0))
    parts.append(_tenants(data))
    parts.append("<h2>Single sources</h2><p>" + _legend() + "</p>")
    if data["pairs_left_out"]:
        parts.append(f"<p>{data['pairs_left_out']} pairs of source and provider are not shown.</p>")
    for pair in data["pairs"]:
        parts.append(_pair(pair, times))
    parts.append(_events(data))
    parts.append("</body></html>\n")
    return "\n".join(parts)


def _totals(data: dict[str, Any]) -> str:
    rows = "".join(f"<tr><td>{name}</td><td>{value:,}</td></tr>" for name, value in data["totals"].items())
    replies = "".join(
        f"<tr><td><code>{escape(text)}</code></td><td>{count:,}</td></tr>"
        for text, count in sorted(data["replies"].items(), key=lambda row: (-row[1], row[0]))[:20]
    )
    plan = data["plan"]
    head = f"<p>{plan['duration']} from {plan['start']}, steps of {plan['tick']}, seed {plan['seed']}</p>"
    return f"{head}<table>{rows}</table><h2>Replies</h2><table>{replies}</table>"


def _tenants(data: dict[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{escape(row['tenant'])}</td><td>{escape(row['region'])}</td><td>{row['quality']}</td>"
        f"<td>{row['score']}</td><td><code>{escape(row['reason'][:120])}</code></td></tr>"
        for row in data["tenants"]
    )
    head = "<tr><th>tenant</th><th>region</th><th>class at the end</th><th>score</th><th>because</th></tr>"
    return f"<h2>Tenants</h2><table>{head}{rows}</table>"


def _legend() -> str:
    return " ".join(
        f'<span class="s" style="background:{colour}40">{name}</span>'
        for name, colour in STATE_COLOURS.items()
    )


def _pair(pair: dict[str, Any], times: list[float]) -> str:
    name = f"{pair['source']} at {pair['site']}"
    lines = [Line("delivered", pair["delivered"]), Line("refused", pair["refused"])]
    bands = []
    place = 0
    for state, length in pair["state"]:
        begin = times[place - 1] if place else 0.0
        place += length
        if state in STATE_COLOURS:
            bands.append(Band(begin, times[place - 1], STATE_COLOURS[state], state))
    parts = [chart(f"{name}: messages per sample", times, lines, bands=bands, height=130)]
    if any(cap is not None for cap in pair["cap"]):
        largest = max(cap for cap in pair["cap"] if cap is not None)
        caps = [Line("messages a day", pair["cap"], is_step=True)]
        title = f"{name}: daily cap, to {short(largest)}"
        parts.append(chart(title, times, caps, height=110, log=True))
    if any(score < 100 for score in pair["score"]):
        scores = [Line("score", pair["score"], is_step=True)]
        parts.append(chart(f"{name}: score", times, scores, bands=bands, height=110, top=100.0))
    return "".join(parts)


def _events(data: dict[str, Any]) -> str:
    counts = ", ".join(f"{name} {count}" for name, count in data["event_counts"].items()) or "none"
    who = [event.get("source", event.get("tenant", "")) for event in data["events"]]
    rows = "".join(
        f"<tr><td>{event['at_s'] / 3600:.2f} h</td><td>{event['event']}</td><td>{escape(name)}</td>"
        f"<td>{escape(event.get('site', ''))}</td><td><code>{escape(_said(event))}</code></td></tr>"
        for event, name in zip(data["events"][:500], who, strict=False)
    )
    return f"<h2>Events</h2><p>{counts}</p><table>{rows}</table>"


def _said(event: dict[str, Any]) -> str:
    kept = {
        k: v for k, v in event.items() if k not in ("at_s", "event", "source", "site", "tenant", "until_ms")
    }
    return " ".join(f"{key}={str(value)[:100]}" for key, value in kept.items())
