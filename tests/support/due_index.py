"""A due index in memory, as engine/region/windows.py reads it."""

from collections.abc import Iterable

NEVER_MS = 1 << 47


class DueIndex:
    """`rows`: due keys with their expiry; `names`: domain, stream, tenant, campaign of the queues."""

    def __init__(self) -> None:
        self.rows: dict[bytes, int] = {}
        self.names: dict[int, tuple[str, int, str, str]] = {}

    def scan_due(
        self, queue: int, after: bytes | None, until_due_ms: int, limit: int
    ) -> list[tuple[bytes, int]]:
        prefix = queue.to_bytes(4, "big")
        found = [
            (key, expires)
            for key, expires in sorted(self.rows.items())
            if key[:4] == prefix
            and (after is None or key > after)
            and int.from_bytes(key[4:10], "big") <= until_due_ms
        ]
        return found[:limit]

    def first_due_after(self, queue: int, after: bytes | None) -> int | None:
        found = self.scan_due(queue, after, NEVER_MS, 1)
        return int.from_bytes(found[0][0][4:10], "big") if found else None

    def queue(self, number: int) -> tuple[str, int, str, str]:
        return self.names[number]

    def empty_queues(self, numbers: Iterable[int]) -> set[int]:
        return set(numbers) - {int.from_bytes(row[:4], "big") for row in self.rows}
