"""What joins a region to the failover protocol: it runs the machine, and does what that wants done.

The machine (engine/failover/region.py) decides; here its operations go to the spool, its messages to the peers, its
answers to the waiting clients, and its lease to the pools. Without `replicas` a region has no Cover.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from engine.config.schema import FleetConfig
from engine.failover.acceptance import AWAY_REFUSAL, NO_STANDBY
from engine.failover.effects import Answer, Effect, Export, Forget, Ready, Send, Write
from engine.failover.link import State
from engine.failover.messages import Beat, BeatReply, Behind, Message
from engine.failover.region import FLEET, RegionMachine
from engine.failover.spans import Spans, ids_of, of_ids
from engine.failover.store import Accept, Accepted, Apply, LookUp, Operation, Release
from engine.failover.timing import MS, Timing
from engine.region.lease_file import LeaseFile
from engine.region.outgoing import Outgoing, PeerLink
from engine.region.ports import RegionAway
from engine.spool.accepting import key_digest
from engine.spool.batches import AcceptBatch, AcceptResult, ChunkBatch
from engine.spool.errors import SpoolError
from engine.spool.store import Spool
from engine.values.clock import Clock

log = logging.getLogger(__name__)

TICK_S = 0.05
MAX_FOLLOWED = 256


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What became of a batch. `result` is None if the batch was accepted elsewhere: then `spans` has one per item."""

    spans: Spans
    result: AcceptResult | None
    repeated: bool
    degraded: bool


