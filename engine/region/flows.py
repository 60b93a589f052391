"""The flows of the scheduler, for the spool queues that feed them: made for the first one, dropped after the last.

A flow is what a tenant's campaign has ready for a site in a stream; many domains of one provider share it. It holds
the numbers of its tenant and its campaign, and keeps its site from being forgotten. It is dropped when no queue feeds
it and it has nothing ready and nothing in flight; until then it waits here and is tried again.
"""

from dataclasses import dataclass

from engine.region.sites import Site, Sites
from native.scheduler import Scheduler


@dataclass(slots=True)
class Flow:
    """`queues`: how many spool queues feed it."""

    site: Site
    tenant: int
    campaign: int
    queues: int = 0


class Flows:
    """See the module docstring."""

    def __init__(self, *, scheduler: Scheduler, sites: Sites) -> None:
        self._scheduler = scheduler
        self._sites = sites
        self._flows: dict[int, Flow] = {}
        self._unused: dict[int, None] = {}  # those that no queue feeds, in the order in which they fell idle

    def __len__(self) -> int:
        return len(self._flows)

    def join(self, site: Site, stream: int, tenant: str, campaign: str) -> int:
        """Another queue feeds this flow from now on; returns its number."""
        tenant_no = self._sites.tenants.hold(tenant)
        campaign_no = self._sites.campaigns.hold(f"{tenant}\0{campaign}")
        number = self._scheduler.flow(site.number, stream, tenant_no, campaign_no)
        flow = self._flows.get(number)
        if flow is None:
            flow = self._flows[number] = Flow(site, tenant_no, campaign_no)
            self._sites.use(site)
        else:
            self._let_go(flow)  # it holds them already
        flow.queues += 1
        self._unused.pop(number, None)
        return number

    def leave(self, number: int) -> None:
        """A queue that fed this flow is forgotten."""
        flow = self._flows[number]
        flow.queues -= 1
        if not flow.queues:
            self._unused[number] = None

    def sweep(self, now_ns: int, limit: int) -> None:
        """Drop flows that are not used any more; at most `limit` are looked at."""
        for _ in range(min(limit, len(self._unused))):
            number = next(iter(self._unused))
            del self._unused[number]
            if not self._scheduler.drop_flow(number):
                self._unused[number] = None
                continue
            flow = self._flows.pop(number)
            self._let_go(flow)
            self._sites.leave(flow.site, now_ns)

    def _let_go(self, flow: Flow) -> None:
        self._sites.tenants.release(flow.tenant)
        self._sites.campaigns.release(flow.campaign)
