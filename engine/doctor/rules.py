"""The published rules of providers for bulk senders (rules.yaml), and how a finding is judged by them.

A requirement that is not met is FAIL if a provider demands it, WARN if it is only advised, or what the check itself
says if no provider speaks of it.
"""

from functools import cache
from importlib.resources import files

from engine.config.strict_yaml import read_yaml
from engine.doctor.finding import Demand, Finding, Level


@cache
def demands() -> dict[str, tuple[Demand, ...]]:
    """Demands by requirement."""
    found: dict[str, tuple[Demand, ...]] = {}
    data = read_yaml(files("engine.doctor").joinpath("rules.yaml").read_text("utf-8"))
    assert isinstance(data, list)
    for row in data:
        demand = Demand(row["provider"], row["must"], row["text"], row["source"])
        found[row["requirement"]] = (*found.get(row["requirement"], ()), demand)
    return found


def passed(check: str, subject: str, why: str) -> Finding:
    return Finding(check, subject, Level.PASS, why)


def noted(check: str, subject: str, why: str, *publish: str) -> Finding:
    return Finding(check, subject, Level.NOTE, why, publish)


def missed(check: str, subject: str, why: str, *publish: str, requirement: str) -> Finding:
    """A published requirement is not met."""
    who = demands()[requirement]
    level = Level.FAIL if any(demand.is_must for demand in who) else Level.WARN
    return Finding(check, subject, level, why, publish, who)


def warned(check: str, subject: str, why: str, *publish: str) -> Finding:
    """No provider demands it, and it should be better."""
    return Finding(check, subject, Level.WARN, why, publish)


def failed(check: str, subject: str, why: str, *publish: str) -> Finding:
    """Wrong by the standards, whatever providers publish."""
    return Finding(check, subject, Level.FAIL, why, publish)


def unanswered(check: str, subject: str, reason: str) -> Finding:
    """The DNS failed: receivers see the same, and put mail off or distrust it."""
    return Finding(check, subject, Level.FAIL, f"the DNS does not answer: {reason}", is_known=False)
