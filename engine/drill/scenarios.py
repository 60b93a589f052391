"""The faults that can be rehearsed, what each has to show, and which of them a fleet can be put to.

Bounds have room for a loaded machine: a drill tells whether the mechanism works, its figures tell how well. What a
fleet cannot be put to is refused with the reason, and what a drill does not show is said in its report.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from engine.config.schema import FleetConfig


@dataclass(frozen=True, slots=True)
class Bounds:
    """Seconds; None: not judged. `gap_s`: all of the fleet's deliveries; `share_gap_s`: those of what was hit."""

    detection_s: float | None
    gap_s: float | None
    share_gap_s: float | None


@dataclass(frozen=True, slots=True)
class Scenario:
    """`title` says what is done, `expects` what has to go on. `hold_s`: so long the fault lasts, then it is healed.

    `needs_copies`: a live fleet without them is refused. `gets_copies`: a temporary one has them, a live one need not.
    `picks_region`: it can be made in any region that one names. `may_refuse`: the region that is hit may refuse mail.
    """

    name: str
    title: str
    expects: str
    bounds: Bounds
    hold_s: float = 0.0
    needs_temporary: str = ""
    needs_copies: bool = False
    gets_copies: bool = False
    picks_region: bool = True
    may_refuse: bool = False


class DrillRefused(ValueError):
    """The scenario cannot be run, or not passed, with this fleet; the message says why."""


class CannotRunHere(DrillRefused):
    """This machine lacks what the scenario needs: a right, a program."""


@dataclass(frozen=True, slots=True)
class DrillOptions:
    """Messages per second, seconds of load before and after the fault, the region that is hit (None: the last one)."""

    rate: float = 100.0
    before_s: float = 5.0
    after_s: float = 15.0
    region: str | None = None


TEMPORARY_REGIONS = ("eu", "us")


SCENARIOS: Mapping[str, Scenario] = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "pool-kill",
            "SIGKILL of the pool of one region",
            "a new pool takes over; what was in flight is sent again, marked where it may be a duplicate",
            Bounds(10.0, 2.0, 10.0),
        ),
        Scenario(
            "source-block",
            "a provider refuses everything from one source",
            "the source leaves the rotation at that provider, its mail goes out over the others, no recipient bounces",
            Bounds(5.0, 2.0, None),
            needs_temporary="no real provider can be made to block a source",
            picks_region=False,
        ),
        Scenario(
            "region-kill",
            "SIGKILL of a region's process",
            "with copies its peer sends its mail meanwhile; it goes on from its spool; other regions do not notice",
            Bounds(5.0, 2.0, 30.0),
            gets_copies=True,
            may_refuse=True,
        ),
        Scenario(
            "region-freeze",
            "SIGSTOP of a region's process for a while",
            "with copies its peer sends its mail meanwhile; other regions go on; it goes on when it is continued",
            Bounds(10.0, 2.0, 30.0),
            hold_s=5.0,
            gets_copies=True,
            may_refuse=True,
        ),
        *(
            Scenario(
                name,
                title,
                "it is called dead and sends nothing more; its peer sends its mail; it returns and gives that up",
                Bounds(5.0, 2.0, None),
                hold_s=5.0,
                needs_copies=True,
                may_refuse=True,
            )
            for name, title in (
                ("partition", "a region and its fleet do not hear each other for a while"),
                ("partition-in", "a region does not hear its fleet for a while, but is heard"),
                ("partition-out", "a region is not heard by its fleet for a while, but hears it"),
            )
        ),
        Scenario(
            "head-kill",
            "SIGKILL of the process of Ray's head (GCS)",
            "it is started again with what it knew; nothing else is, and mail does not notice",
            Bounds(30.0, 2.0, None),
            picks_region=False,
        ),
        Scenario(
            "disk-full",
            "the disk below one region's spool runs full for a while",
            "the region refuses new mail and goes on delivering; it accepts again when there is room",
            Bounds(5.0, 2.0, None),
            hold_s=5.0,
            needs_temporary="a live disk is not filled on purpose",
            picks_region=False,
            may_refuse=True,
        ),
        Scenario(
            "dns",
            "SIGSTOP of a region's process until the submission host name has left it",
            "the region's addresses leave the records at every authoritative server, and come back",
            Bounds(None, 2.0, None),
            hold_s=60.0,
            may_refuse=True,
        ),
    )
}


def refusal(scenario: Scenario, config: FleetConfig, region: str | None = None) -> str:
    """Why this live fleet cannot be put to the scenario, "" if it can. `region`: None is the last one."""
    names = [one.name for one in config.regions]
    if scenario.needs_temporary:
        return f"only on a temporary fleet: {scenario.needs_temporary}"
    if scenario.name == "head-kill" and config.ray.address is not None:
        return (
            "on a cluster (ray.address) Ray's head is started again by its own machine, not by the fleet: stop and "
            "start it there (docs/operations.md, When the head is away)"
        )
    if region is not None and region not in names:
        return f"--region: {region!r}, allowed are {', '.join(names)}"
    if scenario.needs_copies and not config.fleet.replicas:
        return "the fleet has replicas: 0, its regions have no leases and do not send each other's mail"
    if scenario.name == "dns" and config.dns_failover is None:
        return "the fleet has no dns_failover"
    if scenario.name == "dns" and config.dns_failover is not None:
        allowed = [name for name in names if name in config.dns_failover.addresses]
        if (region or names[-1]) not in allowed:
            return (
                f"region {region or names[-1]} has no addresses in dns_failover: --region, allowed are "
                f"{', '.join(allowed)}"
            )
    return ""


def caveat(scenario: Scenario, config: FleetConfig) -> str:
    """What a fleet of this configuration cannot show in the scenario, "" if there is nothing of the kind."""
    if scenario.name in ("region-kill", "region-freeze") and config.fleet.replicas:
        return "a region whose disk is gone: the region that is hit keeps its own"
    if scenario.name in ("region-kill", "region-freeze"):
        return (
            "regions keep no copies of each other's mail: what the region holds waits until it is back, and a region "
            "whose disk is gone is not rehearsed"
        )
    return ""
