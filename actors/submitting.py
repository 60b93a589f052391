"""How a client submits a batch: to which region, and to which others when that one is silent or refuses.

A batch whose answer was lost is sent again to the same region under the same key until it answers, so it is accepted
once. Messages with a key of their own go to the region that their key stands for, because it knows the key.

With copies in other regions another one is asked as well, and they find out among themselves who has the batch. They
are asked to find out at once if the key is the caller's: another process may have used it when other regions lived.
A message with a key of its own is a batch of its own there, under that key.
"""

import asyncio
import itertools
import math
import os
import random
import time
from collections.abc import Sequence
from dataclasses import replace

from actors.calls import Calls
from actors.region_calls import ANSWER_TIMEOUT_S, GIVE_UP_S, MAX_DELAY_S, RegionCalls
from actors.shares import Shares
from engine.config.schema import FleetConfig
from engine.region.ports import RegionDraining
from engine.spool.errors import SpoolError
from engine.values.message import Message, Receipt
from engine.values.submission import (
    KEY_BYTES,
    batch_key_of,
    check_key,
    check_messages,
    decode_receipt,
    encode_checked,
)

SILENCE_S = 0.3  # then another region is asked, too
SILENT_TIMES = 4  # or so many times as long as an answer usually takes
QUIET_S = 0.05  # a region that answers nobody for so long is not given anything else first
QUIET_TIMES = 2  # or so many times as long as an answer usually takes
USUAL_OF = 16  # answers, about
KEYED_AT_ONCE = 64  # messages with keys of their own, of one call
AGAIN_S = 0.15  # when all were asked: until one is asked again
SLOWER = 1.5  # and each time so much longer

# It is about the region, not about the batch: another one may take it. ConnectionError and TimeoutError are OSErrors; a
# region that does not start gives its callers the reason, which may be any of these.
NO_RECEIPT = (OSError, RuntimeError, SpoolError)


