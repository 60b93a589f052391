"""Published replies of the large providers, and what each is about. Sources: Google 3726730 (2026-02-15) and 81126
(2026-03-21), Yahoo error codes (2026-02), Microsoft postmaster pages (2026-05), Apple 102322 (2025-02-25)."""

import pytest

from engine.bounces.classifier import shipped_classifier
from engine.bounces.rules import parse_sample
from engine.values.outcome import OutcomeKind, Scope

GMAIL = "421 4.7.28 Gmail has detected an unusual rate of "
REPLIES = {
    Scope.SOURCE: [
        GMAIL
        + "email originating from your IP address. To protect our users from spam, email sent from your IP "
        "address has been temporarily rate limited.",
        "421 4.7.28 Gmail has detected an unusual amount of unsolicited email originating from your IP address. To "
        "protect our users from spam, email sent from your IP address has been temporarily blocked.",
        "421 4.7.0 This message is suspicious due to the very low reputation of the sending IP address.",
        "421 4.7.0 The IP address sending this message does not have a PTR record.",
        "421 4.7.0 IP not in whitelist for RCPT domain, closing connection.",
        "451 4.7.23 The sending IP address doesn't have a PTR record.",
        "550 5.7.1 Our system has detected an unusual rate of unsolicited mail originating from your IP address. To "
        "protect our users from spam, mail sent from your IP address has been blocked.",
        "550 5.7.28 an unusual rate of unsolicited mail originating from your IP address ... blocked",
        "550 5.7.25 The sending IP does not match its PTR record.",
        "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume or user complaints "
        "- 4.16.55.1; see https://postmaster.yahooinc.com/error-codes",
        "421 4.7.0 [TSS05] Messages from 192.0.2.1 temporarily deferred",
        "421 4.7.0 [IPTS05] Messages from 192.0.2.1 temporarily deferred",
        "421 4.7.0 [TS02] Messages from 192.0.2.1 temporarily deferred",
        "421 4.7.1 [TS03] All messages from 192.0.2.1 will be permanently deferred",
        "553 5.7.2 [TSS09] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed",
        "553 5.7.2 [TSS11] All messages from 192.0.2.1 will be permanently deferred; Retrying will NOT succeed",
        "553 5.7.1 [BL21] Connections not accepted from IP addresses on Spamhaus",
        "553 5.7.1 [BL23] Connections not accepted from IP addresses on Spamhaus",
        "421 RP-001 The mail server IP has exceeded the rate limit allowed.",
        "421 RP-002 The mail server IP has exceeded the rate limit allowed on this connection.",
        "421 RP-003 The mail server IP has exceeded the connection limit allowed.",
        "550 SC-001 Mail rejected for policy reasons.",
        "550 SC-002 Mail rejected for policy reasons, namespace mining.",
        "550 SC-003 Mail rejected, open proxy.",
        "550 SC-004 Mail rejected, complaints.",
        "550 DY-001 Mail rejected, dynamic IP.",
        "550 DY-002 Mail rejected, compromised.",
        "550 OU-001 Mail rejected, Spamhaus.",
        "550 OU-002 Mail rejected, content.",
        "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited due to IP reputation. For e-mail "
        "delivery information, see https://aka.ms/postmaster (S775)",
        "451 4.7.651 The mail server [192.0.2.1] has been temporarily rate limited (S3114)",
        "451 4.7.652 The mail server [192.0.2.1] has exceeded the maximum number of connections. (S3115)",
        "451 4.7.500 Access denied, please try again later",
        "451 4.7.899 Access denied, please try again later",
        "550 5.7.606 Access denied, banned sending IP [192.0.2.1]",
        "550 5.7.649 Access denied, banned sending IP [192.0.2.1]",
        "421 IB007 maximum number of concurrent connections",
        "421 4.7.1 Messages to user@icloud.com deferred due to excessive volume",
        "421 [HCM1] Message was deferred",
        "554 5.7.1 [HME1] Message rejected",
    ],
    Scope.NETBLOCK: [
        GMAIL + "unsolicited email originating from your IP Netblock.",
        "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service "
        "provider since part of their network is on our block list (S3140).",
        "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet service "
        "provider since part of their network is on our block list (S3150).",
    ],
    Scope.DOMAIN: [
        GMAIL + "email originating from your DKIM domain.",
        GMAIL + "email originating from your SPF domain.",
        "421 4.7.0 This message is suspicious due to the very low reputation of the sending domain.",
        "451 4.7.24 The SPF record of the sending domain has one or more suspicious entries.",
        "421 4.7.26 This email is unauthenticated, which poses a security risk to the sender and Gmail users.",
        "421 4.7.27 SPF did not pass.",
        "421 4.7.30 DKIM did not pass.",
        "421 4.7.32 No alignment.",
        "421 5.7.32 No alignment.",
        "421 4.7.40 No DMARC record.",
        "421 4.7.31 No DMARC record.",
        "550 5.7.26 Unauthenticated email from example.com is not accepted due to domain's DMARC policy.",
        "550 5.7.27 SPF did not pass.",
        "550 5.7.30 DKIM did not pass.",
        "550; 5.7.515 Access denied, sending domain [SendingDomain] does not meet the required authentication level.",
        "550 5.7.9 Message not accepted for policy reasons: unauthenticated",
    ],
    Scope.MESSAGE: [
        GMAIL + "email containing one of your URL domains.",
        "421 4.7.28 exceeded the quota for sending messages that have the same Message-ID:",
        "421 4.7.0 This message is suspicious due to the nature of the content or the links within.",
        "554 5.7.9 Message not allowed - [PH01] Email not accepted for policy reasons.",
        "550 5.7.1 [CS01] Message rejected due to local policy.",
    ],
    Scope.SESSION: [
        "421 4.7.0 TLS required for RCPT domain, closing connection.",
        "421 4.7.29 The message wasn't sent over a TLS connection.",
        "550 5.7.29 The message was not sent over a TLS connection.",
        "421 Max message per connection reached, closing transmission channel",
    ],
    Scope.RECIPIENT: [
        "450 4.2.1 The user you are trying to contact is receiving email too quickly.",
        "450 4.2.1 The user is receiving mail at a rate that prevents additional messages from being delivered.",
        "550 5.2.1 The user is receiving mail at a rate that prevents additional messages from being delivered.",
        "452 4.2.2 The recipient's inbox is out of storage space.",
        "552 5.2.2 The recipient's inbox is out of storage space and inactive.",
        "550 5.1.1 The email account that you tried to reach does not exist.",
        "550 5.2.1 The email account that you tried to reach is inactive.",
        "450 User is receiving mail too quickly",
    ],
    Scope.HOST: [
        "421 4.3.0 Temporary system problem. Try again later.",
        "421 4.4.5 Server busy, try again later.",
        "451 4.4.2 Timeout - closing connection.",
        "452 4.5.3 Too many recipients.",
        "421 4.7.0 Try again later, closing connection.",
        "451 [BS02] Temporary server error",
    ],
    Scope.PROVIDER: ["451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (AS761)"],
}
CASES = [(text, scope) for scope, texts in REPLIES.items() for text in texts]


@pytest.mark.parametrize(("text", "scope"), CASES, ids=lambda value: str(value)[:40])
def test_a_published_reply_has_its_scope(text: str, scope: Scope) -> None:
    reply = parse_sample(text)
    kind = OutcomeKind.BOUNCED if reply.code >= 500 else OutcomeKind.DEFERRED
    found = shipped_classifier().classify(kind, Scope.RECIPIENT, reply)
    assert found.scope is scope, found
    assert found.known
    if scope is not Scope.RECIPIENT:
        assert not found.hard
