"""Jobs whose domain is being looked up: one question for a domain, however many wait for it.

They can be taken away meanwhile: a domain whose DNS or policy server is slow, or wants to be, must not hold the credits
of the others. The question goes on, and its answer is there the next time.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from engine.delivery.job import Job
from engine.delivery.ports import Routes


class Unrouted:
    """See the module docstring. `found`: told the jobs that still wait when a question ends, and the route."""

    def __init__(
        self,
        *,
        routes: Routes,
        found: Callable[[list[Job], Any], None],
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._routes = routes
        self._found = found
        self._spawn = spawn
        self._waiting: dict[str, list[Job]] = {}

    def add(self, job: Job) -> None:
        """The job waits for the route of its domain."""
        waiting = self._waiting.get(job.domain)
        if waiting is None:
            self._waiting[job.domain] = [job]
            self._spawn(self._look_up(job.domain))
        else:
            waiting.append(job)

    async def _look_up(self, domain: str) -> None:
        route = await self._routes.route(domain)
        self._found(self._waiting.pop(domain), route)

    def take(self, which: Callable[[Job], bool]) -> list[Job]:
        """The jobs of which that is true: they wait no more."""
        found = []
        for jobs in self._waiting.values():
            taken = [job for job in jobs if which(job)]
            if taken:
                jobs[:] = [job for job in jobs if not which(job)]
                found += taken
        return found

    def take_all(self) -> list[Job]:
        return self.take(lambda _: True)
