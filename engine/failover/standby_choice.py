"""The standby of a region's messages: which peer that is, and what a returning peer does with the copies it has.

It is the next live one in a ring: so each holds the copies of one, and when it dies the receipts of one wait until that
is certain. Shards of a region are a ring of their own, by name. All regions are one by the hashes of their names, and
with them is a shard without a sibling that lives.

A live region's copies are adoptable at one place. So the standby changes only when Fleet has called it dead, and one
that returns is told what has become of the copies on its disk before it may adopt from them.

Or when there is nothing to adopt: a region whose copies went elsewhere while another was away chooses again as soon as
it owns nothing, is told by its standby in a new session that it holds nothing, and still owns nothing when the change
is written. The session ends with that, so nothing can come to the standby that is left.
"""

from collections.abc import Sequence

from engine.failover.effects import Effect, Write
from engine.failover.messages import AWAY, Standby, Standing
from engine.failover.rendezvous import rank
from engine.failover.situation import Situation
from engine.failover.spans import Spans
from engine.failover.store import IsEmpty, SaveStandby

RING = b"ring"
MOVE_EVERY = 1_000_000_000  # ns between two looks whether nothing is owned


def preferred(name: str, siblings: Sequence[str], live: Sequence[str]) -> str:
    """Which of the live peers, at least one, should hold the copies of this region."""
    near = sorted(set(siblings).intersection(live))
    if near:
        return next((sibling for sibling in near if sibling > name), near[0])
    ring = rank(RING, {name, *live})
    return ring[(ring.index(name) + 1) % len(ring)]


class StandbyChoice:
    """See the module docstring. `fleet_at` of its methods: when Fleet was heard last."""

    def __init__(self, situation: Situation, asked: tuple[tuple[str, int], ...]) -> None:
        self._own = situation
        self._choosing = ""
        self._moving = ""  # chosen instead of the standby, if that proves to hold nothing
        self._look_at = 0
        # returning standbys that were told to keep our copies, by their epoch; or that may have been told so
        self._kept = {n: epoch for n, epoch in asked if n == situation.standby_name}

    def choose(self, now: int, fleet_at: int) -> list[Effect]:
        """Keep the standby, unless Fleet has called it dead and there is another.

        That it is dead must be on disk before: a Fleet that starts now may not know it, and call it live.
        """
        own = self._own
        if self._choosing:
            return []
        standings = own.standings()
        current = standings.get(own.standby_name)
        if current is not None and (
            current.standing not in AWAY or self._kept.get(current.name, -1) >= current.epoch
        ):
            return [*self._connect(fleet_at), *self._look(now)]
        self._moving = ""
        live = [n for n, v in standings.items() if v.standing is Standing.LIVE]
        if not live:
            return self._connect(fleet_at) if current is not None else []
        if current is not None:
            closing = own.close({current.name: current.epoch}, now)
            if closing or not own.is_closed({current.name: current.epoch}):
                return closing or []
        self._choosing = preferred(own.name, own.siblings, live)
        own.link.connect("", own.epoch, 0)
        return [Write(SaveStandby(self._choosing))]

    # -- a better one, while nothing is owned

    def _better(self) -> str:
        """Who should have the copies instead of who has them; "" if that is nobody, or it is not sure that the one who
        has them has returned with them."""
        own = self._own
        standings = own.standings()
        live = [n for n, v in standings.items() if v.standing is Standing.LIVE]
        current = standings.get(own.standby_name)
        if current is None or current.name not in live or self._kept.get(current.name, -1) > current.epoch:
            return ""
        if own.siblings and not set(own.siblings).intersection(live):
            return ""
        best = preferred(own.name, own.siblings, live)
        return "" if best == current.name else best

    def _look(self, now: int) -> list[Effect]:
        own = self._own
        if now < self._look_at or not own.link.is_idle() or not self._better():
            return []
        self._look_at = now + MOVE_EVERY
        return [Write(IsEmpty())]

    def looked(self, is_empty: bool, fleet_at: int) -> list[Effect]:
        """Whether nothing was owned a moment ago: if so, the standby is asked what it holds."""
        own = self._own
        if not is_empty or self._choosing or not own.link.is_idle():
            return []
        self._moving = self._better()
        return own.link.connect(own.standby_name, own.epoch, fleet_at) if self._moving else []

    def move(self, queued: Spans, unsafe: Spans) -> list[Effect]:
        """A session begins. If neither side has anything, it is ended, and the better one chosen."""
        own = self._own
        moving, self._moving = self._moving, ""
        if not moving or queued or unsafe or not own.link.held_nothing or self._better() != moving:
            return []
        self._choosing = moving
        own.link.connect("", own.epoch, 0)
        return [Write(SaveStandby(moving, only_if_empty=True))]

    # -- the session with it

    def _connect(self, fleet_at: int) -> list[Effect]:
        own = self._own
        if own.link.peer == own.standby_name:
            return []
        return own.link.connect(own.standby_name, own.epoch, fleet_at)

    def chosen(self, operation: SaveStandby, fleet_at: int, *, is_saved: bool) -> list[Effect]:
        """It is on disk, or, as something is owned again, the one before stays."""
        if is_saved:
            self._own.standby_name = operation.name
        if operation.name != self._choosing:
            return []
        self._choosing = ""
        return self._connect(fleet_at)

    def superseded(self) -> None:
        """This region was called dead."""
        self._choosing = self._moving = ""

    def _is_only(self, peer: str) -> bool:
        """Whether the standby is dead, on disk, and nobody is left who could be it but this one, on its return. Each
        would wait for the other until the dead one is back."""
        own = self._own
        standings = own.standings()
        current = standings.get(own.standby_name)
        if (
            current is None
            or current.standing not in AWAY
            or self._kept.get(current.name, -1) >= current.epoch
        ):
            return False
        is_alone = not any(v.standing is Standing.LIVE for name, v in standings.items() if name != peer)
        return is_alone and own.is_closed({current.name: current.epoch})

    def verdict(self, peer: str, held: int, epoch: int) -> tuple[Standby, list[Effect]]:
        """What a returning peer shall do with the copies of our messages that it holds."""
        own = self._own
        if held and held < own.first:
            return Standby.ADOPT, []
        if self._choosing:
            return Standby.WAIT, []
        if own.standby_name == peer:
            # its disk may be a new one: of a session that it does not know, an idle stream would hear nothing
            if own.link.peer == peer and self._kept.get(peer, -1) < epoch:
                own.link.greet_again()
            self._kept[peer] = epoch
            return Standby.KEEP, []
        if not own.standby_name or self._is_only(peer):
            self._choosing = peer
            own.link.connect("", own.epoch, 0)
            return Standby.WAIT, [Write(SaveStandby(peer))]
        return (Standby.DROP if own.link.has_copied_all() else Standby.WAIT), []
