"""How a rule refines what the policy has decided."""

import pytest

from engine.bounces.category import Category
from engine.bounces.classifier import CACHED, Classifier, shipped_classifier
from engine.bounces.rules import parse_sample, shipped_rules
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply

UNKNOWN_USER = Reply(550, "5.1.1", "User unknown")
BLOCKED = Reply(550, "5.7.1", "Client host [192.0.2.1] blocked using zen.spamhaus.org")
classify = shipped_classifier().classify


def test_a_delivery_is_a_success() -> None:
    found = classify(OutcomeKind.DELIVERED, Scope.RECIPIENT, Reply(250, "2.0.0", "user unknown, but welcome"))
    assert (found.category, found.hard) == (Category.SUCCESS, False)


@pytest.mark.parametrize("scope", [Scope.RECIPIENT, Scope.MESSAGE])
def test_an_unknown_user_is_hard(scope: Scope) -> None:
    found = classify(OutcomeKind.BOUNCED, scope, UNKNOWN_USER)
    assert (found.category, found.hard, found.scope) == (Category.BAD_MAILBOX, True, Scope.RECIPIENT)


@pytest.mark.parametrize("scope", sorted(set(Scope) - {Scope.RECIPIENT, Scope.MESSAGE}))
@pytest.mark.parametrize("kind", list(OutcomeKind))
def test_what_the_policy_holds_for_not_the_recipients_never_becomes_so(
    scope: Scope, kind: OutcomeKind
) -> None:
    found = classify(kind, scope, UNKNOWN_USER)
    assert not found.hard
    if kind is not OutcomeKind.DELIVERED:
        assert found.scope is scope


@pytest.mark.parametrize("scope", list(Scope))
def test_a_refusal_of_our_address_is_about_the_source_wherever_it_comes(scope: Scope) -> None:
    found = classify(OutcomeKind.BOUNCED, scope, BLOCKED)
    assert (found.scope, found.hard, found.category) == (Scope.SOURCE, False, Category.POLICY_RELATED)


@pytest.mark.parametrize(
    "text",
    [
        "550 5.1.0 <b@x.example>: Sender address rejected: User unknown in virtual mailbox table",
        "550 5.1.0 <b@x.example>: Sender address rejected: undeliverable address: host mx said: 550 5.1.1 User unknown",
        "550 Verification failed for <b@x.example> Called: 192.0.2.1 Sent: RCPT TO:<b@x.example> Response: 550 5.1.1 "
        "<b@x.example>: User unknown Sender verify failed",
        "550 5.1.7 Sender address does not exist",
        "550 5.1.8 user unknown",
        "550 5.7.1 Sender account disabled",
        "554 5.7.1 <u@d.example>: Recipient address rejected: Access denied",
        "550 5.7.1 <u@d.example>: Recipient address rejected: Policy Rejection",
        "550 5.7.1 <u@d.example>: Recipient address rejected: Please see http://www.openspf.net/Why",
        "554 5.7.1 <u@d.example>: Recipient address rejected: Improper use of SMTP command pipelining",
        "550 Requested action not taken: mailbox unavailable invalid DNS MX or A/AAAA resource record",
        "550 Requested action not taken: mailbox unavailable Sender address is not allowed.",
        "550 Requested mail action not taken: mailbox unavailable Reject due to policy restrictions.",
        "550 5.1.1 <u@d.example> Recipient not accepted. Reputation of 192.0.2.1 too low",
        "554 5.7.1 You may not send to users who do not exist: harvest attack detected, user unknown",
    ],
)
@pytest.mark.parametrize("scope", [Scope.RECIPIENT, Scope.MESSAGE])
def test_what_is_about_us_in_words_about_a_recipient_is_not_hard(scope: Scope, text: str) -> None:
    assert not classify(OutcomeKind.BOUNCED, scope, parse_sample(text)).hard


@pytest.mark.parametrize(
    "reply",
    [
        Reply(0, "5.6.0", "'user unknown' is no header field"),
        Reply(0, "5.6.7", "To: 'mailbox unavailable': an address has no ASCII form"),
        Reply(0, "5.7.1", "DKIM: tenant 'no such user' may not send as example.com: it is not its domain"),
        Reply(0, "5.1.3", "an address cannot be written in a command"),
    ],
)
def test_what_we_refuse_ourselves_suppresses_nobody_whatever_the_message_says(reply: Reply) -> None:
    """Such a text quotes the message, which may say anything."""
    found = classify(OutcomeKind.BOUNCED, Scope.MESSAGE, reply)
    assert not found.hard
    assert found.scope is not Scope.RECIPIENT
    if reply.enhanced != "5.1.3":
        assert found.category is not Category.BAD_MAILBOX


def test_a_report_without_a_code_is_read_by_its_words() -> None:
    assert classify(OutcomeKind.BOUNCED, Scope.RECIPIENT, Reply(0, "5.6.0", "user unknown")).hard


@pytest.mark.parametrize("kind", [OutcomeKind.DEFERRED, OutcomeKind.EXPIRED, OutcomeKind.CANCELLED])
def test_only_a_bounce_is_hard(kind: OutcomeKind) -> None:
    assert not classify(kind, Scope.RECIPIENT, UNKNOWN_USER).hard


def test_a_deferral_of_class_four_is_never_hard_even_as_a_bounce() -> None:
    assert not classify(OutcomeKind.BOUNCED, Scope.RECIPIENT, Reply(450, "4.1.1", "User unknown")).hard


def test_expiry_is_a_category_of_its_own() -> None:
    found = classify(OutcomeKind.EXPIRED, Scope.HOST, Reply(421, "4.3.2", "server busy"))
    assert (found.category, found.scope) == (Category.MESSAGE_EXPIRED, Scope.HOST)


def test_a_reply_that_no_rule_knows_keeps_the_policys_scope() -> None:
    found = classify(OutcomeKind.BOUNCED, Scope.MESSAGE, Reply(554, "", "xyzzy"))
    assert (found.category, found.hard, found.scope) == (Category.OTHER, False, Scope.MESSAGE)
    assert not found.known


def test_a_status_that_says_little_stays_unknown() -> None:
    found = classify(OutcomeKind.BOUNCED, Scope.RECIPIENT, Reply(550, "5.7.1", "xyzzy"))
    assert found.category is Category.POLICY_RELATED
    assert found.scope is Scope.MESSAGE
    assert not found.known


def test_what_is_remembered_is_bounded() -> None:
    classifier = Classifier(shipped_rules())
    for number in range(CACHED + 100):
        classifier.match(Reply(550, "5.1.1", f"user unknown {number}"))
    assert classifier.match.cache_info().currsize == CACHED
