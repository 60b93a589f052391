"""What one source has earned: a standing at every site, and one of the whole source.

A source leaves the rotation site by site. As a whole it leaves when enough of the sites that know it have removed it
(a removal that was there before its last return does not count again), or when a block list names it; it returns
through the same probation. What a site sees is the worse of the two standings.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from engine.config.reputation import ReputationConfig
from engine.reputation.allowance import SiteCounts
from engine.reputation.score import vector
from engine.reputation.standing import Share, Standing, State, Transition

VERSION = 1
MAX_SITES = 10_000
SWEEP_MS = 60_000
WHOLE = ""
_SEVERITY = (State.ACTIVE, State.WARMING, State.DEGRADED, State.PROBATION, State.REMOVED)


def expected(*, warming: bool) -> State:
    """The state of good standing."""
    return State.WARMING if warming else State.ACTIVE


class Reputation:
    """See the module docstring. `sites` are those met so far; the least recently used go when there are too many."""

    def __init__(self, config: ReputationConfig) -> None:
        self._config = config
        self.whole = Standing(config, WHOLE)
        self.sites: dict[str, Standing] = {}
        self._touched: set[str] = set()  # since the last advance
        self.unsettled: set[str] = set()  # those not in good standing, as far as the last look at them
        self._swept_ms = 0
        self.listed = ""  # the block list that names the source, or ""

    def observe(self, now_ms: int, rows: Iterable[SiteCounts]) -> None:
        for row in rows:
            counts = vector(row)
            if not any(counts):
                continue
            standing = self.sites.pop(row.site, None) or Standing(self._config, row.site)
            self.sites[row.site] = standing
            while len(self.sites) > MAX_SITES:
                self._forget_one()
            standing.observe(now_ms, counts)
            self._touched.add(row.site)
            self.whole.observe(now_ms, counts)

    def _forget_one(self) -> None:
        """The least recently used of those in good standing; a removal is never forgotten while another can be."""
        for site, standing in self.sites.items():
            if standing.state in (State.ACTIVE, State.WARMING):
                del self.sites[site]
                self.unsettled.discard(site)
                return
        site = next(iter(self.sites))
        del self.sites[site]
        self.unsettled.discard(site)

    def look_at(self, site: str) -> None:
        """Something has changed there that may change the standing: the next `advance` looks."""
        self._touched.add(site)

    def advance(self, now_ms: int, is_warming: Callable[[str], bool]) -> list[Transition]:
        """All transitions that are due now.

        A site in good standing that has not been heard of cannot get worse: a source may know thousands of such, and
        they are looked at only every `SWEEP_MS`.
        """
        sweeps = not 0 <= now_ms - self._swept_ms < SWEEP_MS
        if sweeps:
            self._swept_ms = now_ms
        found = []
        for site in list(self.sites) if sweeps else sorted(self._touched | self.unsettled):
            standing = self.sites.get(site)
            if standing is None:
                continue  # forgotten meanwhile
            found.append(standing.advance(now_ms, warming=is_warming(site)))
            if standing.state is expected(warming=is_warming(site)):
                self.unsettled.discard(site)
            else:
                self.unsettled.add(site)
        self._touched.clear()
        found.append(self._advance_whole(now_ms))
        return [transition for transition in found if transition is not None]

    def _advance_whole(self, now_ms: int) -> Transition | None:
        whole = self.whole
        if whole.state is not State.REMOVED:
            if self.listed:
                return whole.remove(now_ms, f"listed: {self.listed}")
            agreeing = self._agreeing(now_ms)
            if agreeing:
                return whole.remove(now_ms, f"removed by {', '.join(agreeing[:8])}")
        elif self.listed:
            return None
        if whole.state in (State.REMOVED, State.PROBATION):
            return whole.advance(now_ms, warming=False)
        whole.score = whole.counts.score(now_ms).value
        return None

    def _agreeing(self, now_ms: int) -> list[str]:
        """The sites that agree to remove the whole source; empty when they are too few."""
        out = sum(self.sites[site].state is State.REMOVED for site in self.unsettled)
        if out < self._config.agree_sites:
            return []
        removed = [s for s in self.sites.values() if s.state is State.REMOVED]
        agreeing = [s.site for s in removed if s.removed_ms > self.whole.removed_ms]
        if len(agreeing) < self._config.agree_sites:
            return []
        others = (s for s in self.sites.values() if s.state is not State.REMOVED)
        known = len(removed) + sum(s.counts.score(now_ms).judged for s in others)
        return agreeing if len(agreeing) >= self._config.agree_share * known else []

    def remove(self, now_ms: int, site: str, reason: str, *, stay_ms: int = 0) -> Transition | None:
        """A reply says that the site does not want this source for some time."""
        standing = self.sites.setdefault(site, Standing(self._config, site))
        self.unsettled.add(site)
        return standing.remove(now_ms, reason, stay_ms=stay_ms)

    def release(self, now_ms: int, site: str) -> bool:
        """An operator ends the removal at a site; returns whether there was one."""
        at = self.sites.get(site)
        return at is not None and at.release(now_ms)

    def share(self, site: str) -> Share:
        """What the source may do at a site: the less of what it has earned there and everywhere."""
        whole = self.whole.share()
        at = self.sites.get(site)
        if at is None:
            return whole
        here = at.share()
        return Share(min(whole.permille, here.permille), max(whole.interval_ms, here.interval_ms))

    def standing(self, site: str) -> Standing:
        """The worse standing of the two, for state, score and reason."""
        at = self.sites.get(site)
        if at is None or _SEVERITY.index(self.whole.state) > _SEVERITY.index(at.state):
            return self.whole
        return at

    def score(self, site: str) -> int:
        at = self.sites.get(site)
        return at.score if at is not None else self.whole.score

    def review_ms(self, site: str) -> int:
        """The next time at which the standing at a site may change without traffic, 0 if there is none."""
        at = self.sites.get(site)
        times = [self.whole.review_ms(), at.review_ms() if at is not None else 0]
        return min((time for time in times if time), default=0)

    def to_state(self) -> dict[str, object]:
        return {
            "version": VERSION,
            "listed": self.listed,
            "whole": self.whole.to_state(),
            "sites": {site: standing.to_state() for site, standing in self.sites.items()},
        }

    @classmethod
    def from_state(cls, config: ReputationConfig, state: Mapping[str, Any]) -> "Reputation":
        """Raises ValueError for a state of a version that this code does not know."""
        if state.get("version") != VERSION:
            raise ValueError(f"reputation state: version {state.get('version')!r}; allowed is {VERSION}")
        book = cls(config)
        book.listed = str(state["listed"])
        book.whole = Standing.from_state(config, WHOLE, state["whole"])
        rows: Mapping[str, Sequence[object]] = state["sites"]
        for site, row in rows.items():
            book.sites[site] = Standing.from_state(config, site, row)
            if book.sites[site].state not in (State.ACTIVE, State.WARMING):
                book.unsettled.add(site)
        return book
