"""Mail in need and who takes it: what a region asks its peers about, how much it gives them, what it takes of theirs.

Mail in need (engine/region/need.py) is asked about with every inquiry. Of what is blocked a peer gets all that it can
send. Of what is overloaded it gets portions (engine/region/portions.py) of what has waited for at least half of
`fleet.hand_over_overloaded`, as long as no mail of the same or a more urgent stream waits longer for that site there
than a quarter of the time, and none waits as long for a route. What it has taken keeps its due time and counts in that:
as long as it is not sent, the peer takes nothing more.
"""

import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from engine.failover.handover import Inquire, Terms
from engine.region.need import Change, NeedWatch, Path, Reason
from engine.region.paths import Paths
from engine.region.portions import Portions
from engine.region.waiting import OFFER_MESSAGES, WaitingMail
from engine.region.waits import Waits
from engine.values.clock import Clock
from engine.values.stream import Stream

log = logging.getLogger(__name__)

HEADROOM = 4  # so many times sooner mail must leave at the peer
FOR_EVER_MS = 1 << 46  # nobody knows when that block ends


class Carriers:
    """The sources that may carry mail, by stream and tenant: each is looked up once."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._found: dict[tuple[int, str], list[int]] = {}

    def of(self, stream: int, tenant: str) -> list[int]:
        found = self._found.get((stream, tenant))
        if found is None:
            found = self._found[stream, tenant] = self._paths.may_carry(stream, tenant)
        return found


class EventNotes(Protocol):
    """The part of the spool that takes events."""

    def note_events(self, events: list[tuple[int, str, dict[str, Any]]]) -> object: ...


class Relief:
    """See the module docstring.

    `blocked_ms`: `fleet.hand_over_after`, None if no mail is given away for being in need; `overloaded_ms`:
    `fleet.hand_over_overloaded`, None if not for that reason. `is_full`: whether the pool of a site has no room.
    """

    def __init__(
        self,
        *,
        blocked_ms: int | None,
        overloaded_ms: int | None,
        clock: Clock,
        events: EventNotes,
        paths: Paths,
        mail: WaitingMail,
        waits: Waits,
        is_full: Callable[[str], bool],
    ) -> None:
        self._clock = clock
        self._events = events
        self._paths = paths
        self._mail = mail
        self._waits = waits
        self._is_full = is_full
        self._portions = Portions(OFFER_MESSAGES)
        self._in_portions: set[str] = set()  # peers whose latest look was for a portion
        self._overloaded_ms = overloaded_ms
        self._watch: NeedWatch | None = None
        if blocked_ms is not None:
            self._watch = NeedWatch(
                blocked_ms=blocked_ms,
                overloaded_ms=overloaded_ms,
                paths=paths,
                ready=waits,
                waiting=mail.paths,
            )
        self.blocked: tuple[Path, ...] = ()
        self.overloaded: tuple[tuple[Path, int], ...] = ()

    # -- the giver

    def look(self) -> bool:
        """Look around a little; whether mail of this region is in need."""
        if self._watch is None:
            return False
        now_ms = self._clock.wall_ms()
        changes = self._watch.look(now_ms)
        if changes:
            self._note(changes, now_ms)
        self.blocked, self.overloaded = self._watch.blocked(), self._watch.overloaded()
        return bool(self.blocked or self.overloaded)

    def rest(self) -> None:
        """Nothing is given for being in need now."""
        self.blocked, self.overloaded = (), ()

    def _note(self, changes: Iterable[Change], now_ms: int) -> None:
        rows: list[tuple[int, str, dict[str, Any]]] = []
        carriers = Carriers(self._paths)
        for change in changes:
            site, stream, tenant = change.path
            held_by = ""
            if change.is_in_need:
                is_blocked = change.reason is Reason.BLOCKED
                held_by = "block" if is_blocked else self._held_by(change.path, carriers, now_ms)
            fields = {
                "site": site,
                "stream": str(Stream(stream)),
                "tenant": tenant,
                "reason": str(change.reason),
                "state": "began" if change.is_in_need else "ended",
                "seconds": None if change.ms >= FOR_EVER_MS else change.ms // 1000,
                "held_by": held_by,
            }
            log.info("mail in need: %s", fields)
            rows.append((now_ms, "hand_over", fields))
        self._events.note_events(rows)

    def _held_by(self, path: Path, carriers: Carriers, now_ms: int) -> str:
        """What mail of a path waits for: `block`, `pool`, `connections`, `rate`; `region`, if it is none of these."""
        site, stream, tenant = path
        sources = carriers.of(stream, tenant)
        if self._paths.blocked_until(site, sources, now_ms) > now_ms:
            return "block"
        if self._is_full(site):
            return "pool"
        return self._paths.held_by(site, sources, now_ms) or "region"

    def heard(self, peer: str, question: Inquire, terms: Terms, now_ns: int) -> None:
        """A peer has answered."""
        asked = {path for path, _ in question.overloaded}
        self._portions.heard(peer, asked, asked.intersection(terms.paths), now_ns)

    def wanted(self, peer: str, granted: frozenset[Path], now_ns: int) -> tuple[dict[Path, int], int]:
        """What may go to a peer now that can send mail of the paths `granted`: what was due before when (unix ms), by
        path; and at most how many messages."""
        now_ms = self._clock.wall_ms()
        only = {path: now_ms + 1 for path in self.blocked if path in granted}
        self._in_portions.discard(peer)
        paths, most = self._portions.next(peer, now_ns)
        before_ms = now_ms - (self._overloaded_ms or 0) // 2
        late = {path: before_ms for path, _ in self.overloaded if path in paths and path in granted}
        if not late:
            return only, OFFER_MESSAGES
        self._in_portions.add(peer)
        return only | late, most

    def gave(self, peer: str, now_ns: int) -> None:
        """Something was found of what was wanted."""
        if peer in self._in_portions:
            self._portions.gave(peer, now_ns)

    # -- the taker

    def takes(self, question: Inquire) -> tuple[Path, ...]:
        """Whose mail can be sent from here at once: a source is free, there is room for it in memory, and what is here
        does not wait for long itself."""
        now_ms = self._clock.wall_ms()
        full = self._mail.full_sites()
        carriers = Carriers(self._paths)
        waits: dict[tuple[str, int], int] = {}
        unrouted_ms = self._waits.unrouted_ms(now_ms)

        def has_room(path: Path, most_ms: int | None) -> bool:
            site, stream, tenant = path
            if site in full:
                return False
            if self._paths.blocked_until(site, carriers.of(stream, tenant), now_ms):
                return False
            if most_ms is None:
                return True
            if (site, stream) not in waits:
                waits[site, stream] = self._waits.before_ms(site, stream, now_ms)
            return max(unrouted_ms, waits[site, stream]) <= most_ms

        blocked = [path for path in question.paths if has_room(path, self._overloaded_ms)]
        late = [path for path, waited_ms in question.overloaded if has_room(path, waited_ms // HEADROOM)]
        return (*blocked, *late)

    # -- looking in

    def status(self) -> Mapping[str, object]:
        """`in_need`: paths that are blocked; `overloaded`: with how long each has waited, in seconds, and for what."""
        now_ms = self._clock.wall_ms()
        carriers = Carriers(self._paths)
        return {
            "in_need": [list(path) for path in self.blocked],
            "overloaded": [
                [*path, ms // 1000, self._held_by(path, carriers, now_ms)] for path, ms in self.overloaded
            ],
        }
