"""A fleet in one thread: virtual time, a network that loses and delays, disks that commit late, processes that die.

The machines are those of engine/failover, unchanged. Everything random comes from one seed, so a seed is a schedule.
"""

import heapq
from collections.abc import Callable
from dataclasses import dataclass

from engine.failover.effects import Answer
from engine.failover.fleet import FleetMachine
from engine.failover.messages import Beat, BeatReply, Behind, Message, Standing
from engine.failover.region import RegionMachine
from engine.failover.rendezvous import rank
from engine.failover.spans import Spans, ids_of
from engine.failover.timing import MS, Timing
from tests.simulation.census import Census
from tests.simulation.chance import Dice, WallClocks
from tests.simulation.late_fleet import LateFleet
from tests.simulation.network import FLEET, Network
from tests.simulation.node import TICK, Node

SILENCE = 300 * MS


class Violation(AssertionError):
    """A promise of the protocol was broken."""


@dataclass(slots=True)
class Request:
    """A client's batch, until it has its receipt."""

    key: bytes
    count: int
    order: list[str]
    tries: int = 0
    token: int = 0
    due: int = 0
    receipt: Spans | None = None
    repeat: bool = False


class World:
    """See the module docstring. `groups`: names of nodes that are shards of one region, as in ("ab", "cd"). `clocks`: a
    seed; clocks are set back between two starts of a process."""

    def __init__(
        self,
        seed: int,
        *,
        regions: int = 3,
        groups: tuple[str, ...] = (),
        accept_local: bool = False,
        keys_at_once: int = 0,
        clocks: int | None = None,
        machine: type[RegionMachine] = RegionMachine,
        fleet: type[FleetMachine] = FleetMachine,
        trace: Callable[[str], None] | None = None,
    ) -> None:
        self.rng = Dice(seed)
        self._clocks = None if clocks is None else WallClocks(clocks)
        self.now = 0
        self.timing = Timing(gather=300 * MS)
        self.network = Network()
        self.accept_local = accept_local
        self.keys_at_once = keys_at_once
        self.trace = trace
        self._machine_type = machine
        self._fleet_type = fleet
        self._heap: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0
        self.events = 0
        names = tuple("abcd"[:regions])
        self.names = names
        self.gone: set[str] = set()  # these do not come back
        self.is_over = False  # nothing fails any more
        self.trouble_until = 0  # the last fault lasts until then
        self.groups = groups
        self.numbers = {name: number + 1 for number, name in enumerate(names)}
        self.nodes = {name: Node(self, name, number) for name, number in self.numbers.items()}
        self.fleet: FleetMachine | None = None
        self.fleet_life = 0
        self.fleet_clock = 0
        self.late_fleets: list[LateFleet] = []
        self.fleet_frozen_until = 0
        self.requests: dict[bytes, Request] = {}
        self.tokens: dict[int, Request] = {}
        self.sent: dict[int, int] = {}  # id: dispatches
        self.at_sink: dict[int, int] = {}
        self.acked: dict[bytes, Spans] = {}
        self.degraded: set[bytes] = set()
        self.census = Census(self.nodes)
        self.on_change: Callable[[str, Standing], None] = lambda region, standing: None
        self.on_move: Callable[[str, str], None] = lambda region, to: None  # a shard chooses another standby
        for node in self.nodes.values():
            node.start()
        self.start_fleet()

    def lose(self, name: str) -> None:
        """A machine is gone for good, with its disk, and nothing takes its place. Not while there is a new disk whose
        region has not heard of all what they know: such a one waits for them."""
        if any(node.disk.unasked or not node.disk.first for node in self.nodes.values()):
            return
        if any(node.machine is not None and node.machine.own.unasked for node in self.nodes.values()):
            return
        self.log(f"gone {name}")
        self.gone.add(name)
        self.nodes[name].stop()

    def left(self) -> list[Node]:
        return [node for name, node in self.nodes.items() if name not in self.gone]

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
            incarnation=node.disk.begin(self._started_at(node.life)),
            now=node.local(),
            timing=self.timing,
            accept_local=self.accept_local,
            siblings=self.siblings(node.name),
        )

    def _started_at(self, life: int) -> int:
        """The time at which a process starts, as its machine's clock has it: `life` if that is never set back."""
        return life if self._clocks is None else self._clocks.read()

    def siblings(self, name: str) -> tuple[str, ...]:
        return tuple(other for group in self.groups if name in group for other in group if other != name)

    def start_fleet(self) -> None:
        self.fleet_life += 1
        self.fleet_clock = self.rng.randrange(1, 10**12)
        self.fleet_frozen_until = 0
        started_at = self._started_at(self.fleet_life)
        self.fleet = self._fleet_type(
            self.names,
            incarnation=started_at,
            now=self.fleet_now(),
            timing=self.timing,
            first_epoch=started_at << 16,
        )
        self._fleet_tick(self.fleet_life)

    def _start_fleet_again(self) -> None:
        """Its process has ended itself."""
        self.log("fleet is superseded")
        self.stop_fleet()
        self.at(500 * MS, lambda: self.start_fleet() if self.fleet is None else None)

    def draw_sleep(self) -> int:
        """For how many ms a Fleet is frozen that another takes the place of, 0 if it ends."""
        if self._clocks is None or self._clocks.rng.random() < 0.7:
            return 0
        return self._clocks.rng.randrange(800, 3000)

    def freeze_fleet(self, ms: int) -> None:
        """It goes on later, and nobody has taken its place."""
        self.fleet_frozen_until = self.now + ms * MS

    def stop_fleet(self, *, sleep_ms: int = 0) -> None:
        if sleep_ms and self.fleet is not None:
            self.at(sleep_ms * MS, LateFleet(self, self.fleet, self.fleet_clock).wake)
        self.fleet = None
        self.fleet_life += 1

    def fleet_now(self) -> int:
        return self.fleet_clock + self.now

    def _fleet_tick(self, life: int) -> None:
        if self.fleet is None or life != self.fleet_life:
            return
        if self.now < self.fleet_frozen_until:
            self.at(self.fleet_frozen_until - self.now, lambda: self._fleet_tick(life))
            return
        for change in self.fleet.take_changes():
            self.census.changed(change.region, change.standing)
            self.on_change(change.region, change.standing)
            self.log(f"fleet: {change.region} is {change.standing.name}, epoch {change.epoch}")
        for region, beat in self.fleet.tick(self.fleet_now()):
            self.send(FLEET, region, beat)
        if self.fleet.is_superseded:
            self._start_fleet_again()
        self.at(TICK, lambda: self._fleet_tick(life))

    # -- the network

    def send(self, source: str, target: str, message: Message) -> None:
        network = self.network
        if isinstance(message, Behind) and self._clocks is None:
            return  # to a Fleet that is no more
        if (source, target) in network.cuts or self.rng.random() < network.loss:
            return
        delay = MS + self.rng.below(7 * MS)
        if network.slow and self.rng.random() < network.slow:
            delay += self.rng.below(network.slow_ms * MS)
        if self.trace is not None and not isinstance(message, Beat | BeatReply):
            self.log(f"{source or 'fleet'} -> {target or 'fleet'} {message}")
        if target == FLEET:
            life = self.fleet_life

            def arrive() -> None:
                if self.now < self.fleet_frozen_until:
                    self.at(self.fleet_frozen_until - self.now, arrive)
                    return
                if self.fleet is not None and self.fleet_life == life:
                    assert isinstance(message, BeatReply | Behind)
                    self.fleet.receive(source, message, self.fleet_now())
                for late in self.late_fleets:
                    late.receive(source, message)

        else:
            node = self.nodes[target]
            arrive = node.alive(node.receive, source, message)
        self.at(delay, arrive)
        if network.repeat and self.rng.random() < network.repeat:
            self.at(delay + self.rng.below(400 * MS), arrive)

    # -- clients

    def due_of(self, key: bytes) -> int:
        return self.requests[key].due

    def submit(
        self, key: bytes, count: int, *, later: int = 0, repeat: bool = False, to: str = "", only: str = ""
    ) -> None:
        """A new batch, due `later`; `to`: the region that the client asks first, `only`: that it asks at all."""
        order = sorted(rank(key, self.names), key=lambda name: name != to)
        if self.rng.random() < 0.2:
            self.rng.shuffle(order)
        order = [only] if only else order
        request = self.requests[key] = Request(key, count, order, due=self.now + later, repeat=repeat)
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
            delay = MS + self.rng.below(7 * MS)
            if self.network.slow and self.rng.random() < self.network.slow:
                delay += self.rng.below(self.network.slow_ms * MS)
            self.at(
                delay,
                node.alive(
                    lambda: node.do(
                        node.machine.submit(token, request.key, request.count, node.local(), again=again)  # type: ignore[union-attr]
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
        self.log(f"{node.name} answers {request.key!r}: {answer.spans} {'degraded' * answer.degraded}")
        if answer.degraded and (not answer.repeated or request.key not in self.acked):
            self.degraded.add(request.key)
        known = self.acked.setdefault(request.key, answer.spans)
        # with accept_local, a receipt that only one region knows of may be given again elsewhere: it says so
        if known != answer.spans and request.key not in self.degraded:
            raise Violation(f"key {request.key!r}: two receipts, {known} and {answer.spans}")
        if self.rng.random() < self.network.loss + 0.02:
            return  # the answer is lost
        request.receipt = answer.spans

    # -- what is promised

    def dispatched(self, node: Node, id_: int) -> None:
        for other in self.nodes.values():
            if other is not node and other.can_send(id_):
                raise Violation(f"{id_:x}: {node.name} sends it while {other.name} may")
        earlier = self.sent.get(id_, 0)
        owned = node.disk.owned[id_]
        if earlier and not owned.maybe_sent:
            raise Violation(f"{id_:x}: sent again by {node.name} without a mark")
        self.sent[id_] = earlier + 1
        self.log(f"{node.name} sends {id_:x}")

    def delivered(self, id_: int) -> None:
        self.at_sink[id_] = self.at_sink.get(id_, 0) + 1

    def done(self) -> bool:
        """Everything acknowledged has arrived, nobody waits, nothing is left."""
        return (
            all(request.receipt is not None for request in self.requests.values())
            and all(not node.disk.owned and node.machine is not None for node in self.left())
            and all(id_ in self.at_sink for spans in self.acked.values() for id_ in ids_of(spans))
        )

    def why_not_done(self) -> str:
        waiting = [r.key for r in self.requests.values() if r.receipt is None]
        lost = [
            f"{id_:x}" for spans in self.acked.values() for id_ in ids_of(spans) if id_ not in self.at_sink
        ]
        left = {n.name: [f"{i:x}" for i in n.disk.owned] for n in self.left() if n.disk.owned}
        standing = (
            {v.name: (Standing(v.standing).name, v.epoch) for v in self.fleet.view(self.fleet_now())}
            if self.fleet is not None
            else None
        )
        return f"waiting {waiting}, not delivered {lost}, left {left}, fleet {standing}"
