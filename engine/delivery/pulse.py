"""How a site answers one source: measured by the pool, told to the region now and then (engine/shaping/windows.py).

A transaction's time goes from its commands to its final reply. Times are added as logarithms, so a few slow answers do
not hide the others. Large messages are not timed: their time says more about the line than about the site.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

TIMED_SIZE = 64 * 1024  # bytes of a message at most
ENOUGH = 64  # transactions that are timed before the region is told: more cost time and tell nothing


class Pulse(NamedTuple):
    """`timed` transactions took 2 ** (`log2_us` / `timed`) microseconds on average. `refused`: connections, while
    others of the source were open; `most`: sessions at once."""

    source: int
    site: str
    timed: int
    log2_us: float
    refused: int
    most: int


@dataclass(slots=True)
class Meter:
    """What one gate has measured since it was last asked."""

    sessions: int = 0
    _most: int = 0
    timed: int = 0
    _log2_us: float = 0.0
    _refused: int = 0

    def opened(self) -> None:
        self.sessions += 1
        self._most = max(self._most, self.sessions)

    def closed(self) -> None:
        self.sessions -= 1

    def refused(self) -> None:
        """The site did not let a connection in, while others were open."""
        self._refused += 1

    def answered(self, took_ns: int) -> None:
        self.timed += 1
        self._log2_us += math.log2(max(1.0, took_ns / 1000))

    def take(self, source: int, site: str) -> Pulse | None:
        """What was measured, None if that is nothing; counting begins anew."""
        if not (self.timed or self._refused):
            return None
        pulse = Pulse(source, site, self.timed, self._log2_us, self._refused, self._most)
        self.timed, self._log2_us, self._refused, self._most = 0, 0.0, 0, self.sessions
        return pulse