class Cover:
    """See the module docstring. All methods run on the region's loop."""

    def __init__(
        self,
        *,
        config: FleetConfig,
        name: str,
        spool: Spool,
        clock: Clock,
        link: PeerLink,
        spawn: Callable[[Coroutine[Any, Any, None]], Any],
        ready: Callable[[Sequence[bytes]], None],
        forget: Callable[[Sequence[int]], None],
        leased: Callable[[], None],
    ) -> None:
        self._spool = spool
        self._clock = clock
        self._outgoing = Outgoing(name, link, spawn)
        self._spawn = spawn
        self._ready = ready
        self._forget = forget
        self._leased = leased
        self._numbers = {region.number: region.name for region in config.regions}
        self._by_name = {name: number for number, name in self._numbers.items()}
        self._exporter = spool.exporter()
        self.machine = RegionMachine(
            name,
            tuple(region.name for region in config.regions if region.name != name),
            durable=spool.durable(self._by_name),
            incarnation=spool.life,
            now=clock.monotonic_ns(),
            timing=Timing(),
            accept_local=config.fleet.degraded == "accept_local",
            siblings=config.siblings(name),
        )
        self._name = name
        self._lease = LeaseFile(spool.path)
        self._had_lease = False
        self._tokens: dict[int, asyncio.Future[Answer]] = {}
        self._token = 0
        self._callers: dict[bytes, int] = {}  # how many calls wait for a key
        self._results: dict[bytes, AcceptResult] = {}
        self._digests: dict[bytes, list[bytes]] = {}
        self._told: tuple[int, dict[int, bytes]] = 0, {}  # session; templates by number
        self._due_keys: Sequence[bytes] | None = None
        self._reply: BeatReply | Behind | None = None
        self._flush = False
        self._is_closed = False
        self._accept_local = config.fleet.degraded == "accept_local"
        self._followed: dict[bytes, int] = {}  # hand-overs that were copied on, with the session of that

    # -- dispatch

    def may_dispatch(self) -> bool:
        return self.machine.may_dispatch(self._clock.monotonic_ns())

    @property
    def term(self) -> int:
        """The epoch under which batches are handed to pools now."""
        return self.machine.epoch

    # -- clients

    async def accept(self, key: bytes, batch: AcceptBatch | ChunkBatch, *, again: bool) -> Acceptance:
        """Accept a batch; returns when its copy is safe, or the receipt is marked as degraded.

        RegionAway: nothing was promised, ask again or another region.
        """
        self._token += 1
        token = self._token
        waiter: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._tokens[token] = waiter
        self._callers[key] = self._callers.get(key, 0) + 1
        if isinstance(batch, AcceptBatch):
            self._digests[key] = [key_digest(item.tenant, item.key) for item in batch.items if item.key]
        try:
            self._do(self.machine.submit(token, key, batch, self._clock.monotonic_ns(), again=again))
            answer = await waiter
            result = self._results.get(key)
        finally:
            self._tokens.pop(token, None)
            self._callers[key] -= 1
            if not self._callers[key]:
                del self._callers[key]
                self._results.pop(key, None)
                self._digests.pop(key, None)
        if answer.refusal:
            raise RegionAway(f"region {self._name}: {answer.refusal}")
        return Acceptance(answer.spans, result, answer.repeated, answer.degraded)

    def look_up(self, key: bytes) -> "Future[Accepted | None]":
        """What a batch key stands for on this disk: one span per item."""
        return self._spool.failover(LookUp(key, "", 0), self._by_name)

    # -- hand-over

    def away(self) -> dict[str, int]:
        """Peers that were called dead and have not asked on their return, with their epochs."""
        return dict(self.machine.own.away())

    def heir(self) -> tuple[str, ...]:
        """Who may be given messages: the standby alone, so that nobody else can adopt an old copy of them."""
        if not self.may_dispatch() or not self.machine.is_covered(self._clock.monotonic_ns()):
            return ()
        return (self.machine.standby_name,)

    def may_take(self) -> bool:
        """Whether messages may be taken over: with a lease, and where a copy of them can go."""
        is_covered = self.machine.is_covered(self._clock.monotonic_ns())
        return self.may_dispatch() and (is_covered or self._accept_local)

    def may_judge(self, dead: tuple[str, int] | None) -> bool:
        """Whether this disk's word counts: it has a lease, and what is held of the dead has been adopted."""
        standby = self.machine.standby
        if dead is not None and (standby.is_open(*dead) or standby.is_adopting()):
            return False
        return self.may_dispatch()

    def is_copied(self, key: bytes, spans: Spans) -> bool:
        """Whether these, which were taken over, are on the standby's disk as well, or need not be; they are on their
        way also if it says nothing at the moment: who gave them does not ask again, perhaps."""
        link = self.machine.link
        is_covered = self.machine.is_covered(self._clock.monotonic_ns())
        if link.state is State.OPEN and self._followed.get(key) != link.session:
            self._followed.pop(key, None)
            self._followed[key] = link.session
            if len(self._followed) > MAX_FOLLOWED:
                del self._followed[next(iter(self._followed))]
            link.copy(spans, key)
            self._soon()
        return not link.is_waiting(key) if is_covered else self._accept_local

    # -- outcomes

    def settled(self, ids: list[int]) -> None:
        self.machine.settled(ids)
        self._soon()

    def owns(self, ids: list[int]) -> None:
        """The region has accepted these for itself: they are copied, but nobody waits for it."""
        self.machine.link.owns(of_ids(ids))
        self._soon()

    def deferred(self, ids: list[int]) -> None:
        self.machine.deferred(ids)
        self._soon()

    def _soon(self) -> None:
        """What settles within one turn of the loop travels together."""
        if not self._flush:
            self._flush = True
            asyncio.get_running_loop().call_soon(self._flush_now)

    def _flush_now(self) -> None:
        self._flush = False
        self._do(self.machine.flush(self._clock.monotonic_ns()))

    # -- messages

    def beat(self, beat: Beat) -> BeatReply | Behind | None:
        """Fleet's beat, and the answer to it; None if there is nothing true to say now."""
        self._reply = None
        self._do(self.machine.receive(FLEET, beat, self._clock.monotonic_ns()))
        return self._reply

    def receive(self, sender: str, messages: Sequence[Message]) -> None:
        for message in messages:
            self._do(self.machine.receive(sender, message, self._clock.monotonic_ns()))

    async def run(self) -> None:
        while True:
            self._do(self.machine.tick(self._clock.monotonic_ns()))
            await asyncio.sleep(TICK_S)

    def close(self) -> None:
        self._is_closed = True
        self._lease.close()

    # -- effects

    def _do(self, effects: list[Effect]) -> None:
        if self._is_closed:
            return
        todo = deque(effects)
        while todo:
            effect = todo.popleft()
            match effect:
                case Send(to="", message=BeatReply() | Behind() as reply):
                    self._reply = reply
                case Send():
                    self._outgoing.say(effect.to, effect.message)
                case Write():
                    self._write(effect.operation)
                case Export():
                    todo.extendleft(reversed(self._export(effect)))  # before anything else happens
                case Answer():
                    waiter = self._tokens.get(effect.token)
                    if waiter is not None and not waiter.done():
                        waiter.set_result(effect)
                case Ready():
                    self._make_ready(effect.spans)
                case Forget():
                    self._forget(ids_of(effect.spans))
        until = self.machine.lease_until()
        self._lease.write(self.machine.epoch, until)
        has_lease = self._clock.monotonic_ns() < until
        if has_lease and not self._had_lease:
            self._leased()
        self._had_lease = has_lease

    def _export(self, export: Export) -> list[Effect]:
        if export.keys:
            payload, cursor = self._exporter.keys(export.cursor)
            spans: Spans = ()
        elif export.update:
            (spans, payload), cursor = self._exporter.updates(export.spans), b""
        else:
            keys = [export.key, *self._digests.get(export.key, ())] if export.key else []
            (spans, payload), cursor = self._exporter.messages(export.spans, keys, self._templates()), b""
        return self.machine.exported(export, spans, payload, cursor, self._clock.monotonic_ns())

    def _templates(self) -> dict[int, bytes] | None:
        """Those that the standby has been sent in this session."""
        link = self.machine.link
        if link.form < 2 or link.state is not State.OPEN:
            return None
        if self._told[0] != link.session:
            self._told = link.session, {}
        return self._told[1]

    def _write(self, operation: Operation) -> None:
        future = self._spool.failover(operation, self._by_name)
        future.add_done_callback(lambda done: self._written(operation, done))

    def _written(self, operation: Operation, done: "Future[Any]") -> None:
        error = done.exception()
        if error is not None:
            self._refused(operation, error)
            return
        result = done.result()
        self._due_keys = None
        if isinstance(operation, Accept):
            result, accepted = result
            if operation.key in self._callers and not result.hearsay:
                self._results[operation.key] = accepted
        elif isinstance(operation, Release):
            self._due_keys = result
        self._do(self.machine.committed(operation, result, self._clock.monotonic_ns()))
        self._due_keys = None

    def _refused(self, operation: Operation, error: BaseException) -> None:
        """The spool cannot do it now: only what adds to it may be refused."""
        if isinstance(operation, Accept) and isinstance(error, SpoolError | ValueError):
            for token in self.machine.refused(operation):
                waiter = self._tokens.get(token)
                if waiter is not None and not waiter.done():
                    waiter.set_exception(error)
        elif isinstance(operation, Apply) and isinstance(error, SpoolError):
            log.warning("region %s: a copy for %s was refused: %s", self._name, operation.owner, error)
            problem = f"{type(error).__name__}: {error}"
            self._do(self.machine.committed(operation, problem, self._clock.monotonic_ns()))
        else:
            self._spawn(_fail(error))

    def _make_ready(self, spans: Spans) -> None:
        keys = self._due_keys
        if keys is None:
            keys = self._exporter.due_keys(spans)
        if keys:
            self._ready(keys)

    # -- looking in

    def figures(self) -> dict[str, int]:
        """What of `status` is a number, for metrics."""
        status = self.status()
        numbers = {name: int(value) for name, value in status.items() if isinstance(value, int)}
        return {**numbers, "has_lease": int(self.machine.clean and numbers["lease_ms"] > 0)}

    def refusal(self) -> str:
        """Why every new batch is refused now; "" if it is not."""
        if not self.machine.own.is_live():
            return AWAY_REFUSAL
        is_covered = self._accept_local or self.machine.is_covered(self._clock.monotonic_ns())
        return "" if is_covered else NO_STANDBY

    def status(self) -> dict[str, object]:
        machine = self.machine
        now = self._clock.monotonic_ns()
        return {
            "epoch": machine.epoch,
            "is_live": machine.clean,
            "lease_ms": max(0, (machine.lease_until() - now) // MS),
            "refusal": self.refusal(),
            "standby": machine.standby_name,
            "standby_in_reach": machine.is_covered(now),
            "standby_complete": machine.link.is_complete(),
            "standby_lacks": machine.link.lag(),
            "adopted": machine.counters.adopted,
            "given_up": machine.counters.given_up,
            "degraded_receipts": machine.counters.degraded,
            "returns": machine.counters.returns,
        }


async def _fail(error: BaseException) -> None:
    """In a task of the region: it fails, and is made again from its spool."""
    raise error
