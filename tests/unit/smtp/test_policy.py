"""The reply policy, exhaustively: every phase with every class of answer."""

import itertools

import pytest

from engine.smtp.policy import IDENTITY_RULES, FailureReason, Phase, classify, identity_rule
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply

HOST_PHASES = (Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH)
KINDS = (OutcomeKind.DELIVERED, OutcomeKind.DEFERRED, OutcomeKind.BOUNCED)


@pytest.mark.parametrize("phase", list(Phase))
def test_every_code_in_every_phase(phase: Phase) -> None:
    for code in range(200, 600):
        verdict = classify(phase, Reply(code, "", "text"))
        assert verdict.kind in KINDS
        assert (verdict.kind is OutcomeKind.DELIVERED) == (phase is Phase.DOT and 200 <= code < 300)
        bounceable = phase in (Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT) and code >= 500
        if phase is Phase.RCPT and code == 552:
            bounceable = False
        assert (verdict.kind is OutcomeKind.BOUNCED) == bounceable, code
        assert not verdict.next_host, "the last host has no next"


# what the message itself demands can only be refused, once every host has been asked
FAILURES = [reason for reason in FailureReason if reason is not FailureReason.NO_REQUIRETLS]


def test_a_message_that_requires_tls_is_bounced_by_the_last_host_without_it() -> None:
    first = classify(Phase.EHLO, FailureReason.NO_REQUIRETLS, last_host=False)
    assert (first.kind, first.next_host) == (OutcomeKind.DEFERRED, True)
    last = classify(Phase.EHLO, FailureReason.NO_REQUIRETLS)
    assert (last.kind, last.scope, last.next_host) == (OutcomeKind.BOUNCED, Scope.MESSAGE, False)


@pytest.mark.parametrize(("phase", "reason", "last"), list(itertools.product(Phase, FAILURES, (True, False))))
def test_no_failure_ever_bounces_or_delivers(phase: Phase, reason: FailureReason, last: bool) -> None:
    verdict = classify(phase, reason, last_host=last)
    assert verdict.kind is OutcomeKind.DEFERRED
    if reason is FailureReason.BIND:
        assert verdict.scope is Scope.SOURCE
        assert not verdict.next_host
    elif phase in HOST_PHASES:
        assert verdict.scope is Scope.HOST
        assert verdict.next_host == (not last)
    else:
        assert verdict.scope is Scope.SESSION
        assert not verdict.next_host


@pytest.mark.parametrize("phase", HOST_PHASES)
@pytest.mark.parametrize("code", [421, 450, 550, 554])
def test_a_host_that_declines_sends_us_to_the_next(phase: Phase, code: int) -> None:
    reply = Reply(code, "", "no")
    assert classify(phase, reply, last_host=False).next_host
    assert classify(phase, reply, last_host=True).kind is OutcomeKind.DEFERRED
    assert classify(phase, reply).scope is Scope.HOST


@pytest.mark.parametrize("phase", [Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT])
def test_421_is_about_the_host(phase: Phase) -> None:
    verdict = classify(phase, Reply(421, "4.3.2", "closing"))
    assert (verdict.kind, verdict.scope) == (OutcomeKind.DEFERRED, Scope.HOST)


@pytest.mark.parametrize(
    ("phase", "reply", "kind", "scope", "split"),
    [
        (Phase.RCPT, Reply(550, "5.1.1", "no such user"), OutcomeKind.BOUNCED, Scope.RECIPIENT, False),
        (Phase.RCPT, Reply(450, "4.2.1", "too quickly"), OutcomeKind.DEFERRED, Scope.RECIPIENT, False),
        (Phase.RCPT, Reply(452, "4.5.3", "too many"), OutcomeKind.DEFERRED, Scope.RECIPIENT, True),
        (Phase.RCPT, Reply(552, "", "too many"), OutcomeKind.DEFERRED, Scope.RECIPIENT, True),
        (Phase.RCPT, Reply(452, "4.2.2", "mailbox full"), OutcomeKind.DEFERRED, Scope.RECIPIENT, False),
        (Phase.RCPT, Reply(552, "5.2.2", "mailbox full"), OutcomeKind.BOUNCED, Scope.RECIPIENT, False),
        (Phase.MAIL, Reply(552, "5.3.4", "too big"), OutcomeKind.BOUNCED, Scope.SESSION, False),
        (Phase.MAIL, Reply(550, "5.1.1", "no such user"), OutcomeKind.BOUNCED, Scope.SESSION, False),
        (Phase.MAIL, Reply(451, "4.3.0", "later"), OutcomeKind.DEFERRED, Scope.MESSAGE, False),
        (Phase.DOT, Reply(554, "5.6.0", "spam"), OutcomeKind.BOUNCED, Scope.MESSAGE, False),
        (Phase.DOT, Reply(451, "4.3.0", "later"), OutcomeKind.DEFERRED, Scope.MESSAGE, False),
        (Phase.DATA, Reply(250, "", "ok"), OutcomeKind.DEFERRED, Scope.SESSION, False),
        (Phase.DATA, Reply(0, "", ""), OutcomeKind.DEFERRED, Scope.SESSION, False),
    ],
)
def test_examples(phase: Phase, reply: Reply, kind: OutcomeKind, scope: Scope, split: bool) -> None:
    verdict = classify(phase, reply)
    assert (verdict.kind, verdict.scope, verdict.split) == (kind, scope, split)


@pytest.mark.parametrize("phase", [Phase.DATA, Phase.DOT])
def test_a_refusal_of_several_at_once_is_about_none_of_them(phase: Phase) -> None:
    reply = Reply(550, "5.1.1", "no such user")
    assert classify(phase, reply, shared=True).scope is Scope.SESSION
    assert classify(phase, reply, shared=True).kind is OutcomeKind.BOUNCED
    assert classify(phase, Reply(451, "", "later"), shared=True).scope is Scope.MESSAGE


@pytest.mark.parametrize("rule", IDENTITY_RULES, ids=lambda rule: rule.name)
def test_each_rule_finds_its_own_sample_first(rule: object) -> None:
    assert identity_rule(rule.sample) is rule  # type: ignore[attr-defined]


@pytest.mark.parametrize("rule", IDENTITY_RULES, ids=lambda rule: rule.name)
@pytest.mark.parametrize("phase", [Phase.GREETING, Phase.MAIL, Phase.RCPT, Phase.DATA, Phase.DOT])
@pytest.mark.parametrize("code", [421, 451, 550, 554])
def test_a_reply_about_our_ip_never_bounces_the_recipient(rule: object, phase: Phase, code: int) -> None:
    verdict = classify(phase, Reply(code, "", rule.sample), last_host=False)  # type: ignore[attr-defined]
    assert verdict.scope is rule.scope  # type: ignore[attr-defined]
    assert not verdict.next_host
    if verdict.scope in (Scope.SOURCE, Scope.NETBLOCK, Scope.PROVIDER):
        assert verdict.kind is OutcomeKind.DEFERRED


@pytest.mark.parametrize(
    "text",
    [
        "550 5.1.1 The email account that you tried to reach does not exist",
        "550 5.7.1 Message rejected due to content restrictions",
        "452 4.2.2 The recipient's inbox is out of storage space",
        "450 4.2.1 The user you are trying to contact is receiving mail too quickly",
    ],
)
def test_replies_about_others_are_not_about_us(text: str) -> None:
    assert identity_rule(text) is None
