"""The measured load of a drill: batches at a steady rate, each to one region by turns, every answer timed.

It does not wait for a slow region (engine/drill/pacing.py). A batch without an answer counts as not accepted; should it
have been accepted after all, its messages are more than what is counted, never less.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Protocol

from engine.drill.figures import Submission
from engine.drill.pacing import Pace
from engine.spool.errors import SpoolError
from engine.values.message import Message, Receipt
from engine.values.stream import Stream

BATCH = 10
ANSWER_S = 60.0
_BODY = (
    "From: Drill <drill@drill.invalid>\r\nTo: <{recipient}>\r\nSubject: Drill\r\n"
    "Message-ID: <{number}.{run}@drill.invalid>\r\nMIME-Version: 1.0\r\n\r\n{text}\r\n"
)
_TEXT = "A line of a drill, which nobody reads.\r\n" * 40


class SubmitPort(Protocol):
    """Submits a batch to a region of the caller's choice; with copies to another if that one is silent."""

    async def submit_to(self, region: str, batch: list[Message]) -> Receipt: ...


class Load:
    """Runs from `start` to `stop`; `submissions` are complete after that. Times are seconds since `began_s`."""

    def __init__(
        self,
        port: SubmitPort,
        regions: tuple[str, ...],
        domain: str,
        rate: float,
        *,
        began_s: float,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._port = port
        self._regions = regions
        self._domain = domain
        self.began_s = began_s
        self._now_s = now_s
        self._run = f"{time.time_ns():x}"
        self._pace = Pace(self._submit, BATCH / rate, began_s=began_s, now_s=now_s)
        self.submissions: list[Submission] = []

    @property
    def skipped(self) -> int:
        """Batches that were due while too many were without an answer."""
        return self._pace.skipped

    def start(self) -> None:
        self._pace.start()

    async def stop(self) -> None:
        """End the load; returns when every answer is there, or its deadline over."""
        await self._pace.stop()

    async def _submit(self, number: int) -> None:
        region = self._regions[number % len(self._regions)]
        batch = [self._message(number * BATCH + n) for n in range(BATCH)]
        sent_s = self._now_s() - self.began_s
        try:
            async with asyncio.timeout(ANSWER_S):
                receipt = await self._port.submit_to(region, batch)
        except (OSError, RuntimeError, ValueError, SpoolError) as error:
            answered_s = self._now_s() - self.began_s
            first = (str(error).splitlines() or ["no answer"])[0]
            reason = f"{type(error).__name__}: {first}"[:160]
            self.submissions.append(Submission(sent_s, answered_s, region, (), len(batch), reason))
            return
        answered_s = self._now_s() - self.began_s
        refused = {error.index for error in receipt.errors}
        taken = tuple(m.recipients[0] for index, m in enumerate(batch) if index not in refused)
        self.submissions.append(
            Submission(sent_s, answered_s, region, taken, len(refused), taken_by=receipt.region)
        )

    def _message(self, number: int) -> Message:
        recipient = f"drill-{self._run}-{number}@{self._domain}"
        body = _BODY.format(recipient=recipient, number=number, run=self._run, text=_TEXT)
        return Message("drill@drill.invalid", (recipient,), body.encode(), Stream.TRANSACTIONAL)


async def until(
    condition: Callable[[], Awaitable[bool]], *, deadline_s: float, every_s: float = 0.05
) -> float | None:
    """When (monotonic seconds) the condition first held; None if it did not before the deadline."""
    end_s = time.monotonic() + deadline_s
    while True:
        if await condition():
            return time.monotonic()
        if time.monotonic() > end_s:
            return None
        await asyncio.sleep(every_s)
