"""A region in the simulation: its process, its disk, its clocks and its pool."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from engine.failover.effects import Answer, Effect, Export, Forget, Ready, Send, Write
from engine.failover.messages import Message
from engine.failover.region import RegionMachine
from engine.failover.spans import ids_of
from engine.failover.store import Operation, SaveStandby
from engine.failover.timing import MS
from tests.support.failover_store import Disk

if TYPE_CHECKING:
    from tests.simulation.world import World

TICK = 50 * MS


class Node:
    """One region: its process, its disk, its clocks, and a pool in a process of its own that sends what it was given.

    Due times are of the wall clock, which may jump; leases of the monotonic one, which may run at another rate.
    """

    def __init__(self, world: "World", name: str, number: int) -> None:
        self.world = world
        self.name = name
        self.peers = tuple(peer for peer in world.names if peer != name)
        self.disk = Disk(name, number, world.numbers, world.keys_at_once)
        self.machine: RegionMachine | None = None
        self.life = 0
        self.clock = world.rng.randrange(1, 10**12)
        self.rate = 1.0 + world.rng.uniform(-0.01, 0.01)
        self.wall_error = 0
        self.frozen = False
        self.thawed: list[Callable[[], None]] = []
        self.free: set[int] = set()
        self.handed: set[int] = set()  # the pool has them
        self.on_wire: set[int] = set()
        self.pool_until = -1
        self.pool_epoch = 0
        self.writes: deque[tuple[Operation | tuple[int, ...], int]] = deque()
        self.writing = False
        self.stall_until = 0

    def local(self) -> int:
        return self.clock + int(self.world.now * self.rate)

    def wall(self) -> int:
        return self.world.now + self.wall_error

    def start(self) -> None:
        world = self.world
        if self.name in world.gone:
            return
        self.life += 1
        if world.rng.random() < 0.5:
            self.clock = world.rng.randrange(1, 10**12)  # the machine was booted: its clock begins anew
        for id_ in sorted(self.on_wire | self.handed):
            if id_ in self.disk.owned:
                self.disk.owned[id_].maybe_sent = True
        self.free = set(self.disk.safe())
        self.handed.clear()
        self.on_wire.clear()
        self.pool_until = -1
        self.writes.clear()
        self.writing = False
        self.frozen = False
        self.thawed.clear()
        self.machine = world.make_machine(self)
        world.at(world.rng.below(TICK), self.alive(self._tick))
        world.at(world.rng.below(TICK), lambda life=self.life: self._send_some(life))

    def stop(self) -> None:
        self.machine = None
        self.life += 1
        self.handed.clear() if self.world.rng.random() < 0.5 else None

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
        assert self.machine is not None
        for effect in effects:
            match effect:
                case Send():
                    self.world.send(self.name, effect.to, effect.message)
                case Write():
                    self.write(effect.operation)
                case Export():
                    self.do(self.machine.exported(effect, *self.disk.export(effect), self.local()))
                case Ready():
                    self.free.update(id_ for id_ in ids_of(effect.spans) if id_ in self.disk.owned)
                case Forget():
                    self.free.difference_update(ids_of(effect.spans))
                    self.handed.difference_update(ids_of(effect.spans))
                case Answer():
                    self.world.answer(self, effect)
        self.publish()

    def publish(self) -> None:
        """Tell the pool how long it may send, and under which epoch: what it holds of another one it gives back."""
        assert self.machine is not None
        if self.machine.epoch != self.pool_epoch:
            self.pool_epoch = self.machine.epoch
            self.free |= {id_ for id_ in self.handed if id_ in self.disk.owned}
            self.handed.clear()
        self.pool_until = self.machine.lease_until()

    # -- the disk

    def write(self, operation: Operation | tuple[int, ...]) -> None:
        if isinstance(operation, SaveStandby) and operation.only_if_empty:
            self.world.on_move(self.name, operation.name)
        self.writes.append((operation, self.life))
        if not self.writing:
            self.writing = True
            self._next_write()

    def _next_write(self) -> None:
        delay = MS + self.world.rng.below(3 * MS)
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
                results.append(self.disk.apply(operation, self.wall(), self.world.due_of))
        self.writing = False
        for operation, result in zip(group, results, strict=True):
            if isinstance(operation, tuple):
                self.on_wire.difference_update(operation)
                self.machine.settled(result)  # type: ignore[arg-type]
            else:
                self.do(self.machine.committed(operation, result, self.local()))
        self.do(self.machine.flush(self.local()))
        if self.writes and not self.writing:
            self.writing = True
            self._next_write()

    # -- the pool

    def dispatch(self) -> None:
        """Hand over to the pool some of what is due."""
        assert self.machine is not None
        if not self.free or not self.machine.may_dispatch(self.local()):
            return
        due = [i for i in sorted(self.free) if i in self.disk.owned and self.disk.owned[i].due <= self.wall()]
        for id_ in due[: self.world.rng.randrange(1, 4)]:
            self.free.discard(id_)
            if id_ not in self.on_wire:
                self.handed.add(id_)

    def _send_some(self, life: int) -> None:
        """The pool runs although its region may be frozen."""
        if self.life != life:
            return
        world = self.world
        rng = world.rng
        for id_ in sorted(self.handed) if self.handed else ():
            if self.local() >= self.pool_until:
                break
            if rng.random() < 0.5:
                continue
            self.handed.discard(id_)
            if id_ not in self.disk.owned:
                continue
            world.dispatched(self, id_)
            self.on_wire.add(id_)
            world.at(2 * MS + rng.below(28 * MS), lambda id_=id_: self._arrive(id_))
        world.at(5 * MS + rng.below(15 * MS), lambda: self._send_some(life))

    def _arrive(self, id_: int) -> None:
        """The sink has it, whatever became of us; we learn it if we live."""
        self.world.delivered(id_)
        self.alive(lambda: self.write((id_,)))()

    def can_send(self, id_: int) -> bool:
        return (
            self.machine is not None
            and id_ in self.disk.owned
            and (id_ in self.free or id_ in self.handed)
            and self.local() < self.pool_until
        )
