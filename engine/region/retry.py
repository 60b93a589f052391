"""When a deferred message is tried again: exponential backoff with jitter, or an explicit schedule, per stream.

RFC 5321 section 4.5.4.1 asks for retries at least 30 minutes apart on average and for giving up after 4 to 5 days;
faster first tries are allowed, and greylisting wants them. The last try falls on the expiry itself, so that a
message is never given up without a try in its last interval.
"""

import random
from dataclasses import dataclass

from engine.config.schema import FleetConfig
from engine.values.stream import Stream


@dataclass(frozen=True, slots=True)
class RetrySchedule:
    """All durations in milliseconds. `schedule`, if given, replaces the exponential part; its last entry repeats."""

    first_ms: int
    factor: float
    max_ms: int
    jitter: float
    expire_ms: int
    schedule_ms: tuple[int, ...] = ()

    def delay_ms(self, attempts: int, rng: random.Random) -> int:
        """The wait after attempt number `attempts` (1 is the first), with jitter of ±`jitter` of itself."""
        if self.schedule_ms:
            base: float = self.schedule_ms[min(attempts, len(self.schedule_ms)) - 1]
        else:
            base = min(self.first_ms * self.factor ** min(attempts - 1, 64), self.max_ms)
        spread = self.jitter * (2 * rng.random() - 1)
        return max(1, round(base * (1 + spread)))

    def next_due_ms(self, *, now_ms: int, attempts: int, expires_ms: int, rng: random.Random) -> int | None:
        """Due time of the next attempt, or None when the message has expired."""
        if now_ms >= expires_ms:
            return None
        return min(now_ms + self.delay_ms(attempts, rng), expires_ms)


def schedule_of(config: FleetConfig, stream: Stream) -> RetrySchedule:
    retry = getattr(config.retry, str(stream))
    return RetrySchedule(
        first_ms=round(retry.first * 1000),
        factor=retry.factor,
        max_ms=round(retry.max * 1000),
        jitter=retry.jitter,
        expire_ms=round(retry.expire * 1000),
        schedule_ms=tuple(round(delay * 1000) for delay in retry.schedule),
    )