class Submitting:
    """See the module docstring."""

    def __init__(self, config: FleetConfig, regions: RegionCalls) -> None:
        self._config = config
        self._regions = regions
        self._shares = Shares(regions.fleet)
        self._usual_s = 0.0  # how long a region takes for a receipt

    async def submit(
        self, batch: Sequence[Message], *, key: bytes | None = None, region: str = ""
    ) -> Receipt:
        """As `AsyncClient.submit` (actors/client.py) says."""
        batch = tuple(batch)
        check_key(key)
        check_messages(batch)  # of all parts, before one is on its way
        first = self._config.members(region) if region else ()
        if self._config.fleet.replicas:
            return await self._submit_to_all(batch, key, first)
        homes: dict[str, list[int]] = {}
        if len(self._regions.actors) > 1 and any(message.key for message in batch):
            for position, message in enumerate(batch):
                homes.setdefault(self._home_of(message, first), []).append(position)
        if not homes:
            return await self._submit_whole(batch, key, first)
        whole = os.urandom(KEY_BYTES) if key is None else key
        calls = [
            self._submit_whole(
                [batch[position] for position in positions], self._key_towards(whole, home, first), first
            )
            for home, positions in homes.items()
        ]
        answers = await asyncio.gather(*calls, return_exceptions=True)
        receipts = [answer for answer in answers if isinstance(answer, Receipt)]
        raise_failure(answers, receipts)
        return joined(receipts, list(homes.values()))

    async def _submit_whole(
        self, batch: Sequence[Message], key: bytes | None, first: Sequence[str]
    ) -> Receipt:
        header, blob = encode_checked(batch, os.urandom(KEY_BYTES) if key is None else key)
        return decode_receipt(await self._accepted_by_one(self._regions.order(key, first), header, blob))

    async def _accepted_by_one(self, names: Sequence[str], header: bytes, blob: bytes) -> bytes:
        """The first of these regions decides; the next one only if it is being drained and has not accepted it."""
        deadline = time.monotonic() + GIVE_UP_S
        for turn in itertools.count():
            try:
                return bytes(await self._regions.persist(names[turn % len(names)], "accept", header, blob))
            except RegionDraining as error:
                self._regions.avoid(names[turn % len(names)])
                if time.monotonic() > deadline:
                    raise ConnectionError(f"no region has taken it for {GIVE_UP_S:.0f} s: {error}") from error
            if turn % len(names) == len(names) - 1:
                await asyncio.sleep(MAX_DELAY_S)
        raise AssertionError("unreachable")

    def _home_of(self, message: Message, first: Sequence[str]) -> str:
        """The region that knows the message's key; "" for a message without one."""
        if not message.key:
            return ""
        return self._regions.ranked(batch_key_of("key", message.tenant, message.key), first)[0]

    def _key_towards(self, whole: bytes, home: str, first: Sequence[str]) -> bytes:
        """A key for the part of a batch that is for one region, which chooses that region."""
        for number in itertools.count():
            key = batch_key_of("part", whole, home, str(number))
            if home in ("", self._regions.order(key, first)[0]):
                return key
        raise AssertionError("unreachable")

    async def _submit_to_all(
        self, batch: Sequence[Message], key: bytes | None, first: Sequence[str]
    ) -> Receipt:
        """In a fleet with copies."""
        deadline_s = time.monotonic() + GIVE_UP_S  # for all parts
        without, keyed = by_key(batch)
        room = asyncio.Semaphore(KEYED_AT_ONCE)
        found: list[tuple[list[int], Receipt]] = []

        async def submit_keyed(positions: list[int]) -> None:
            """One after the other: the first that is accepted is what the key stands for."""
            for position in positions:
                message = batch[position]
                async with room:
                    own = batch_key_of("key", message.tenant, message.key)
                    receipt = await self._submit_batch([message], own, first, deadline_s, is_lasting=True)
                found.append(([position], receipt))

        async def submit_others() -> None:
            whole = os.urandom(KEY_BYTES) if key is None else key
            part = batch_key_of("part", whole, "", "0") if keyed else whole
            messages = [batch[position] for position in without]
            receipt = await self._submit_batch(messages, part, first, deadline_s, is_lasting=key is not None)
            found.append((without, receipt))

        calls = [submit_keyed(positions) for positions in keyed]
        if without or not batch:
            calls.append(submit_others())
        answers = await asyncio.gather(*calls, return_exceptions=True)
        found.sort(key=lambda part: part[0])
        receipts = [receipt for _, receipt in found]
        raise_failure(answers, receipts)
        return joined(receipts, [positions for positions, _ in found])

    async def submit_new(self, batch: Sequence[Message], key: bytes) -> Receipt:
        """As `submit` without a key, in a fleet with copies; `key` has been made for this call (benches)."""
        check_messages(batch)
        return await self._submit_batch(batch, key, (), time.monotonic() + GIVE_UP_S, is_lasting=False)

    async def _submit_batch(
        self,
        batch: Sequence[Message],
        key: bytes,
        first: Sequence[str],
        deadline_s: float,
        *,
        is_lasting: bool,
    ) -> Receipt:
        header, blob = encode_checked(batch, key)
        receipt = await self._submit_covered(
            key, header, blob, first, deadline_s=deadline_s, is_lasting=is_lasting
        )
        return decode_receipt(receipt)

    async def _submit_covered(
        self,
        key: bytes,
        header: bytes,
        blob: bytes,
        first: Sequence[str],
        *,
        deadline_s: float = math.inf,
        is_lasting: bool = False,
    ) -> bytes:
        """Ask one region after the other until one gives the receipt; the earlier ones may still do it meanwhile.

        Regions find out among themselves who has the batch: it is accepted once, whoever answers. `is_lasting`: the
        key was not made for this call. `deadline_s`: until when, on the monotonic clock.
        """
        # who asks for a region gets it unless it is silent, and not only slow
        quiet_s = self._silence_s() if first else max(QUIET_S, self._usual_s * QUIET_TIMES)
        names = self._regions.ranked(key, first, self._shares.now())
        if not first and not is_lasting:  # any region will do
            names = self._regions.idle_first(names)
        names = self._regions.silent_last(names, quiet_s=quiet_s)
        calls = Calls()
        asked: set[str] = set()
        pause_s = AGAIN_S
        try:
            for turn in itertools.count():
                name = names[turn % len(names)]
                if not calls.has(name):  # one that has it already needs it no second time
                    call = self._regions.actors[name].call(
                        "accept",
                        header,
                        blob,
                        is_lasting or not asked <= calls.refused,
                        timeout_s=ANSWER_TIMEOUT_S,
                    )
                    calls.begin(name, self._regions.watched(name, call))
                    asked.add(name)
                if turn < len(names) - 1:
                    answer, is_silent = await self._hear(calls, self._silence_s())
                else:  # every region was asked: the less haste the longer it takes
                    rest_until = time.monotonic() + pause_s * random.uniform(0.7, 1.0)
                    answer, is_silent = await self._hear(calls, pause_s)
                    while answer is None and (left_s := rest_until - time.monotonic()) > 0:
                        answer, _ = await self._hear(calls, left_s)
                    pause_s = min(pause_s * SLOWER, MAX_DELAY_S)
                if answer is not None:
                    return answer
                if is_silent:
                    self._regions.avoid(name)
                if (full := calls.full(names)) is not None:
                    raise full
                if time.monotonic() > deadline_s:
                    raise ConnectionError(
                        f"no region gave a receipt for {GIVE_UP_S:.0f} s; the outcome is unknown: {calls.error}"
                    ) from calls.error
        finally:
            await calls.end()
        raise AssertionError("unreachable")

    async def end(self) -> None:
        """Nothing is asked any more."""
        await self._shares.end()

    def _silence_s(self) -> float:
        """So long without an answer is a silence: regions that are all slow are not helped by asking twice as many."""
        return min(max(SILENCE_S, self._usual_s * SILENT_TIMES), MAX_DELAY_S)

    async def _hear(self, calls: Calls, wait_s: float) -> tuple[bytes | None, bool]:
        """The receipt, if one comes in that time; and whether nothing came at all. A refusal ends the wait.

        Raises what is wrong with the batch itself.
        """
        done = await calls.wait(wait_s)
        receipt: bytes | None = None
        wrong: BaseException | None = None
        for region, since, task in done:
            failure = task.exception()
            if failure is None:
                self._usual_s += (time.monotonic() - since - self._usual_s) / USUAL_OF
                receipt = task.result()
            elif isinstance(failure, NO_RECEIPT):
                self._regions.avoid(region)
                calls.failed(region, failure)
            else:
                wrong = failure
        if receipt is None and wrong is not None:
            raise wrong
        return receipt, not done


