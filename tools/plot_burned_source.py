"""Draws docs/burned-source.svg: a source that Outlook blocks leaves the rotation there and comes back.

A simulation of the engine's own code (engine/simulator); the same bytes each time. Run it after a change of the rules:

    .venv/bin/python tools/plot_burned_source.py
"""

import sys
from pathlib import Path

from engine.simulator.plan import parse_plan
from engine.simulator.plot import Band, Line, chart
from engine.simulator.report import STATE_COLOURS
from engine.simulator.simulation import Simulation

TARGET = Path(__file__).parents[1] / "docs" / "burned-source.svg"
BURNED, SITE = 0, "outlook"
PLAN = {
    "name": "burned-source",
    "seed": 2,
    "duration": "12h",
    "tick": "10s",
    "report": "30s",
    "samples": 240,
    "sources": [
        {"name": "source", "region": "eu", "count": 3, "first_ip": "192.0.2.1", "history": 1_000_000}
    ],
    "traffic": [{"name": "news", "per_day": 300_000, "shares": {"outlook": 1}, "unknown": 0.002}],
    "events": [
        {"kind": "block", "at": "2h", "lasts": "150m", "provider": "outlook", "sources": ["source-1"]}
    ],
    "fleet": {"reputation": {"removed_stay": "3h", "removed_stay_max": "3h"}},
}


def draw() -> str:
    record = Simulation(parse_plan(PLAN)).run()
    pair = record.pairs[BURNED, SITE]
    others = [sum(record.pairs[n, SITE].delivered[i] for n in (1, 2)) / 2 for i in range(len(record.times))]
    bands = []
    begin = 0.0
    for index, state in enumerate(pair.state):
        is_last = index + 1 == len(pair.state)
        if is_last or pair.state[index + 1] != state:
            if state in STATE_COLOURS:
                bands.append(Band(begin, record.times[index], STATE_COLOURS[state], state))
            begin = record.times[index]
    lines = [
        Line("the blocked source", pair.delivered, colour="#d62728"),
        Line("each of the two others", others, colour="#1f77b4"),
    ]
    marks = [(7_200.0, "S3140"), (7_200.0 + 9_000.0, "Outlook relents")]
    return chart("Delivered in 3 minutes", record.times, lines, bands=bands, marks=marks, height=240) + "\n"


def main() -> int:
    TARGET.write_text(draw(), encoding="utf-8")
    print(TARGET)
    return 0


if __name__ == "__main__":
    sys.exit(main())
