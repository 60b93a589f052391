"""The flows of the scheduler, for the spool queues that feed them: made for the first one, dropped after the last.

A flow is what a tenant's campaign has ready for a site in a stream; many domains of one provider share it. It holds
the numbers of its tenant and its campaign, and keeps its site from being forgotten. It is dropped when no queue feeds
it and it has nothing ready and nothing in flight; until then it waits here and is tried again.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from engine.region.sites import Site, Sites
from native.scheduler import Scheduler


@dataclass(slots=True)
class Flow:
    """`queues`: how many spool queues feed it."""

    site: Site
    stream: int
    tenant: int
    campaign: int
    queues: int = 0


class Flows:
    """See the module docstring."""

    def __init__(self, *, scheduler: Scheduler, sites: Sites) -> None:
        self._scheduler = scheduler
        self._sites = sites
        self._flows: dict[int, Flow] = {}
        # by site, then by stream and tenant
        self._places: dict[int, dict[tuple[int, int], dict[int, None]]] = {}
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
            flow = self._flows[number] = Flow(site, stream, tenant_no, campaign_no)
            self._sites.use(site)
            self._places.setdefault(site.number, {}).setdefault((stream, tenant_no), {})[number] = None
        else:
            self._let_go(flow)  # it holds them already
        flow.queues += 1
        self._unused.pop(number, None)
        return number

    def of_path(self, site: int, stream: int, tenant: int) -> Collection[int]:
        """The flows of a tenant's mail for a site in a stream."""
        return self._places.get(site, {}).get((stream, tenant), {}).keys()

    def at_site(self, site: int) -> Mapping[tuple[int, int], Collection[int]]:
        """All flows for a site, by stream and tenant."""
        return self._places.get(site, {})

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
            self._forget_place(number, flow)
            self._let_go(flow)
            self._sites.leave(flow.site, now_ns)

    def _forget_place(self, number: int, flow: Flow) -> None:
        at_site = self._places[flow.site.number]
        numbers = at_site[flow.stream, flow.tenant]
        del numbers[number]
        if not numbers:
            del at_site[flow.stream, flow.tenant]
        if not at_site:
            del self._places[flow.site.number]

    def _let_go(self, flow: Flow) -> None:
        self._sites.tenants.release(flow.tenant)
        self._sites.campaigns.release(flow.campaign)
