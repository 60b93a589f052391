"""Messages that are not to be loaded now, although their due keys are on disk.

Something about them is being written (an outcome, a cancellation, an offer to a peer), and what the disk says of them
until then is about to change; or they are on the wire in a process that outlived the region's former incarnation. A due
key that is met meanwhile is passed over and kept here: whoever ends the wait gets it, and looks at the disk again.

Memory: an entry per message that is being written or held, both bounded by what pools and group commits hold.
"""

import struct
from collections.abc import Iterable, Sequence

IDS = struct.Struct(">10xQ")  # of due keys


class Busy:
    """See the module docstring."""

    def __init__(self) -> None:
        self._held: dict[int, bytes | None] = {}
        self._holders: dict[str, list[int]] = {}
        self._settling: set[int] = set()
        self._again: dict[
            int, int
        ] = {}  # how many more writes about one that is being settled are on their way
        self._passed: dict[int, bytes] = {}

    # -- on the wire elsewhere

    def hold(self, holder: str, ids: Sequence[int]) -> None:
        self._holders.setdefault(holder, []).extend(ids)
        for id_ in ids:
            self._held.setdefault(id_, None)

    def is_held(self, id_: int) -> bool:
        return id_ in self._held

    def release(self, id_: int) -> bytes | None:
        """It is not held any more; its due key if that has been passed over."""
        return self._held.pop(id_, None)

    def release_all(self, holder: str) -> list[bytes]:
        """Nothing is held by that one any more; due keys that have been passed over."""
        keys = [self._held.pop(id_, None) for id_ in self._holders.pop(holder, ())]
        return [key for key in keys if key is not None]

    # -- being written

    def settling(self, ids: Iterable[int]) -> None:
        """A write about these begins; each ends with `settled`, and several may be on their way."""
        ids = set(ids)
        for id_ in self._settling & ids:
            self._again[id_] = self._again.get(id_, 0) + 1
        self._settling |= ids

    def settled(self, ids: Iterable[int]) -> list[bytes]:
        """It has ended, one way or the other; due keys that were passed over and about which no other is on its way."""
        ids = set(ids)
        for id_ in self._again.keys() & ids if self._again else ():
            ids.discard(id_)
            self._again[id_] -= 1
            if not self._again[id_]:
                del self._again[id_]
        self._settling -= ids
        return [self._passed.pop(id_) for id_ in self._passed.keys() & ids] if self._passed else []

    def is_settling(self, id_: int) -> bool:
        return id_ in self._settling

    # -- both

    def free(self, keys: Sequence[bytes]) -> Sequence[bytes]:
        """Those of these due keys that may be loaded; the others are passed over."""
        if not (self._settling or self._held):
            return keys
        ids = [id_ for (id_,) in IDS.iter_unpack(b"".join(keys))]
        if self._settling.isdisjoint(ids) and self._held.keys().isdisjoint(ids):
            return keys
        free = []
        for id_, key in zip(ids, keys, strict=True):
            if id_ in self._held:
                self._held[id_] = key
            elif id_ in self._settling:
                self._passed[id_] = key
            else:
                free.append(key)
        return free
