"""What a region's link to its standby reads, and what it says of messages that were taken over."""

import asyncio
from typing import Any

import pytest

from engine.failover.effects import Export
from engine.failover.link import EMPTY_AT_ONCE, PIECE, Link, State
from engine.failover.messages import Ack, Welcome
from engine.failover.spans import Spans
from engine.failover.store import Queued, TakeQueued
from engine.failover.timing import MS, Timing
from engine.region.cover import Cover

TAKEN = ((5 << 48 | 7, 3),)
MANY = 200_000


class Machine:
    """The link alone of a region's machine."""

    epoch = 1

    def __init__(self, link: Link) -> None:
        self.link = link

    def is_covered(self, now: int) -> bool:
        return self.link.is_usable(now)

    def lease_until(self) -> int:
        return -1

    def exported(self, export: Export, spans: Spans, payload: bytes, cursor: bytes, now: int) -> Any:
        return self.link.exported(export, spans, payload, cursor, now)

    def flush(self, now: int) -> Any:
        return self.link.pump(now)


class Scene:
    """A Cover of which only the link to the standby is real. `reads`: what was read; nothing of it is queued."""

    def __init__(self, *, accept_local: bool = False) -> None:
        self.now = 0
        self.reads: list[Spans] = []
        self.sent: list[Any] = []
        self.link = Link(Timing(), life=1)
        self.cover: Any = Cover.__new__(Cover)
        self.cover.machine = Machine(self.link)
        self.cover._clock = self
        self.cover._accept_local = accept_local
        self.cover._is_closed = self.cover._had_lease = self.cover._flush = False
        self.cover._followed, self.cover._digests = {}, {}
        self.cover._lease = self
        self.cover._outgoing = self
        self.cover._exporter = self
        self.cover._templates = lambda: None

    def monotonic_ns(self) -> int:
        return self.now

    def write(self, epoch: int, until: int) -> None:
        pass

    def say(self, to: str, message: object) -> None:
        self.sent.append(message)

    def keys(self, cursor: bytes) -> tuple[bytes, bytes]:
        return b"keys", b""

    def messages(self, spans: Spans, *about: object) -> tuple[Spans, bytes]:
        self.reads.append(spans)
        return (), b""

    def updates(self, spans: Spans) -> tuple[Spans, bytes]:
        return spans, b"rows"

    def open(self, queued: Spans = ()) -> None:
        self.link.connect("z", 1, 0)
        (write,) = self.link.welcomed("z", Welcome(self.link.session, (), 2), 0)
        assert isinstance(write.operation, TakeQueued)  # type: ignore[union-attr]
        listed, _ = self.link.gathered(write.operation, Queued(queued))  # type: ignore[union-attr]
        assert self.link.listed(write.operation, listed or (), [], 0)  # type: ignore[union-attr]


def test_what_was_settled_before_it_was_copied_is_passed_over_in_turns() -> None:
    scene = Scene()
    scene.open(((5 << 48 | 1, MANY),))
    scene.cover._do(scene.link.pump(0))
    assert len(scene.reads) == EMPTY_AT_ONCE
    ticks = 0
    while scene.link.lag():
        read = len(scene.reads)
        scene.cover._do(scene.link.tick(0))
        assert len(scene.reads) - read <= EMPTY_AT_ONCE
        ticks += 1
    assert ticks < MANY / PIECE / EMPTY_AT_ONCE + 1
    scene.link.acknowledged("z", Ack(scene.link.session, 1), 0)
    scene.cover._do(scene.link.tick(0))
    assert scene.link.is_complete()


@pytest.mark.parametrize("accept_local", [True, False])
def test_what_was_taken_while_the_standby_is_silent_is_copied_when_it_answers(accept_local: bool) -> None:
    async def run() -> None:
        scene = Scene(accept_local=accept_local)
        scene.open()
        scene.cover._do(scene.link.pump(0))
        scene.now = 500 * MS
        assert not scene.link.is_usable(scene.now)
        assert scene.cover.is_copied(b"hand-over", TAKEN) is accept_local  # True: who gave them forgets them
        await asyncio.sleep(0)
        assert scene.link.state is State.OPEN
        assert scene.reads == [TAKEN]

    asyncio.run(run())
