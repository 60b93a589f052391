"""What a pool tells its region: outcomes, notices and findings, in numbered reports, kept until they are settled.

A report leaves `FLUSH_S` after its first row, or with `FLUSH_ROWS`. While another is on its way, rows gather: one
report at a time is what the region's disk can take, and the fewer the cheaper. How the sites answered (pulses) goes
with the next report; it is told once, and not kept.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from engine.delivery.ports import ReportSink
from engine.delivery.pulse import Pulse
from engine.delivery.wire import OutcomeRow, encode_report
from engine.tls.tally import Tally
from engine.values.outcome import OutcomeKind

FLUSH_S = 0.01
FLUSH_ROWS = 500
MAX_PULSES = 1_000  # that wait while the region does not settle: later ones are left out


class Reports:
    """See the module docstring. `epoch`: of the region's incarnation that hears them; `send` hands one over."""

    def __init__(self, send: ReportSink) -> None:
        self.send = send
        self.epoch = 0
        self.tally = Tally()
        self.sequence = 0
        self.counts = dict.fromkeys(OutcomeKind, 0)
        self._rows: list[OutcomeRow] = []
        self._notices: list[tuple[str, str]] = []
        self._pulses: list[Pulse] = []
        self._unacknowledged: OrderedDict[int, list[OutcomeRow]] = OrderedDict()
        self._timer: asyncio.TimerHandle | None = None
        self._is_due = False

    def add(self, row: OutcomeRow) -> None:
        self.counts[row[1]] += 1  # type: ignore[index]
        rows = self._rows
        rows.append(row)
        if len(rows) == 1:
            self._timer = asyncio.get_running_loop().call_later(FLUSH_S, self._flush_time)
        elif len(rows) >= FLUSH_ROWS:
            self.flush()

    def acknowledge(self, sequence: int) -> None:
        """Reports up to `sequence` are settled on disk."""
        while self._unacknowledged and next(iter(self._unacknowledged)) <= sequence:
            self._unacknowledged.popitem(last=False)
        if self._is_due and not self._unacknowledged:
            self.flush()

    def unacknowledged(self) -> list[OutcomeRow]:
        """All rows that are not known to be settled; they are of report `sequence` and before."""
        self._seal()
        return [row for sealed in self._unacknowledged.values() for row in sealed]

    def tick(self, notices: Sequence[tuple[str, str]], pulses: Sequence[Pulse] = ()) -> None:
        """Time has passed: what waits leaves, with these notices."""
        self._pulses += pulses[: MAX_PULSES - len(self._pulses)]
        if notices:
            self._notices += notices
            self._is_due = True
        if self._is_due:
            self.flush()

    def flush(self) -> None:
        before = self.sequence
        self._seal()
        if self.sequence != before:
            rows = self._unacknowledged[self.sequence]
            findings = self.tally.drain()
            self.send(encode_report(self.sequence, self.epoch, rows, self._notices, findings, self._pulses))
            self._notices, self._pulses = [], []

    def waiting(self) -> int:
        """Rows that are not sealed in a report yet."""
        return len(self._rows)

    def kept(self) -> int:
        """Rows that are not known to be settled."""
        return sum(len(rows) for rows in self._unacknowledged.values()) + len(self._rows)

    def _seal(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._is_due = False
        if self._rows or self._notices:
            self.sequence += 1
            self._unacknowledged[self.sequence] = self._rows
            self._rows = []

    def _flush_time(self) -> None:
        self._timer = None
        if self._unacknowledged:
            self._is_due = True
        else:
            self.flush()
