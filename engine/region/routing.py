"""Finds the routes that the windows want, and settles what has none.

A domain is looked up when its first message is due. With a route its queue joins a flow of the scheduler, at the site
the route leads to; without one its messages bounce or wait for their next attempt, as the failure says.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from engine.region.enforcement import Enforcement
from engine.region.outcomes import Outcomes
from engine.region.windows import Windows
from engine.routing.route import Failure, Route
from engine.routing.router import Router
from engine.values.outcome import OutcomeKind, Scope

UNROUTABLE_BATCH = 500
AWAY_S = 0.5  # between two looks at a lease that is over


class Routing:
    """See the module docstring. `has_lease`: without it a peer may own what waits here, so nothing is settled."""

    def __init__(
        self,
        *,
        router: Router,
        windows: Windows,
        enforcement: Enforcement,
        outcomes: Outcomes,
        has_lease: Callable[[], bool],
        spawn: Callable[[Coroutine[Any, Any, None]], Any],
    ) -> None:
        self._router = router
        self._windows = windows
        self._enforcement = enforcement
        self._outcomes = outcomes
        self._has_lease = has_lease
        self._spawn = spawn

    def want(self, domain: str) -> None:
        """The windows have mail for this domain: they are told its route, never before this returns."""
        cached = self._router.cached(domain)
        if isinstance(cached, Route):
            # not inside the caller's loop: windows are being changed there
            asyncio.get_running_loop().call_soon(self._routed, domain, cached)
        else:
            self._spawn(self._resolve(domain))

    async def _resolve(self, domain: str) -> None:
        found = await self._router.route(domain)
        if isinstance(found, Failure):
            await self._settle_unroutable(domain, found)
        else:
            self._routed(domain, found)

    def _routed(self, domain: str, route: Route) -> None:
        self._windows.routed(domain, route, self._enforcement.open(route.site, route.provider))

    async def _settle_unroutable(self, domain: str, failure: Failure) -> None:
        kind = OutcomeKind.BOUNCED if failure.kind == "bounced" else OutcomeKind.DEFERRED
        while True:
            while not self._has_lease():
                await asyncio.sleep(AWAY_S)
            keys = self._windows.take_unroutable(domain, failure, UNROUTABLE_BATCH)
            if not keys:
                return
            await self._outcomes.settle_keys(keys, kind, Scope.DOMAIN, failure.reply)
