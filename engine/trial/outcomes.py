"""A trial's own outcomes, read from the events logs if they are on this machine.

Counters of the regions count everybody's mail; events name the campaign, so a trial on a fleet at work counts its own.
Lines may come twice (the log is at least once): the first delivery of a message counts.
"""

from array import array
from pathlib import Path

import orjson

from engine.trial.load import USER, number_of

PATTERN = "*/events-*.jsonl"


class Outcomes:
    """Follows the logs from where they end now. `delivered_ms[n]` is when message n was delivered (unix), 0 if not."""

    def __init__(self, directory: Path, campaign: str, count: int, *, local_part: str = USER) -> None:
        self._directory = directory
        self._mark = campaign.encode()
        self._campaign = campaign
        self._local_part = local_part
        self._offsets = {path: path.stat().st_size for path in directory.glob(PATTERN)}
        self.delivered_ms = array("q", bytes(8 * count))
        self.delivered = 0
        self.failed = {"bounced": 0, "expired": 0, "cancelled": 0, "suppressed": 0}
        self._is_failed = bytearray(count)

    @property
    def settled(self) -> int:
        return self.delivered + sum(self.failed.values())

    def read(self) -> None:
        """Take in what was added since."""
        for path in sorted(self._directory.glob(PATTERN)):
            offset = self._offsets.get(path, 0)
            with path.open("rb") as file:
                file.seek(offset)
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    offset += len(line)
                    if self._mark in line:
                        self._take(orjson.loads(line))
            self._offsets[path] = offset

    def _take(self, event: dict[str, object]) -> None:
        if event.get("campaign") != self._campaign:
            return
        kind = str(event["event"])
        number = number_of(str(event["recipient"]), local_part=self._local_part)
        if kind == "delivered":
            if not self.delivered_ms[number]:
                self.delivered_ms[number] = int(str(event["at_ms"]))
                self.delivered += 1
        elif kind in self.failed and not self._is_failed[number]:
            self._is_failed[number] = 1
            self.failed[kind] += 1
