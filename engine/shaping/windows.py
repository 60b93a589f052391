"""How many connections of one source a site bears: found by how fast it answers, and how much it puts off.

Additive increase: one connection more, at most every `increase_every`, while every connection that is allowed is in
use, answers are about as fast as they have ever been (the floor) and little is deferred. Multiplicative decrease when
answers take far longer than the floor, when many attempts are deferred, or when the site refuses a connection while
others of the source are open. An increase that is followed by a decrease doubles the wait for the next one, so a
window finds its place and stays there.

The floor is the lowest latency seen. Where one connection alone is in use the floor follows what is measured: that is
how fast the site is, whatever it was before. A site that got slower for good costs a few steps down and up, no more.
A floor proves nothing until it was seen with fewer connections too: they may be what makes the site slow. So where
answers are slow by themselves, and all connections are in use, it is tried whether fewer are answered faster; where
they are not, that is not tried again. Means are geometric: a few answers that take a minute say nothing about
the others.

A window below the full number that carries nothing for long widens by one connection at a time, so what was learnt
is forgotten as gradually as it was learnt. Pure: observations and time in, windows out.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engine.config.shaping import AdaptiveConfig

ALIKE = 1.2  # up to this ratio two latencies are the same
FOLLOW = 0.25  # of the way to what was measured, the floor goes at a time
FEW = 0.25  # of the share of deferrals that narrows a window: that few let it widen


@dataclass(frozen=True, slots=True)
class Answers:
    """What a site answered one source in some time.

    `timed` transactions took 2 ** (`log2_us` / `timed`) microseconds on average; of `attempts` messages so many were
    `deferred` for a reason that may lie with us; `refused` connections, while others were open; `most` were open at
    once.
    """

    attempts: int = 0
    deferred: int = 0
    timed: int = 0
    log2_us: float = 0.0
    refused: int = 0
    most: int = 0

    def plus(self, later: "Answers") -> "Answers":
        return Answers(
            self.attempts + later.attempts,
            self.deferred + later.deferred,
            self.timed + later.timed,
            self.log2_us + later.log2_us,
            self.refused + later.refused,
            max(self.most, later.most),
        )


NONE = Answers()


@dataclass(frozen=True, slots=True)
class Narrowed:
    """A window has become narrower: connections before and now, and why."""

    before: int
    now: int
    reason: str


class ConnectionWindow:
    """One source at one site. `window` 0: the full number."""

    __slots__ = (
        "_answers",
        "_begun_ms",
        "_config",
        "_is_trial",
        "_wait_ms",
        "changed_ms",
        "floor_most",
        "floor_us",
        "is_proved",
        "latency_us",
        "reason",
        "used_ms",
        "window",
    )

    def __init__(self, config: AdaptiveConfig) -> None:
        self._config = config
        self._answers = NONE
        self._begun_ms = 0  # since when `_answers` are counted; may lie ahead: until then nothing is
        self._wait_ms = round(config.increase_every * 1000)
        self._is_trial = False  # the last change was an increase
        self.window = 0
        self.floor_us = 0.0
        self.floor_most = 0  # connections with which it was seen
        self.is_proved = False  # and with fewer it is no lower
        self.latency_us = 0.0
        self.changed_ms = 0
        self.used_ms = 0
        self.reason = ""

    def allowed(self, full: int) -> int:
        """Connections at once, of `full`."""
        return min(self.window, full) if self.window else full

    # -- observations

    def observe(self, now_ms: int, answers: Answers, full: int) -> Narrowed | None:
        """Take in what was answered since the last time; says so if the window has become narrower."""
        if answers == NONE:
            return None
        if now_ms < self.used_ms:  # the clock was set back
            self._begun_ms = min(self._begun_ms, now_ms)
            self.changed_ms = min(self.changed_ms, now_ms)
        self.used_ms = now_ms
        if now_ms < self._begun_ms:
            return None  # answers to what was under way before the last change
        if self._answers is NONE:
            self._begun_ms = self._begun_ms or now_ms
        self._answers = self._answers.plus(answers)
        enough = self._answers.timed >= self._config.answers or self._answers.refused
        if not enough or now_ms < self._begun_ms + self._config.every * 1000:
            return None
        found, self._answers, self._begun_ms = self._answers, NONE, now_ms
        self._measure(found)
        return self._decide(now_ms, found, full)

    def _measure(self, answers: Answers) -> None:
        if not answers.timed:
            return
        self.latency_us = 2 ** (answers.log2_us / answers.timed)
        if not self.floor_us:
            self.floor_us, self.floor_most = self.latency_us, answers.most
        is_alike = self.floor_us / ALIKE <= self.latency_us <= self.floor_us * ALIKE
        if answers.most <= 1 or (is_alike and answers.most < self.floor_most):
            self.is_proved = True
        elif not is_alike and self.latency_us < self.floor_us:
            self.is_proved = False
        if self.latency_us < self.floor_us:
            self.floor_us, self.floor_most = self.latency_us, answers.most
        elif answers.most <= 1:
            self.floor_us += (self.latency_us - self.floor_us) * FOLLOW
            self.floor_most = answers.most

    def _decide(self, now_ms: int, answers: Answers, full: int) -> Narrowed | None:
        config = self._config
        allowed = self.allowed(full)
        in_use = min(allowed, answers.most)
        deferred = answers.deferred / answers.attempts if answers.attempts else 0.0
        reason = self._too_much(answers, deferred) or self._worth_a_try(answers, allowed)
        if reason:
            if in_use <= 1:
                return None  # fewer connections would change nothing
            narrower = min(in_use, allowed - 1) if answers.refused else int(in_use * config.decrease)
            return self._narrow(now_ms, max(1, min(narrower, allowed - 1)), allowed, reason)
        near_us = max(config.near * self.floor_us, config.least * 1e6 * config.near / config.high)
        is_near = answers.timed and self.latency_us <= near_us and deferred <= config.deferred * FEW
        if is_near and self.window and in_use >= allowed and now_ms >= self.changed_ms + self._wait_ms:
            self._widen(now_ms, full)
        return None

    def _too_much(self, answers: Answers, deferred: float) -> str:
        """Why the site does not bear what is open now, "" if it does."""
        config = self._config
        if answers.refused:
            return f"connections refused beyond {answers.most} ({answers.refused})"
        if deferred > config.deferred:
            return f"{deferred:.0%} of {answers.attempts} attempts deferred"
        if answers.timed and self.latency_us > max(config.high * self.floor_us, config.least * 1e6):
            return f"answers take {self.latency_us / 1000:.0f} ms, {self.floor_us / 1000:.0f} ms at best"
        return ""

    def _worth_a_try(self, answers: Answers, allowed: int) -> str:
        """Why it should be tried whether fewer connections are answered faster, "" if not."""
        is_slow = answers.timed and self.latency_us > self._config.least * 1e6
        if is_slow and not self.is_proved and answers.most >= allowed > 1:
            return f"answers take {self.latency_us / 1000:.0f} ms: tried whether fewer connections are faster"
        return ""

    def _narrow(self, now_ms: int, window: int, before: int, reason: str) -> Narrowed:
        if self._is_trial:
            longest_ms = round(self._config.increase_every_max * 1000)
            self._wait_ms = min(2 * self._wait_ms, longest_ms)
        self._is_trial = False
        self.window = window
        self.reason = reason
        self.changed_ms = now_ms
        # what is under way was begun with the connections of before
        self._begun_ms = now_ms + round(self._config.every * 1000)
        return Narrowed(before, window, reason)

    def _widen(self, now_ms: int, full: int) -> None:
        if self._is_trial:  # the last increase has done no harm
            self._wait_ms = max(round(self._config.increase_every * 1000), self._wait_ms // 2)
        self._is_trial = True
        self.changed_ms = now_ms
        self.window += 1
        if self.window >= full:
            self.window = 0
            self.reason = ""

    # -- time

    def advance(self, now_ms: int, full: int) -> None:
        """Time has passed: a window that is not used widens."""
        if self.window and now_ms >= self.review_ms():
            self._is_trial = False
            self._widen(now_ms, full)
            self.used_ms = now_ms

    def review_ms(self) -> int:
        """When it widens if nothing is sent until then; 0 if it is full."""
        return self.used_ms + round(self._config.idle * 1000) if self.window else 0

    # -- state

    def to_state(self) -> list[object]:
        return [
            self.window,
            self.floor_us,
            self.floor_most,
            self.is_proved,
            self._wait_ms,
            self.changed_ms,
            self.used_ms,
            self.reason,
        ]

    @classmethod
    def from_state(cls, config: AdaptiveConfig, state: Sequence[Any]) -> "ConnectionWindow":
        found = cls(config)
        found.window, found.floor_us, found.floor_most, found.is_proved, found._wait_ms = state[:5]
        found.changed_ms, found.used_ms, found.reason = state[5:]
        return found
