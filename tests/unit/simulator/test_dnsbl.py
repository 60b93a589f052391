"""A DNS blocklist names a source: it is out everywhere, the others carry the mail, it returns through probation."""

from engine.simulator.plan import parse_plan
from engine.simulator.simulation import Simulation


def test_a_listed_source_leaves_everywhere_and_returns() -> None:
    plan = parse_plan(
        {
            "name": "listed",
            "duration": "1d",
            "tick": "1m",
            "report": "1m",
            "samples": 48,
            "sources": [{"name": "s", "region": "eu", "count": 2, "first_ip": "192.0.2.1"}],
            "traffic": [
                {"name": "t", "per_day": 20_000, "shares": {"google": 1, "yahoo": 1}, "unknown": 0.0}
            ],
            "events": [{"kind": "dnsbl", "at": "2h", "lasts": "3h", "sources": ["s-1"]}],
            "fleet": {"reputation": {"removed_stay": "1h"}},
        }
    )
    simulation = Simulation(plan)
    simulation.run()
    path = [
        (round(event["at_s"] / 3600), event["state"])
        for event in simulation.record.events
        if event["event"] == "reputation" and event["source"] == "s-1" and event["site"] == ""
    ]
    assert path[:2] == [(2, "removed"), (5, "probation")]
    assert path[-1][1] == "active"
    for site in ("google", "yahoo"):
        listed, other = simulation.record.pairs[0, site], simulation.record.pairs[1, site]
        assert sum(listed.delivered[5:9]) == 0
        assert sum(other.delivered[5:9]) > 0
    assert simulation.record.queued == 0
