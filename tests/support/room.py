"""Spools that are filled with as much index as they accept, and changed in any order then."""

import random
from collections.abc import Sequence

from engine.spool.batches import Settlement
from engine.spool.errors import SpoolFull
from engine.spool.store import Spool
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply
from tests.support.spools import NOW_MS, PATIENCE_S, accept, batch, id_of

DOMAINS = 50
AT_ONCE = 500
SAID = (
    "too much mail from your address lately: look at https://mx.example.net/help/senders, and try again later"
)


def fill_index(spool: Spool, *, recipients: int = 100) -> tuple[list[bytes], SpoolFull]:
    """Accept letters to many recipients each, of many domains, until it is refused: their due keys and the refusal."""
    keys: list[bytes] = []
    for number in range(10_000):
        try:
            keys += accept(spool, batch(recipients=recipients, domain=f"d{number % DOMAINS}.example"))
        except SpoolFull as refusal:
            return keys, refusal
    raise AssertionError("more was accepted than there is room for")


def defer_all(spool: Spool, keys: Sequence[bytes], draw: random.Random) -> list[bytes]:
    """Defer all of these in any order, to any time, and ship the events; their new due keys."""
    keys = draw.sample(keys, len(keys))
    due_keys: list[bytes] = []
    for start in range(0, len(keys), AT_ONCE):
        settlements = []
        for key in keys[start : start + AT_ONCE]:
            said = Reply(451, "4.7.28", SAID)
            outcome = Outcome(
                id_of(key), OutcomeKind.DEFERRED, Scope.MESSAGE, said, 3, "mx1.example.net", NOW_MS
            )
            settlements.append(Settlement(key, outcome, 0, NOW_MS + draw.randint(1, 10**7)))
        settled = spool.settle(settlements)
        spool.trim_outbox(1 << 40)
        due_keys += settled.result(PATIENCE_S).due_keys
    assert len(due_keys) == len(keys)
    return due_keys