def raise_failure(answers: Sequence[object], receipts: Sequence[Receipt]) -> None:
    """Raise the first exception among the answers to the parts of a batch. SpoolError says that nothing was changed: if
    a part has been accepted, or may have been, it is a ConnectionError."""
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    if not failures:
        return
    failure = next((error for error in failures if not isinstance(error, SpoolError)), failures[0])
    accepted = sum(bool(ids) for receipt in receipts for ids in receipt.ids)
    if isinstance(failure, SpoolError) and accepted:
        raise ConnectionError(
            f"{accepted} messages of the batch are accepted, others are not: {failure}"
        ) from failure
    raise failure


def by_key(batch: Sequence[Message]) -> tuple[list[int], list[list[int]]]:
    """Positions of the messages without a key, and those of the others, by key."""
    without: list[int] = []
    keyed: dict[tuple[str, str], list[int]] = {}
    for position, message in enumerate(batch):
        if message.key:
            keyed.setdefault((message.tenant, message.key), []).append(position)
        else:
            without.append(position)
    return without, list(keyed.values())


def joined(receipts: Sequence[Receipt], positions: Sequence[Sequence[int]]) -> Receipt:
    """One receipt for a batch that went to several regions; `positions[i]` are those of receipt i's items."""
    ids: list[tuple[int, ...]] = [()] * sum(map(len, positions))
    errors = []
    for receipt, places in zip(receipts, positions, strict=True):
        for place, item in zip(places, receipt.ids, strict=True):
            ids[place] = item
        errors += [replace(error, index=places[error.index]) for error in receipt.errors]
    return Receipt(
        region=",".join(sorted({receipt.region for receipt in receipts})),
        ids=tuple(ids),
        errors=tuple(sorted(errors, key=lambda error: error.index)),
        repeated=all(receipt.repeated for receipt in receipts),
        suppressed=tuple(id_ for receipt in receipts for id_ in receipt.suppressed),
        degraded=any(receipt.degraded for receipt in receipts),
    )
