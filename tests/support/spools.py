"""Small spools: options that suit a test, batches of letters, outcomes."""

import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from engine.spool.audit import audit
from engine.spool.batches import AcceptBatch, AcceptItem, CampaignRecord, ChunkBatch, Settlement
from engine.spool.store import Spool, SpoolOptions
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply
from tests.support.clock import ManualClock

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
PATIENCE_S = 20.0
PATTERN = bytes(range(251))


def open_spool(path: Path, clock: ManualClock | None = None, *, region: int = 1, **options: Any) -> Spool:
    """A spool that needs little room, and merges its due index often."""
    defaults: dict[str, Any] = {"map_size": 64 << 20, "min_free": 0, "segment_size": 1 << 20, "journal": 16}
    return Spool.open(
        path,
        region_number=region,
        clock=clock or ManualClock(),
        options=SpoolOptions(**{**defaults, **options}),
    )


def letter(number: int, size: int = 200) -> bytes:
    """A body that is like no other letter's."""
    head = f"Subject: letter {number}\r\n\r\n".encode()
    start = number * 7 % len(PATTERN)
    return head + (PATTERN * (2 + size // len(PATTERN)))[start : start + size - len(head)]


def batch(
    key: bytes | None = None,
    *,
    letters: Sequence[bytes] = (b"Subject: x\r\n\r\nx\r\n",),
    recipients: int = 1,
    domain: str = "example.net",
    keys: Sequence[str] = (),
    due_ms: int = NOW_MS,
    tenant: str = "default",
    campaign: str = "",
) -> AcceptBatch:
    """One item per letter, each to so many recipients, the same ones for the same item key; a random batch key if none
    is given.
    """
    items: list[AcceptItem] = []
    offset = 0
    for number, body in enumerate(letters):
        items.append(
            AcceptItem(
                sender="sender@example.com",
                recipients=tuple(
                    f"u{keys[number] if keys else number}.{i}@{domain}" for i in range(recipients)
                ),
                domains=(domain,) * recipients,
                stream=0,
                tenant=tenant,
                campaign=campaign,
                offset=offset,
                length=len(body),
                due_ms=due_ms,
                expires_ms=due_ms + 48 * HOUR_MS,
                key=keys[number] if keys else "",
            )
        )
        offset += len(body)
    return AcceptBatch(key or os.urandom(16), items, b"".join(letters))


CAMPAIGN = CampaignRecord(
    campaign="spring",
    tenant="default",
    stream=1,
    sender="news@example.com",
    field_names=("name",),
    template={"subject": "Hello {{ name }}"},
)


def chunk(campaign_no: int, number: int, count: int = 10, *, digest: bytes = b"d" * 16) -> ChunkBatch:
    names = [f"n{number}.{i}" for i in range(count)]
    return ChunkBatch(
        campaign_no=campaign_no,
        number=number,
        digest=digest,
        recipients=[f"{name}@example.org" for name in names],
        domains=["example.org"] * count,
        fields=[(name,) for name in names],
        due_ms=NOW_MS,
        expires_ms=NOW_MS + 48 * HOUR_MS,
        tenant="default",
        stream=1,
    )


def id_of(due_key: bytes) -> int:
    return int.from_bytes(due_key[10:], "big")


def packed(ids: Sequence[int]) -> bytes:
    """Ids as `Spool.dispatch` takes them."""
    return b"".join(id_.to_bytes(8, "little") for id_ in ids)


def settlement(
    due_key: bytes,
    kind: OutcomeKind = OutcomeKind.DELIVERED,
    *,
    batch_no: int = 0,
    next_due_ms: int | None = None,
    at_ms: int = NOW_MS + 5,
    code: int = 250,
    free: bool = False,
    possible_duplicate: bool = False,
    is_relayed: bool = False,
) -> Settlement:
    """An outcome for a due key; a deferral is due again after an hour unless `next_due_ms` says otherwise."""
    if kind is OutcomeKind.DEFERRED:
        next_due_ms = next_due_ms or at_ms + HOUR_MS
        code = 451 if code == 250 else code
    outcome = Outcome(
        id=id_of(due_key),
        kind=kind,
        scope=Scope.RECIPIENT,
        reply=Reply(code, "", "so it said"),
        source=3,
        host="mx.example.net",
        at_ms=at_ms,
        possible_duplicate=possible_duplicate,
        is_relayed=is_relayed,
    )
    return Settlement(due_key, outcome, batch_no, next_due_ms, free)


def accept(spool: Spool, what: AcceptBatch) -> list[bytes]:
    """Accept and wait; the due keys of what is new."""
    return list(spool.accept(what).result(PATIENCE_S).due_keys)


def due(spool: Spool, until_ms: int = 1 << 47) -> list[bytes]:
    """Every due key of the spool, queue by queue."""
    found: list[bytes] = []
    for number, *_ in list(spool.queues()):
        found += [key for key, _ in spool.scan_due(number, None, until_ms, 1 << 30)]
    return found


def assert_conserved(path: Path, **counts: int) -> None:
    """The conservation law holds on disk, and the counts are these (those not named: 0)."""
    report = audit(path)
    assert report.is_clean, report.problems
    assert report.accepted == sum(report.counts.values())
    if counts:
        assert {kind: number for kind, number in report.counts.items() if number} == counts


class Gate:
    """A `step` hook that holds the writer at a named step, so that a test can gather a whole group."""

    def __init__(self, step: str = "applied") -> None:
        self._step = step
        self._free = threading.Event()
        self.reached = threading.Event()

    def __call__(self, name: str) -> None:
        if name == self._step and not self._free.is_set():
            self.reached.set()
            assert self._free.wait(PATIENCE_S)

    def open(self) -> None:
        self._free.set()


def as_one_group(spool: Spool, gate: Gate, *submissions: Callable[[], Any]) -> list[Any]:
    """Submit all of these so that they share one commit; their futures."""
    blocker = spool.put_state("gate", b"")
    assert gate.reached.wait(PATIENCE_S)
    futures = [submit() for submit in submissions]
    gate.open()
    blocker.result(PATIENCE_S)
    return futures
