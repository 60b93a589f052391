"""When a deferred message is due again: at once where another source may carry it, free where it is not to blame."""

import random
from types import SimpleNamespace
from typing import Any

import pytest

from engine.region.retry import schedule_of
from engine.region.settling import POOL_DIED, Settling
from engine.values.outcome import Outcome, OutcomeKind, Scope
from engine.values.reply import Reply
from engine.values.stream import Stream
from tests.support.fleets import fleet

NOW_MS = 1_800_000_000_000
HOUR_MS = 3_600_000
KEY = bytes(18)
BLOCKED = Reply(550, "5.7.1", "part of their network is on our block list (S3140).")


def settling(expires_ms: int) -> Settling:
    """Of one message that has been tried three times."""
    config = fleet()
    record = SimpleNamespace(expires_ms=expires_ms, attempts=3)
    spool: Any = SimpleNamespace(message=lambda _: record)
    windows: Any = SimpleNamespace(get=lambda _: None)
    judge: Any = None
    return Settling(
        config=config,
        spool=spool,
        windows=windows,
        site_name=str,
        judge=judge,
        retry={int(stream): schedule_of(config, stream) for stream in Stream},
        rng=random.Random(1),
    )


@pytest.mark.parametrize(
    ("scope", "reply", "rerouted", "at_once", "free"),
    [
        (Scope.SOURCE, BLOCKED, True, True, True),
        (Scope.NETBLOCK, BLOCKED, True, True, True),
        (Scope.DOMAIN, Reply(421, "4.7.28", "from your DKIM domain"), False, False, False),
        (Scope.MESSAGE, Reply(451, "4.3.0", "later"), False, False, False),
        (Scope.RECIPIENT, Reply(450, "4.2.0", "greylisted"), False, False, False),
        (Scope.PROVIDER, Reply(451, "4.7.500", "Server busy (AS761)"), False, False, True),
        (Scope.SESSION, Reply(0, "4.3.0", POOL_DIED), False, True, False),
    ],
)
def test_when_it_is_due_again_and_what_that_costs(
    scope: Scope, reply: Reply, rerouted: bool, at_once: bool, free: bool
) -> None:
    outcome = Outcome(7, OutcomeKind.DEFERRED, scope, reply, 0, "mx", NOW_MS)
    found = settling(NOW_MS + 100 * HOUR_MS).settlement(KEY, outcome, 1, NOW_MS, rerouted=rerouted)
    assert found.next_due_ms is not None
    assert (found.next_due_ms == NOW_MS, found.free) == (at_once, free)
    assert found.next_due_ms >= NOW_MS


@pytest.mark.parametrize(("code", "free"), [(0, True), (421, False)])
def test_a_lost_last_reply_is_no_attempt_of_the_message(code: int, free: bool) -> None:
    reply = Reply(code, "4.4.2", "lost")
    outcome = Outcome(7, OutcomeKind.DEFERRED, Scope.SESSION, reply, 0, "mx", NOW_MS, possible_duplicate=True)
    assert settling(NOW_MS + 100 * HOUR_MS).settlement(KEY, outcome, 1, NOW_MS).free is free


def test_the_wait_is_that_behind_the_attempt_that_was_just_made() -> None:
    outcome = Outcome(7, OutcomeKind.DEFERRED, Scope.RECIPIENT, Reply(450, "4.2.0", "x"), 0, "mx", NOW_MS)
    found = settling(NOW_MS + 100 * HOUR_MS).settlement(KEY, outcome, 1, NOW_MS)
    assert found.next_due_ms is not None
    wait_min = (found.next_due_ms - NOW_MS) / 60_000
    assert 32 <= wait_min <= 48, "5, 10, 20, 40 minutes, give or take a fifth"


def test_a_reroute_is_no_longer_life() -> None:
    outcome = Outcome(7, OutcomeKind.DEFERRED, Scope.SOURCE, BLOCKED, 0, "mx", NOW_MS)
    found = settling(NOW_MS).settlement(KEY, outcome, 1, NOW_MS, rerouted=True)
    assert found.outcome.kind is OutcomeKind.EXPIRED
