"""What joins a region to the hand-over protocol, as giver and as taker, and the draining of a region.

The giver's machine (engine/failover/handover.py) decides; here its operations go to the spool, its requests to the
peers, and what it may give is found: messages that wait, that no pool has, whose outcome is not just being written, and
which some source of the peer may send. In a fleet with copies they go to the region's own standby, so that nobody else
can adopt an old copy of them, and what it takes is copied on before the giver forgets it.

Without draining, mail in need (engine/region/relief.py) goes to a peer that can send it now. Only the region that has
accepted a message gives it away so, therefore no message moves more than once, and none in circles.

A draining region accepts nothing from clients (RegionDraining), except that it answers for what it has accepted before.
It goes on sending only what it cannot hand over: to nobody within reach, or nobody who has a source for it. That it is
draining is on disk.

Idempotency keys: those of a draining region go to the others, and messages that have keys of their own are refused only
then (RegionAway until then), or one of them could be accepted twice. When the draining ends the region first fetches
the keys of all that the others have accepted meanwhile.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from engine.config.schema import FleetConfig
from engine.failover.handover import (
    Ask,
    AskKeys,
    Effect,
    Giver,
    Inquire,
    Kept,
    Keys,
    KeysPage,
    MakeOffer,
    Offer,
    Operation,
    Pick,
    Recall,
    Reply,
    Request,
    SettleOffer,
    Terms,
    Write,
    key_of,
)
from engine.failover.spans import Spans, ids_of
from engine.region.awaiting import awaited
from engine.region.cover import Cover
from engine.region.paths import Paths
from engine.region.ports import RegionAway, RegionDraining
from engine.region.relief import Relief
from engine.region.sites import Sites
from engine.region.waiting import WaitingMail
from engine.region.waits import Waits
from engine.region.windows import Windows
from engine.spool.errors import SpoolError
from engine.spool.handover import Decide, Decided, Identify, KeepKeys, Knows
from engine.spool.store import Spool
from engine.values.clock import Clock
from native.scheduler import Scheduler

log = logging.getLogger(__name__)

TICK_S = 0.05
DRAINING = "handover/draining"  # a state of the spool
KEYS_RETRY_S = 1.0


class HandoverPort(Protocol):
    """Carries requests to other regions. ConnectionError, TimeoutError: nobody can say whether it arrived."""

    async def hand_over(self, region: str, request: Request) -> Reply | None: ...


class NoHandover:
    """Of a region that has nobody to give to."""

    async def hand_over(self, region: str, request: Request) -> Reply | None:
        raise ConnectionError(f"no way to region {region}")


class Handing:
    """See the module docstring. All methods run on the region's loop.

    `is_waiting`: until every region may go on without copies; another may own what is here, so nothing is moved.
    """

    def __init__(
        self,
        *,
        config: FleetConfig,
        name: str,
        spool: Spool,
        clock: Clock,
        port: HandoverPort,
        cover: Cover | None,
        is_waiting: Callable[[], bool],
        scheduler: Scheduler,
        windows: Windows,
        paths: Paths,
        sites: Sites,
        waits: Waits,
        is_full: Callable[[str], bool],
        offer: Callable[[Sequence[bytes]], None],
        wake: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None]], Any],
    ) -> None:
        self._name = name
        self._spool = spool
        self._clock = clock
        self._port = port
        self._cover = cover
        self._is_waiting = is_waiting
        self._windows = windows
        self._offer = offer
        self._wake = wake
        self._spawn = spawn
        self._numbers = {region.name: region.number for region in config.regions}
        self._peers = [region.name for region in config.regions if region.name != name]
        self._siblings = config.siblings(name)
        self._exporter = spool.exporter()
        self._keys_given: dict[
            str, bytes
        ] = {}  # peers that have all our keys, with the disk they have them on
        self._giving_keys: set[str] = set()
        self._offered: set[int] = set()  # not to be cancelled: a peer may have them
        self._was_holding = False
        self._mail = WaitingMail(
            config=config,
            name=name,
            spool=spool,
            scheduler=scheduler,
            windows=windows,
            sites=sites,
            offered=self._offered,
        )
        fleet = config.fleet
        self._relief = Relief(
            blocked_ms=milliseconds(fleet.hand_over_after) if self._peers else None,
            overloaded_ms=milliseconds(fleet.hand_over_overloaded),
            clock=clock,
            events=spool,
            paths=paths,
            mail=self._mail,
            waits=waits,
            is_full=is_full,
        )
        self.is_draining = spool.get_state(DRAINING) == b"1"
        self._is_fetching = False  # the draining ends: nothing is accepted before the others' keys are known
        self._disk = b""
        stored = spool.offers()
        for row in stored.offers:
            self._offered.update(ids_of(row.spans))
        first = max(stored.number + 1, clock.wall_ms() << 10)
        self._giver = Giver(name, self._peers, offers=stored.offers, number=first)

    async def start(self) -> None:
        self._disk = await awaited(self._spool.hand_over(Identify(os.urandom(8)), self._numbers))

    async def run(self) -> None:
        while True:
            self._look_around()
            self._do(self._giver.tick(self._clock.monotonic_ns()))
            for peer in self._key_targets():
                if not self._has_keys(peer) and peer not in self._giving_keys:
                    self._giving_keys.add(peer)
                    self._spawn(self._give_keys(peer))
            is_holding = self.holds_dispatch()
            if self._was_holding and not is_holding:
                self._wake()
            self._was_holding = is_holding
            await asyncio.sleep(TICK_S)

    def _look_around(self) -> None:
        """Who may be given to now, and who is away."""
        giver, now = self._giver, self._clock.monotonic_ns()
        to: Iterable[str] = self._peers
        if self._cover is not None:
            giver.epoch = self._cover.term
            giver.away = self._cover.away()
            to = self._cover.heir()
        relief = self._relief
        if self._is_fetching:
            relief.rest()
            to = ()
        elif self.is_draining:
            relief.rest()
        elif not relief.look():
            to = ()
        if self._is_waiting():
            to = ()
        giver.paths, giver.overloaded = relief.blocked, relief.overloaded
        giver.give(to, now)

    # -- draining

    async def drain(self, on: bool) -> bool:
        """Begin or end draining; on disk when this returns. False: it was so already. ValueError: nobody to give to."""
        if on and not self._peers:
            raise ValueError(f"region {self._name} is the only one: there is nobody to hand its mail over to")
        if self._is_fetching:
            raise RegionAway(f"region {self._name} is just taking mail again: ask again")
        if on == self.is_draining:
            return False
        if on:
            self.is_draining = (
                True  # at once: what is accepted from here on would have a key that is not given
            )
            await self._save(b"1")
            log.warning("region %s is being drained", self._name)
            return True
        self._is_fetching = True
        self._look_around()
        self._wake()
        try:
            for peer in self._peers:
                await self._fetch_keys(peer)
            await self._save(b"0")
            self.is_draining = False
            self._keys_given.clear()
        finally:
            self._is_fetching = False
        log.warning("region %s takes mail again", self._name)
        return True

    async def _save(self, state: bytes) -> None:
        try:
            await awaited(self._spool.put_state(DRAINING, state))
        except SpoolError:
            self.is_draining = state == b"0"
            raise

    async def _fetch_keys(self, peer: str) -> None:
        """What a peer has accepted in this region's stead is known here afterwards."""
        cursor = b""
        try:
            while True:
                page = await self._port.hand_over(peer, AskKeys(self._name, cursor))
                if not isinstance(page, KeysPage):
                    raise ConnectionError("it does not give its keys now")
                await awaited(self._spool.hand_over(KeepKeys(page.payload), self._numbers))
                cursor = page.cursor
                if not cursor:
                    return
        except (OSError, RuntimeError) as error:
            log.warning(
                "region %s takes mail again without the keys of region %s: what was accepted there under a key "
                "may be accepted here again: %s",
                self._name,
                peer,
                error,
            )

    @property
    def is_closed(self) -> bool:
        """Nothing new is accepted: `admit` has to be asked."""
        return self.is_draining or self._is_fetching

    async def admit(self, *, key: bytes = b"", chunk: bytes = b"", has_keys: bool = False) -> None:
        """Raises RegionDraining unless this was accepted here before; RegionAway: it is to ask again.

        `has_keys`: messages of the batch have keys of their own.
        """
        if not self.is_closed or await awaited(self._spool.hand_over(Knows(key, chunk), self._numbers)):
            return
        if self._is_fetching:
            raise RegionAway(f"region {self._name} takes mail again as soon as it knows the others' keys")
        if has_keys and not self._has_given_keys():
            raise RegionAway(f"region {self._name} is being drained, the others do not know its keys yet")
        raise RegionDraining(f"region {self._name} is being drained: another region takes this")

    def holds_dispatch(self) -> bool:
        """Nothing is given to pools while it can be given to a peer."""
        return self.is_draining and not self._is_fetching and self._giver.is_giving()

    def is_offered(self, id_: int) -> bool:
        return id_ in self._offered

    # -- the taker

    async def answer(self, request: Request) -> Reply | None:
        """A peer's request. None: no answer now, it is to ask again."""
        if isinstance(request, Inquire):
            return Terms(self._disk, self._refusal(), self._relief.takes(request))
        if isinstance(request, Keys):
            await awaited(self._spool.hand_over(KeepKeys(request.payload), self._numbers))
            return Kept(self._disk)
        if isinstance(request, AskKeys):
            return KeysPage(*self._exporter.keys(request.cursor))
        if self._is_waiting():
            return None
        if self._cover is not None and not self._cover.may_judge(getattr(request, "dead", None)):
            return None
        try:
            decided = await self._decide(request, is_willing=not self._refusal())
        except SpoolError as error:
            log.warning("region %s: nothing is taken over from %s: %s", self._name, request.giver, error)
            if not isinstance(request, Offer):
                raise
            decided = await self._decide(request, is_willing=False)
        if decided is None:
            return None
        self._offer(decided.due_keys)
        verdict = decided.verdict
        if self._cover is None or not verdict.taken:
            return verdict
        key = key_of(self._numbers[request.giver], request.number)
        return replace(verdict, is_safe=self._cover.is_copied(key, verdict.taken))

    async def _decide(self, request: Offer | Recall, *, is_willing: bool) -> Decided | None:
        decided: Decided | None = await awaited(
            self._spool.hand_over(Decide(request, is_willing), self._numbers)
        )
        return decided

    def _refusal(self) -> str:
        """Why nothing is taken over now; "" if it is."""
        if self.is_draining:
            return "it is being drained itself"
        if self._is_waiting():
            return "it waits until every region may go on without copies"
        if self._cover is not None and not self._cover.may_take():
            return "it has no lease, or no standby within reach"
        return ""

    # -- effects

    def _do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Ask():
                    self._spawn(self._ask(effect.peer, effect.request))
                case Pick():
                    self._pick(effect.peer)
                case Write():
                    self._spawn(self._write(effect.operation))

    async def _ask(self, peer: str, request: Request) -> None:
        if isinstance(request, Offer):
            _, payload = self._exporter.messages(request.spans, [])
            request = Offer(
                request.giver, request.epoch, request.number, request.disk, request.spans, payload
            )
        try:
            reply = await self._port.hand_over(peer, request)
        except (OSError, RuntimeError, SpoolError) as error:
            log.info("region %s: %s does not answer: %s", self._name, peer, error)
            reply = None
        except Exception:  # a fault of the peer's: this region goes on, and what was offered waits
            log.exception("region %s: %s fails to answer %s", self._name, peer, type(request).__name__)
            reply = None
        now = self._clock.monotonic_ns()
        if isinstance(request, Inquire) and isinstance(reply, Terms):
            self._relief.heard(peer, request, reply, now)
        if reply is None:
            self._do(self._giver.unanswered(peer, request, now))
        else:
            self._do(self._giver.answered(peer, reply, now))

    async def _write(self, operation: Operation) -> None:
        ids = ids_of(operation.spans) if isinstance(operation, MakeOffer) else []
        self._windows.settling(ids)
        try:
            result = await awaited(self._spool.hand_over(operation, self._numbers))
        finally:
            self._windows.settled(ids)
        now = self._clock.monotonic_ns()
        if isinstance(operation, MakeOffer):
            self._offered.difference_update(set(ids).difference(ids_of(result)))
            self._do(self._giver.written(operation, result, now))
            return
        if result.is_done:
            self._settled(operation)
        self._offer(result.due_keys)
        self._do(self._giver.written(operation, result.is_done, now))

    def _settled(self, operation: SettleOffer) -> None:
        self._offered.difference_update(ids_of(self._giver.spans_of(operation.number)))
        if self._cover is not None and operation.taken:
            self._cover.settled(ids_of(operation.taken))

    def _pick(self, peer: str) -> None:
        now = self._clock.monotonic_ns()
        if self.is_draining:
            # another region gets what no shard of this one takes
            is_turn = peer in self._siblings or not self._giver.waits_for(self._siblings)
            spans, is_last = self._mail.look(peer, None) if is_turn else ((), True)
        else:
            spans, is_last = self._pick_in_need(peer, now)
        self._offered.update(ids_of(spans))
        self._do(self._giver.picked(peer, spans, now, is_last=is_last))

    def _pick_in_need(self, peer: str, now: int) -> tuple[Spans, bool]:
        granted = self._giver.paths_of(peer)
        if peer not in self._siblings:
            near = [sibling for sibling in self._siblings if sibling in self._giver.willing()]
            granted = granted.difference(*map(self._giver.paths_of, near))
        only, most = self._relief.wanted(peer, granted, now)
        if not only:
            return (), not granted  # if it has room, its next portion comes soon
        spans, is_last = self._mail.look(peer, only, most=most)
        if spans:
            self._relief.gave(peer, now)
        return spans, is_last

    def _key_targets(self) -> list[str]:
        """Peers that may be asked for what was accepted here: who takes mail; with copies, who is not away."""
        if not self.is_draining or self._is_fetching:
            return []
        if self._cover is None:
            return list(self._giver.willing())
        return [peer for peer in self._peers if peer not in self._giver.away]

    def _has_keys(self, peer: str) -> bool:
        """Whether a peer has all our keys, on the disk that it has now as far as is known."""
        disk = self._keys_given.get(peer)
        return disk is not None and disk == self._giver.willing().get(peer, disk)

    def _has_given_keys(self) -> bool:
        return bool(self._keys_given) and all(map(self._has_keys, self._key_targets()))

    async def _give_keys(self, peer: str) -> None:
        """All idempotency keys: who asks there for a batch that was accepted here gets its receipt."""
        try:
            cursor = b""
            while True:
                payload, cursor = self._exporter.keys(cursor)
                kept = await self._port.hand_over(peer, Keys(self._name, payload))
                if not isinstance(kept, Kept):
                    raise ConnectionError("it does not take them now")
                if not cursor:
                    break
            self._keys_given[peer] = kept.disk
        except (OSError, RuntimeError, SpoolError) as error:
            log.info("region %s: %s does not take the keys: %s", self._name, peer, error)
            await asyncio.sleep(KEYS_RETRY_S)
        finally:
            self._giving_keys.discard(peer)

    # -- looking in

    def condition(self, left: int) -> str:
        if self._is_fetching:
            return "returning"
        if not self.is_draining:
            return "up"
        is_busy = left or self._giver.open_offers() or not self._has_given_keys()
        return "draining" if is_busy else "drained"

    def status(self) -> dict[str, object]:
        """`condition`: up, draining, drained (nothing is left) or returning. `left`: messages that are still here, and
        notifications that are owed to senders."""
        left = self._spool.counts()["queued"] + self._spool.remembered()["notices"]
        return {
            "condition": self.condition(left),
            "left": left,
            "offered": self._giver.open_offers(),
            "takers": sorted(self._giver.willing()),
            "refusals": self._giver.refusals(),
            **self._relief.status(),
            "handed_over": self._giver.counters.handed_over,
            "came_back": self._giver.counters.came_back,
        }


def milliseconds(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * 1000)
