"""The TLS results of a region's pools: counters, events, and the book of the reports, kept on disk.

The book is written at most once in `SAVE_MS`, and when the region stops: a crash loses a minute of statistics. What the
spool holds is read when the ledger is made.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, Protocol

from engine.tls.book import ReportBook
from engine.tls.tally import decode_findings
from engine.values.clock import Clock

log = logging.getLogger(__name__)

STATE_KEY = "tls/reports"
SAVE_MS = 60_000
MAX_COUNTERS = 500


class LedgerSpool(Protocol):
    """engine/spool/store.py."""

    def get_state(self, key: str) -> bytes | None: ...
    def put_state(self, key: str, value: bytes) -> Any: ...
    def note_events(self, events: Sequence[tuple[int, str, dict[str, object]]]) -> Any: ...


class TlsLedger:
    """See the module docstring."""

    def __init__(self, spool: LedgerSpool, clock: Clock) -> None:
        self._spool = spool
        self._clock = clock
        self._counts: Counter[tuple[str, str, str, str]] = Counter()
        self._saved_ms = clock.wall_ms()
        self._is_dirty = False
        self.book = self._restored()

    def _restored(self) -> ReportBook:
        state = self._spool.get_state(STATE_KEY)
        if state is None:
            return ReportBook()
        try:
            return ReportBook.decode(state)
        except ValueError as error:  # of a later release: statistics, not worth refusing to start
            log.error("TLS reports begin anew: %s", error)
            return ReportBook()

    def note(self, data: bytes) -> None:
        """What a pool has counted (engine/tls/tally.py)."""
        now_ms = self._clock.wall_ms()
        events: list[tuple[int, str, dict[str, object]]] = []
        for finding, count in decode_findings(data):
            key = finding.policy, finding.verified, finding.version, finding.fault
            if key in self._counts or len(self._counts) < MAX_COUNTERS:
                self._counts[key] += count
            self.book.note(finding, count, now_ms)
            events.append((now_ms, "tls", {**finding._asdict(), "published": None, "sessions": count}))
        for _, _, fields in events:
            del fields["published"]  # the policy's text is in the reports
        self._is_dirty = True
        self._spool.note_events(events)

    def save(self, *, now: bool = False) -> None:
        """Write the book, if it has changed and it is time to."""
        now_ms = self._clock.wall_ms()
        if self._is_dirty and (now or now_ms - self._saved_ms >= SAVE_MS):
            self._spool.put_state(STATE_KEY, self.book.encode())
            self._saved_ms = now_ms
            self._is_dirty = False

    def forget(self, day: int, domain: str) -> None:
        """A report has left."""
        self.book.forget(day, domain)
        self._is_dirty = True

    def listing(self) -> list[dict[str, object]]:
        """Sessions since the start by policy, what verified the peer ("" nobody, "plain" no TLS), version, fault."""
        return [
            {"policy": policy, "verified": verified, "version": version, "fault": fault, "sessions": count}
            for (policy, verified, version, fault), count in sorted(self._counts.items())
        ]
