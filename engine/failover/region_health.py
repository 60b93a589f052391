"""What "healthy" means where the submission host name is led to regions (docs/dns-failover.md)."""

from enum import IntEnum

from engine.failover.messages import Standing


class RegionHealth(IntEnum):
    """The higher the better."""

    GONE = 0  # who turns there gets no answer
    IDLE = 1  # it answers, and takes no new mail now
    HEALTHY = 2


def region_health(condition: str, standing: Standing | None, *, has_gateway: bool) -> RegionHealth:
    """How good a region is for somebody who wants to hand in mail.

    HEALTHY is a region that takes new mail: it answers, is not being drained, has not been called dead by Fleet (if it
    has, it has returned since), has a standby for what it accepts (or `degraded: accept_local`), and its gateway
    answers, if anything comes in through one. A suspect is healthy: it has missed a few beats, and may have a lease.

    `condition`: as Fleet's watch sees it (actors/fleet.py). `standing`: None in a fleet without copies. `has_gateway`:
    False if the region has one for what comes in, and that does not answer.
    """
    if "down" in condition or standing is Standing.DEAD or not has_gateway:
        return RegionHealth.GONE
    if condition != "up" or standing is Standing.RETURNING:
        return RegionHealth.IDLE
    return RegionHealth.HEALTHY
