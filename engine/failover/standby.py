"""The standby's part: keep peers' copies, give them back, adopt them when Fleet calls their owner dead.

Each question becomes one operation of the store, which judges the epoch inside its transaction; the answer goes out
when it is on disk. Questions may be repeated, and repeating one changes nothing.
"""

from engine.failover.effects import Effect, Release, Send, Write
from engine.failover.lease import Lease
from engine.failover.messages import (
    Copy,
    CopyReply,
    HandOver,
    HandOverReply,
    Inventory,
    Message,
    Open,
    Opened,
    RegionView,
    Settle,
    SettleReply,
    Standing,
    Sync,
    Verdict,
)
from engine.failover.spans import Spans
from engine.failover.store import (
    Adopt,
    DropCopies,
    InventoryResult,
    OpenSession,
    StoreCopy,
    StoreCopyResult,
    TakeInventory,
    TakeOver,
    TakeOverResult,
)
from engine.failover.timing import Timing

CLAIMS_KEPT = 4096
CLAIM_LEASES = 4  # a claim is forgotten after so many leases


class StandbyRole:
    """See the module docstring. `fences` and `epoch` are shared with the region (engine/failover/region.py)."""

    def __init__(self, name: str, lease: Lease, fences: dict[str, int], timing: Timing) -> None:
        self._name = name
        self._expiry = timing.expiry
        self._lease = lease
        self._fences = fences
        self._intended = dict(fences)  # with what is on its way to the disk
        self._copied: dict[str, tuple[int, set[tuple[int, int]]]] = {}  # owner: session, runs seen in it
        self._claims: dict[bytes, tuple[str, int]] = {}  # key: by whom, until when
        self.adopted = 0

    def fences(self) -> tuple[tuple[str, int], ...]:
        """What Fleet must know: also fences that are only about to be written."""
        return tuple(sorted(self._intended.items()))

    def reset(self) -> None:
        """This region has a new epoch: no session is valid any more."""
        self._copied.clear()

    def claim(self, key: bytes, by: str, now: int) -> bool:
        """A region is about to own this key. False: another is, and until it is done no one else may."""
        if self.claimed(key, by, now):
            return False
        self._claims[key] = (by, now + CLAIM_LEASES * self._expiry)
        while len(self._claims) > CLAIMS_KEPT:
            del self._claims[next(iter(self._claims))]
        return True

    def unclaim(self, key: bytes, by: str) -> None:
        if self._claims.get(key, ("", 0))[0] == by:
            del self._claims[key]

    def claimed(self, key: bytes, by: str, now: int) -> bool:
        """Whether another region than `by` is about to own this key."""
        holder, until = self._claims.get(key, (by, now))
        return holder != by and now < until

    # -- questions

    def ask(self, owner: str, message: Message, now: int, *, yields: bool = False) -> list[Effect]:
        match message:
            case Sync():
                self._intend(owner, message.epoch)
                return [Write(TakeInventory(owner, message.epoch, message.session))]
            case Open():
                return [Write(OpenSession(owner, message.epoch, message.session, message.drop))]
            case Copy():
                return self._copy(owner, message, now, yields=yields)
            case Settle():
                if not self._in_session(owner, message.session):
                    return [Send(owner, CopyReply(message.session, (0, 0), Verdict.NO_SESSION))]
                return [Write(DropCopies(owner, message.epoch, message.session, message.number, message.ids))]
            case HandOver():
                if not self._in_session(owner, message.session):
                    return [Send(owner, CopyReply(message.session, (0, 0), Verdict.NO_SESSION))]
                return [Write(TakeOver(owner, message.epoch, message.session, message.number, message.ids))]
        return []

    def _in_session(self, owner: str, session: int) -> bool:
        return self._copied.get(owner, (-1,))[0] == session

    def _copy(self, owner: str, message: Copy, now: int, *, yields: bool) -> list[Effect]:
        if not self._in_session(owner, message.session):
            return [Send(owner, CopyReply(message.session, message.span, Verdict.NO_SESSION))]
        if message.span in self._copied[owner][1]:
            return [Send(owner, CopyReply(message.session, message.span, Verdict.STORED))]
        if self.claimed(message.key, owner, now):
            return []  # its new owner will be on disk here or elsewhere soon; then the answer is TAKEN
        return [
            Write(
                StoreCopy(
                    owner, message.epoch, message.session, message.span, message.key, message.payload, yields
                )
            )
        ]

    def _intend(self, owner: str, epoch: int) -> None:
        self._intended[owner] = max(self._intended.get(owner, 0), epoch)

    # -- orders

    def obey(self, view: tuple[RegionView, ...], now: int) -> list[Effect]:
        """Adopt what the view calls dead, when the lease allows it."""
        effects: list[Effect] = []
        for region in view:
            if region.name == self._name or region.standing is not Standing.DEAD:
                continue
            if self._intended.get(region.name, 0) < region.epoch and self._lease.may_adopt(region.name, now):
                self._intend(region.name, region.epoch)
                effects.append(Write(Adopt(region.name, region.epoch)))
        return effects

    # -- the store has done it

    def stored(self, operation: StoreCopy, result: StoreCopyResult) -> list[Effect]:
        if result.verdict is Verdict.STORED and self._in_session(operation.owner, operation.session):
            self._copied[operation.owner][1].add(operation.span)
        return [
            Send(
                operation.owner,
                CopyReply(operation.session, operation.span, result.verdict, result.owner, result.spans),
            )
        ]

    def dropped(self, operation: DropCopies) -> list[Effect]:
        return [Send(operation.owner, SettleReply(operation.session, operation.number))]

    def inventoried(
        self, operation: TakeInventory, result: InventoryResult | None, epoch: int
    ) -> list[Effect]:
        if result is None:
            return [Send(operation.owner, Inventory(operation.session, epoch, False, (), (), fenced=True))]
        self._fences[operation.owner] = max(self._fences.get(operation.owner, 0), operation.epoch)
        return [
            Send(
                operation.owner,
                Inventory(operation.session, epoch, result.valid, result.copies, result.adopted),
            )
        ]

    def opened(self, operation: OpenSession, *, done: bool) -> list[Effect]:
        if not done:
            return []
        if not self._in_session(operation.owner, operation.session):
            self._copied[operation.owner] = (operation.session, set())
        return [Send(operation.owner, Opened(operation.session))]

    def adopted_copies(self, operation: Adopt, ids: Spans) -> list[Effect]:
        self._fences[operation.owner] = max(self._fences.get(operation.owner, 0), operation.fence)
        self._copied.pop(operation.owner, None)
        return [Release(ids, adopted=True)] if ids else []

    def taken_over(self, operation: TakeOver, result: TakeOverResult | None) -> list[Effect]:
        if result is None:
            return []
        answer = Send(operation.owner, HandOverReply(operation.session, operation.number, result.ids))
        return [answer, Release(result.fresh, adopted=True)] if result.fresh else [answer]
