"""The suppression lists of all regions become one: each region passes on what it changed itself, to every peer.

What was changed stands in the log of the spool (engine/spool/suppressions.py), written in the transaction of the
change. For each peer the number is kept that it has taken; so after any crash, of either side, the rest is sent
again: at least once, and taking a row twice changes nothing. A peer that is met for the first time is given the
whole list first, and so is one that asks for it: a region whose disk is new asks every peer, and notes on that disk who
has answered. While a peer is away its rows wait on disk; it is asked again with growing pauses.

Nothing here is in the way of the mail: a peer that is down delays only what it would learn.
"""

import asyncio
import logging
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack

from engine.spool.errors import SpoolError
from engine.values.suppression import Suppression, encode_rows

log = logging.getLogger(__name__)

VERSION = 1
PAGE = 2000
LOOK_S = 0.25
FIRST_PAUSE_S = 1.0
MAX_PAUSE_S = 30.0


class PeerPort(Protocol):
    """The other regions."""

    async def suppress(self, region: str, rows: bytes) -> int:
        """Have a region take rows (engine/values/suppression.py). The answer means that they are on its disk."""

    async def repeat_suppressions(self, region: str, to: str) -> None:
        """Have a region give its whole list to another, once more."""


class NoPeers:
    """For a region that is told of no way to the others: what it has for them waits on its disk."""

    async def suppress(self, region: str, rows: bytes) -> int:
        raise ConnectionError(f"region {region}: no way there")

    async def repeat_suppressions(self, region: str, to: str) -> None:
        raise ConnectionError(f"region {region}: no way there")


class SuppressionStore(Protocol):
    """The part of the spool that is used here; what changes something is done when its future is."""

    def suppressions(self, after: bytes, limit: int) -> tuple[bytes, list[Suppression]]: ...
    def suppression_log(self, after: int, limit: int) -> tuple[int, list[Suppression]]: ...
    def suppression_log_end(self) -> int: ...
    def trim_suppression_log(self, upto: int) -> Any: ...
    def get_state(self, key: str) -> bytes | None: ...
    def put_state(self, key: str, value: bytes) -> Any: ...


@dataclass(slots=True)
class Progress:
    """What a peer has: `number` of the log; while it is given the whole list, `copied` is the last key it has."""

    number: int
    copied: bytes | None

    def encode(self) -> bytes:
        return bytes(msgpack.packb((VERSION, self.number, self.copied)))


class Spread:
    """See the module docstring. `name` is this region's, `peers` are those of the others."""

    def __init__(self, store: SuppressionStore, name: str, peers: list[str], port: PeerPort) -> None:
        self._store = store
        self._name = name
        self._port = port
        self._unasked = {peer for peer in peers if store.get_state(_asked_key(peer)) is None}
        self._progress = {peer: self._load(peer) for peer in peers}
        self._trimmed = 0

    def _load(self, peer: str) -> Progress:
        stored = self._store.get_state(_key(peer))
        if stored is not None:
            version, number, copied = msgpack.unpackb(stored)
            if version == VERSION:
                return Progress(number, copied)
        return Progress(self._store.suppression_log_end(), b"")

    async def run(self) -> None:
        """Pass on for ever; each peer at its own pace."""
        async with asyncio.TaskGroup() as tasks:
            for peer in self._progress:
                tasks.create_task(self._serve(peer))
            tasks.create_task(self._trim_forever())

    async def _serve(self, peer: str) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                moved = await self.step(peer)
            except (ConnectionError, TimeoutError, SpoolError) as error:
                log.warning("region %s does not take suppressions, again in %.0f s: %s", peer, pause_s, error)
            except Exception:  # whatever a peer's fault is, it must not end this region
                log.exception("region %s: suppressions are not taken, again in %.0f s", peer, pause_s)
            else:
                pause_s = FIRST_PAUSE_S
                await asyncio.sleep(0 if moved else LOOK_S)
                continue
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, MAX_PAUSE_S)

    async def step(self, peer: str) -> bool:
        """Pass one page on to a peer; whether there was one. ConnectionError, TimeoutError: it may have it or not."""
        if peer in self._unasked:
            await self._port.repeat_suppressions(peer, self._name)
            self._store.put_state(_asked_key(peer), b"")
            self._unasked.discard(peer)
            return True
        progress = self._progress[peer]
        if progress.copied is not None:
            after, rows = self._store.suppressions(progress.copied, PAGE)
            if rows:
                await self._port.suppress(peer, encode_rows(rows))
            progress.copied = after or None
        else:
            number, rows = self._store.suppression_log(progress.number, PAGE)
            if number == progress.number:
                return False
            if rows:
                await self._port.suppress(peer, encode_rows(rows))
            progress.number = number
        # if this is lost in a crash, the peer gets the page once more
        if self._progress[peer] is progress:
            self._store.put_state(_key(peer), progress.encode())
        return True

    def repeat(self, peer: str) -> Any:
        """Give a peer the whole list once more; the future is done when that is on disk. ValueError: no such peer."""
        if peer not in self._progress:
            raise ValueError(f"region {peer!r}: allowed are {', '.join(sorted(self._progress))}")
        # another object: a page that is on its way counts for the former one
        progress = self._progress[peer] = Progress(self._store.suppression_log_end(), b"")
        return self._store.put_state(_key(peer), progress.encode())

    async def _trim_forever(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self.trim()

    def trim(self) -> None:
        """Forget what every peer has."""
        numbers = [progress.number for progress in self._progress.values()]
        upto = min(numbers) if numbers else self._store.suppression_log_end()
        if upto > self._trimmed:
            self._trimmed = upto
            self._store.trim_suppression_log(upto)

    def waiting(self) -> dict[str, int]:
        """How many changes each peer has yet to take; a peer that is given the whole list counts as -1."""
        end = self._store.suppression_log_end()
        return {
            peer: -1 if progress.copied is not None else end - progress.number
            for peer, progress in self._progress.items()
        }


def _asked_key(peer: str) -> str:
    return f"suppression/asked/{peer}"


def _key(peer: str) -> str:
    return f"suppression/peer/{peer}"
