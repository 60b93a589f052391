"""The fleet watches itself: looks at every region, keeps the alerts, says what changes.

A change goes to the log at once, and as an event `alert` into the outbox of its region; of another one while that does
not answer. Not more than `KEPT` changes wait for a region that takes them.
"""

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, Protocol

from engine.alerts.watch import Change, Watch
from engine.config.schema import FleetConfig
from engine.metrics.catalogue import Point
from engine.metrics.gather import FigurePort, Gatherer
from engine.spool.errors import SpoolError

log = logging.getLogger(__name__)

KEPT = 1000
Row = tuple[int, str, dict[str, Any]]


class AlertPort(FigurePort, Protocol):
    """Asks for figures, and tells regions what to write into their events."""

    async def note_alerts(self, region: str, rows: Sequence[Row]) -> None: ...


class Monitor:
    """See the module docstring."""

    def __init__(self, config: FleetConfig, port: AlertPort) -> None:
        self._config = config
        self._port = port
        self._watch = Watch(config.alerts)
        self._gatherers = {region.name: Gatherer(config, region.name, port) for region in config.regions}
        self._untold: deque[Row] = deque(maxlen=KEPT)

    async def run(self) -> None:
        """Look for ever. A look that fails is in the log, and the next one comes."""
        while True:
            await asyncio.sleep(self._config.alerts.interval)
            try:
                await self.look()
            except Exception:  # of whatever actor: nothing here may end the watch
                log.exception("alerts: a look has failed")

    async def figures(self) -> dict[str, list[Point]]:
        """Of every region."""
        answers = await asyncio.gather(*(gatherer.gather() for gatherer in self._gatherers.values()))
        return dict(zip(self._gatherers, answers, strict=True))

    async def look(self) -> None:
        """Look at every region once."""
        answers = await self.figures()
        now_s, now_ms = time.monotonic(), time.time_ns() // 1_000_000
        for name, points in answers.items():
            for change in self._watch.look(name, points, now_s, now_ms):
                self._say(change, now_ms)
        await self._tell()

    def _say(self, change: Change, now_ms: int) -> None:
        alert = change.alert
        place = f"region {alert.region}" + (f", {alert.where}" if alert.where else "")
        if change.is_firing:
            log.error("alert %s (%s), %s: %s", alert.name, alert.severity, place, alert.text)
        else:
            log.warning("alert %s, %s: is over", alert.name, place)
        state = "firing" if change.is_firing else "resolved"
        self._untold.append((now_ms, "alert", {**alert.fields(), "state": state}))

    async def _tell(self) -> None:
        """Each row to its own region, or to the first that takes it."""
        while self._untold:
            row = self._untold[0]
            own = str(row[2]["region"])
            for region in sorted(self._gatherers, key=lambda name: name != own):
                try:
                    await self._port.note_alerts(region, [row])
                    break
                except (OSError, RuntimeError, SpoolError) as error:
                    log.info("region %s does not take an alert into its events: %s", region, error)
            else:
                return
            self._untold.popleft()

    def listing(self) -> list[dict[str, object]]:
        """What fires now, the worst first."""
        return [alert.fields() for alert in self._watch.firing()]
