"""One source's record at every site, and the suspensions that its replies ask for.

Owns: counts per site, and how often the site has blocked the source in a row. A block suspends the source at that
site, for longer each time it happens again (1 minute doubling to 2 hours, the pause that Yahoo recommends after
TSS04); a summary with deliveries and no block forgives one step. Pure: time comes in with the summaries.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from engine.reputation.allowance import Allowance, SiteCounts

FIRST_MS = 60_000
MAX_MS = 7_200_000
FULL_WEIGHT = 1000


@dataclass(slots=True)
class SiteRecord:
    """What is known of one source at one site. `blocks` counts blocks in a row, each doubles the next pause."""

    delivered: int = 0
    deferred: int = 0
    bounced: int = 0
    blocked: int = 0
    blocks: int = 0
    suspended_until_ms: int = 0
    reason: str = ""


class SourceRecord:
    """Everything the owner of one source keeps. `to_state` and `from_state` carry it over a restart."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sites: dict[str, SiteRecord] = {}

    def observe(self, at_ms: int, counts: Iterable[SiteCounts]) -> list[Allowance]:
        """Take a summary in; returns the allowances of the sites it names."""
        allowances = []
        for row in counts:
            record = self.sites.setdefault(row.site, SiteRecord())
            record.delivered += row.delivered
            record.deferred += row.deferred
            record.bounced += row.bounced
            record.blocked += row.blocked
            if row.blocked and at_ms >= record.suspended_until_ms:
                pause_ms = min(FIRST_MS << min(record.blocks, 16), MAX_MS)
                record.blocks += 1
                record.suspended_until_ms = at_ms + pause_ms
                record.reason = row.reply
            elif row.delivered and not row.blocked and at_ms >= record.suspended_until_ms:
                record.blocks = max(0, record.blocks - 1)
            allowances.append(Allowance(row.site, FULL_WEIGHT, record.suspended_until_ms, record.reason))
        return allowances

    def to_state(self) -> dict[str, list[object]]:
        return {
            site: [r.delivered, r.deferred, r.bounced, r.blocked, r.blocks, r.suspended_until_ms, r.reason]
            for site, r in self.sites.items()
        }

    @classmethod
    def from_state(cls, name: str, state: dict[str, list[object]]) -> "SourceRecord":
        record = cls(name)
        for site, row in state.items():
            record.sites[site] = SiteRecord(*row)  # type: ignore[arg-type]
        return record
