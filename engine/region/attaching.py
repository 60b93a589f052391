"""Attaching a process of a pool to this incarnation of the region: what it has done meanwhile, and still has.

Every attachment comes through here, that of a process found at the start and that of one found or started later: what
a process tells when it is attached it tells once, and does not report again.
"""

from collections.abc import Callable

from engine.delivery.wire import ResumeState, decode_resume
from engine.region.outcomes import Outcomes
from engine.region.ports import PoolName, PoolPort
from engine.region.windows import Windows
from engine.values.outcome import Outcome, OutcomeKind


class Attaching:
    """See the module docstring. `epoch`: of this incarnation."""

    def __init__(self, *, epoch: int, windows: Windows, outcomes: Outcomes) -> None:
        self._epoch = epoch
        self._windows = windows
        self._outcomes = outcomes

    async def attach(self, name: PoolName, port: PoolPort, has_died: Callable[[], bool]) -> ResumeState:
        """Leave it what it has on the wire, and settle what it has not reported.

        `has_died`: whether its death has been heard of; what it told before holds all the same. ConnectionError and
        TimeoutError: it does not answer, and may be attached again.
        """
        state = decode_resume(await port.resume(self._epoch))
        if not has_died():
            self._windows.hold(str(name), state.in_progress)
        told = _not_given_again(state)
        await self._outcomes.settle_outcomes([row for row, _ in told], [number for _, number in told])
        await port.acknowledge(state.sequence)
        return state


def _not_given_again(state: ResumeState) -> list[tuple[Outcome, int]]:
    """Outcomes with their batches, without what it gave back and has been given again since."""
    held = set(state.in_progress)
    rows = zip(state.outcomes, state.batch_numbers, strict=True)
    return [row for row in rows if not (row[0].kind is OutcomeKind.RETURNED and row[0].id in held)]
