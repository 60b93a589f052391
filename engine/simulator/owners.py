"""Whose messages of a batch an answer met: the tenants' shares, by what each sends.

A provider's model answers a source's part of a batch as a whole. Recipients that do not exist are taken to be those of
the tenants in the proportion in which they write to such; every other answer falls on them by volume.
"""

from collections.abc import Sequence

from engine.simulator.node import Node
from engine.simulator.plan import Traffic
from engine.simulator.traffic import Split
from engine.values.outcome import Outcome, OutcomeKind, Scope


class Owners:
    """The tenants of one source's part of a batch. `parts`: (traffic, messages)."""

    def __init__(self, parts: Sequence[tuple[Traffic, int]]) -> None:
        self._left: dict[str, int] = {}
        self._unknown: dict[str, float] = {}
        for traffic, count in parts:
            self._left[traffic.tenant] = self._left.get(traffic.tenant, 0) + count
            unknown = self._unknown.get(traffic.tenant, 0.0)
            self._unknown[traffic.tenant] = unknown + count * traffic.unknown

    def note(self, node: Node, outcome: Outcome, count: int) -> None:
        """Tell the region whose messages these were."""
        if len(self._left) == 1:
            node.tenants.note(next(iter(self._left)), outcome, count)
            return
        is_unknown = outcome.kind is OutcomeKind.BOUNCED and outcome.scope is Scope.RECIPIENT
        names = list(self._left)
        weights = [self._unknown[name] if is_unknown else float(self._left[name]) for name in names]
        if sum(weights) <= 0:
            weights = [1.0] * len(names)
        for name, share in zip(names, Split(weights).of(count, [True] * len(names)), strict=True):
            if share:
                self._left[name] = max(0, self._left[name] - share)
                node.tenants.note(name, outcome, share)
