"""A fleet in one thread: virtual time, a network that loses and delays, disks that commit late, processes that die.

The machines are those of engine/failover, unchanged. Everything random comes from one seed, so a seed is a schedule.
"""

import heapq
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from engine.failover.effects import Answer, Effect, Forget, Hold, Release, Send, Write
from engine.failover.fleet import FleetMachine
from engine.failover.messages import Beat, BeatReply, Message, Standing
from engine.failover.region import RegionMachine
from engine.failover.rendezvous import rank
from engine.failover.spans import Spans, ids_of
from engine.failover.store import Operation
from engine.failover.timing import MS, Timing
from tests.support.failover_store import Disk

TICK = 50 * MS
SILENCE = 300 * MS
FLEET = ""


class Violation(AssertionError):
    """A promise of the protocol was broken."""


@dataclass(slots=True)
class Network:
    """What may happen to a message now."""

    loss: float = 0.0
    slow: float = 0.0  # share of messages that take up to `slow_ms`
    slow_ms: int = 0
    cuts: set[tuple[str, str]] = field(default_factory=set)


class Node:
    """One region: its process, its disk, its clock, and a pool that delivers what it may."""

    def __init__(self, world: "World", name: str, number: int, peers: tuple[str, ...]) -> None:
        self.world = world
        self.name = name
        self.peers = peers
        self.disk = Disk(name, number)
        self.machine: RegionMachine | None = None
        self.life = 0
        self.clock = world.rng.randrange(1, 10**12)
        self.rate = 1.0 + world.rng.uniform(-0.01, 0.01)
        self.frozen = False
        self.thawed: list[Callable[[], None]] = []
        self.free: set[int] = set()
        self.on_wire: set[int] = set()
        self.writes: deque[tuple[Operation | tuple[int, ...], int]] = deque()
        self.writing = False
        self.stall_until = 0

    def local(self) -> int:
        return self.clock + int(self.world.now * self.rate)

    def start(self) -> None:
        world = self.world
        self.life += 1
        if world.rng.random() < 0.5:
            self.clock = world.rng.randrange(1, 10**12)  # the machine was booted: its clock begins anew
        self.free.clear()
        for id_ in self.on_wire:
            if id_ in self.disk.owned:
                self.disk.owned[id_] = True
        self.on_wire.clear()
        self.writes.clear()
        self.writing = False
        self.frozen = False
        self.thawed.clear()
        self.machine = world.make_machine(self)
        world.at(world.rng.randrange(TICK), self.alive(self._tick))

    def stop(self) -> None:
        self.machine = None
        self.life += 1

    def alive(self, call: Callable[..., None], *args: Any) -> Callable[[], None]:
        """The call, if this process still lives then; put off while it is frozen."""
        life = self.life

        def run() -> None:
            if self.life != life or self.machine is None:
                return
            if self.frozen:
                self.thawed.append(run)
            else:
                call(*args)

        return run

    def thaw(self) -> None:
        self.frozen = False
        late, self.thawed = self.thawed, []
        for run in late:
            run()

    def _tick(self) -> None:
        assert self.machine is not None
        self.do(self.machine.tick(self.local()))
        self.dispatch()
        self.world.at(TICK, self.alive(self._tick))

    def receive(self, sender: str, message: Message) -> None:
        assert self.machine is not None
        self.do(self.machine.receive(sender, message, self.local()))

    def do(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Send():
                    self.world.send(self.name, effect.to, effect.message)
                case Write():
                    self.write(effect.operation)
                case Release():
                    self.free.update(id_ for id_ in ids_of(effect.spans) if id_ in self.disk.owned)
                case Hold() | Forget():
                    self.free.difference_update(ids_of(effect.spans))
                case Answer():
                    self.world.answer(self, effect)

    # -- the disk

    def write(self, operation: Operation | tuple[int, ...]) -> None:
        self.writes.append((operation, self.life))
        if not self.writing:
            self.writing = True
            self._next_write()

    def _next_write(self) -> None:
        delay = self.world.rng.randrange(1 * MS, 4 * MS)
        delay += max(0, self.stall_until - self.world.now)
        self.world.at(delay, self.alive(self._commit))

    def _commit(self) -> None:
        assert self.machine is not None
        group = [self.writes.popleft()[0] for _ in range(len(self.writes))]
        results = []
        for operation in group:
            if isinstance(operation, tuple):
                results.append(self.disk.settle(list(operation)))
            else:
                results.append(self.disk.apply(operation))  # type: ignore[arg-type]
        self.writing = False
        for operation, result in zip(group, results, strict=True):
            if isinstance(operation, tuple):
                self.on_wire.difference_update(operation)
                self.machine.settled(result)  # type: ignore[arg-type]
            else:
                self.do(self.machine.committed(operation, result, self.local()))
        if self.writes and not self.writing:
            self.writing = True
            self._next_write()

    # -- the pool

    def dispatch(self) -> None:
        """Send some of what may be sent."""
        assert self.machine is not None
        if not self.free or not self.machine.may_dispatch(self.local()):
            return
        rng = self.world.rng
        for id_ in sorted(self.free)[: rng.randrange(1, 4)]:
            self.free.discard(id_)
            if id_ not in self.disk.owned or id_ in self.on_wire:
                continue
            self.world.dispatched(self, id_)
            self.on_wire.add(id_)
            self.world.at(rng.randrange(2 * MS, 30 * MS), lambda id_=id_: self._arrive(id_))

    def _arrive(self, id_: int) -> None:
        """The sink has it, whatever became of us; we learn it if we live."""
        self.world.delivered(id_)
        self.alive(lambda: self.write((id_,)))()

    def can_send(self, id_: int) -> bool:
        return (
            self.machine is not None
            and id_ in self.disk.owned
            and (id_ in self.free or id_ in self.on_wire)
            and self.machine.may_dispatch(self.local())
        )


@dataclass(slots=True)
class Request:
    """A client's batch, until it has its receipt."""

    key: bytes
    count: int
    order: list[str]
    tries: int = 0
    token: int = 0
    receipt: tuple[str, Spans] | None = None
    repeat: bool = False


class World:
    """See the module docstring."""

    def __init__(
        self,
        seed: int,
        *,
        regions: int = 3,
        accept_local: bool = False,
        machine: type[RegionMachine] = RegionMachine,
        fleet: type[FleetMachine] = FleetMachine,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 0
        self.timing = Timing()
        self.network = Network()
        self.accept_local = accept_local
        self.trace = trace
        self._machine_type = machine
        self._fleet_type = fleet
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self.events = 0
        names = tuple("abcd"[:regions])
        self.names = names
        self.nodes = {
            name: Node(self, name, number + 1, tuple(n for n in names if n != name))
            for number, name in enumerate(names)
        }
        self.fleet: FleetMachine | None = None
        self.fleet_life = 0
        self.fleet_clock = 0
        self.requests: dict[bytes, Request] = {}
        self.tokens: dict[int, Request] = {}
        self.sent: dict[int, int] = {}  # id: dispatches
        self.at_sink: dict[int, int] = {}
        self.acked: dict[bytes, tuple[str, Spans]] = {}
        for node in self.nodes.values():
            node.start()
        self.start_fleet()

    # -- time

    def at(self, delay: int, call: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._heap, (self.now + delay, self._count, call))

    def run(self, until: int) -> None:
        heap = self._heap
        while heap and heap[0][0] <= until:
            self.now, _, call = heapq.heappop(heap)
            self.events += 1
            call()
        self.now = until

    def log(self, text: str) -> None:
        if self.trace is not None:
            self.trace(f"{self.now / MS:9.1f}  {text}")

    # -- processes

    def make_machine(self, node: Node) -> RegionMachine:
        return self._machine_type(
            node.name,
            node.peers,
            durable=node.disk.load(),
            incarnation=node.life,
            now=node.local(),
            timing=self.timing,
            accept_local=self.accept_local,
        )

    def start_fleet(self) -> None:
        self.fleet_life += 1
        self.fleet_clock = self.rng.randrange(1, 10**12)
        self.fleet = self._fleet_type(
            self.names, incarnation=self.fleet_life, now=self.fleet_now(), timing=self.timing
        )
        self._fleet_tick(self.fleet_life)

    def stop_fleet(self) -> None:
        self.fleet = None
        self.fleet_life += 1

    def fleet_now(self) -> int:
        return self.fleet_clock + self.now

    def _fleet_tick(self, life: int) -> None:
        if self.fleet is None or life != self.fleet_life:
            return
        for region, beat in self.fleet.tick(self.fleet_now()):
            self.send(FLEET, region, beat)
        self.at(TICK, lambda: self._fleet_tick(life))

    # -- the network

    def send(self, source: str, target: str, message: Message) -> None:
        network = self.network
        if (source, target) in network.cuts or self.rng.random() < network.loss:
            return
        delay = self.rng.randrange(1 * MS, 8 * MS)
        if network.slow and self.rng.random() < network.slow:
            delay += self.rng.randrange(network.slow_ms * MS)
        if self.trace is not None and not isinstance(message, Beat | BeatReply):
            self.log(f"{source or 'fleet'} -> {target or 'fleet'} {message}")
        if target == FLEET:
            life = self.fleet_life

            def arrive() -> None:
                if self.fleet is not None and self.fleet_life == life:
                    assert isinstance(message, BeatReply)
                    self.fleet.receive(source, message, self.fleet_now())

            self.at(delay, arrive)
        else:
            node = self.nodes[target]
            self.at(delay, node.alive(node.receive, source, message))

    # -- clients

    def submit(self, key: bytes, count: int, *, repeat: bool = False) -> None:
        order = rank(key, self.names)
        if self.rng.random() < 0.2:
            self.rng.shuffle(order)
        request = self.requests[key] = Request(key, count, order, repeat=repeat)
        self._try(request)

    def _try(self, request: Request) -> None:
        if request.receipt is not None and not request.repeat:
            return
        if request.receipt is not None:
            request.repeat = False  # once more, to see that it gets the same answer
        region = request.order[request.tries % len(request.order)]
        again = request.tries > 0
        request.tries += 1
        token = self._count = self._count + 1
        request.token = token
        self.tokens[token] = request
        node = self.nodes[region]
        if (
            "client",
            region,
        ) not in self.network.cuts and self.rng.random() >= self.network.loss:
            delay = self.rng.randrange(1 * MS, 8 * MS)
            if self.network.slow and self.rng.random() < self.network.slow:
                delay += self.rng.randrange(self.network.slow_ms * MS)
            payload = bytes((request.count,))
            self.at(
                delay,
                node.alive(
                    lambda: node.do(
                        node.machine.submit(token, request.key, payload, node.local(), again=again)  # type: ignore[union-attr]
                    )
                ),
            )
        self.at(SILENCE, lambda: self._silence(request, token))

    def _silence(self, request: Request, token: int) -> None:
        if request.token == token:
            self._try(request)

    def answer(self, node: Node, answer: Answer) -> None:
        request = self.tokens.get(answer.token)
        if request is None:
            return
        if answer.refusal:
            return  # the client asks elsewhere after its wait
        self.log(f"{node.name} answers {request.key!r}: {answer.owner} {answer.spans}")
        known = self.acked.setdefault(request.key, (answer.owner, answer.spans))
        if set(ids_of(known[1])) != set(ids_of(answer.spans)):
            raise Violation(f"key {request.key!r}: two receipts, {known} and {(answer.owner, answer.spans)}")
        if self.rng.random() < self.network.loss + 0.02:
            return  # the answer is lost
        request.receipt = (answer.owner, answer.spans)

    # -- what is promised

    def dispatched(self, node: Node, id_: int) -> None:
        for other in self.nodes.values():
            if other is not node and other.can_send(id_):
                raise Violation(f"{id_:x}: {node.name} sends it while {other.name} may")
        earlier = self.sent.get(id_, 0)
        if earlier and not node.disk.owned[id_]:
            raise Violation(f"{id_:x}: sent again by {node.name} without a mark")
        self.sent[id_] = earlier + 1
        self.log(f"{node.name} sends {id_:x}")

    def delivered(self, id_: int) -> None:
        self.at_sink[id_] = self.at_sink.get(id_, 0) + 1

    def done(self) -> bool:
        """Everything acknowledged has arrived, nobody waits, nothing is left."""
        return (
            all(request.receipt is not None for request in self.requests.values())
            and all(not node.disk.owned and node.machine is not None for node in self.nodes.values())
            and all(id_ in self.at_sink for _, spans in self.acked.values() for id_ in ids_of(spans))
        )

    def why_not_done(self) -> str:
        waiting = [r.key for r in self.requests.values() if r.receipt is None]
        lost = [
            f"{id_:x}" for _, spans in self.acked.values() for id_ in ids_of(spans) if id_ not in self.at_sink
        ]
        left = {n.name: [f"{i:x}" for i in n.disk.owned] for n in self.nodes.values() if n.disk.owned}
        standing = (
            {v.name: (Standing(v.standing).name, v.epoch) for v in self.fleet.view(self.fleet_now())}
            if self.fleet is not None
            else None
        )
        return f"waiting {waiting}, not delivered {lost}, left {left}, fleet {standing}"
