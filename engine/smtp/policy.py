"""What a reply, or the lack of one, means: the one table from phase and answer to a verdict.

A verdict says what becomes of the recipient (kind), what part of the world the answer speaks about (scope),
whether another host of the destination may be tried at once, and whether the answer means "too many
recipients, split". It does not say when to retry or whom to suspend: the region decides that, from the scope.

Rules, in order of force:
- What is not understood is a deferral. A bounce needs a 5yz that speaks about this recipient or message.
- A reply that names our IP, netblock, domain or content (`IDENTITY_RULES`) is about that, whatever its class
  and phase: a 5xx about our IP never bounces a recipient. Domain and content verdicts of class 5 do bounce
  the message: another source would not help and retrying makes it worse.
- A greeting or EHLO that is not 2yz is about the host: the next host is tried (RFC 5321 section 5.1 and
  Postfix).
- 421 is about the host: the session has ended; the recipient is deferred.
- A 5yz to MAIL refuses the message whatever its words are, but it speaks of nobody's mailbox: no recipient has been
  named yet. A 5yz behind the data speaks of one only if there is only one (`shared`).
- 452 and 552 to RCPT may mean "too many recipients" (RFC 5321 section 4.5.3.1.10): deferred, split.
- No TLS where it is required is a deferral, never plaintext.
- A connection lost after the final dot is a deferral; the transaction says whether it may be a duplicate.
"""

import re
from dataclasses import dataclass
from enum import IntEnum, StrEnum

from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply


class Phase(IntEnum):
    """Where in a session the answer came. 1 to 6 are the stages of native.transaction."""

    IDLE = 0
    RSET = 1
    MAIL = 2
    RCPT = 3
    DATA = 4
    DOT = 5
    QUIT = 6
    CONNECT = 10
    GREETING = 11
    EHLO = 12
    STARTTLS = 13
    AUTH = 14


class FailureReason(StrEnum):
    """Why there was no reply, or none that counts."""

    LOST = "connection lost"
    TIMEOUT = "timed out"
    PROTOCOL = "protocol error"
    ABORTED = "aborted"
    UNREACHABLE = "unreachable"
    BIND = "source address not available"
    NO_TLS = "TLS is required but not offered"
    TLS_FAILED = "TLS handshake failed"
    UNTRUSTED = "certificate not accepted"
    INJECTED = "plaintext injected before TLS"
    NO_AUTH = "authentication not possible"
    NO_ADDRESS = "no usable address"
    NO_REQUIRETLS = "REQUIRETLS is not offered"


@dataclass(frozen=True, slots=True)
class Verdict:
    """`next_host`: nothing was decided about the message, another host may be asked at once."""

    kind: OutcomeKind
    scope: Scope
    next_host: bool = False
    split: bool = False


@dataclass(frozen=True, slots=True)
class IdentityRule:
    """Replies that speak about us. `sample` is a published reply that the pattern must match (tested)."""

    name: str
    pattern: re.Pattern[str]
    scope: Scope
    sample: str


def _rule(name: str, pattern: str, scope: Scope, sample: str) -> IdentityRule:
    return IdentityRule(name, re.compile(pattern, re.IGNORECASE), scope, sample)


# The first match wins. Texts: Gmail SMTP codes 3726730 (2026-02-15), Yahoo error codes (2026-02), Microsoft
# postmaster pages (2026-05), Apple 102322 (2025-02-25), operators' logs quoted in KumoMTA's shaping files.
IDENTITY_RULES: tuple[IdentityRule, ...] = (
    _rule(
        "google-netblock",
        r"originating from your IP Netblock",
        Scope.NETBLOCK,
        "421 4.7.28 an unusual rate of unsolicited email originating from your IP Netblock.",
    ),
    _rule(
        "outlook-network-block-list",
        r"part of their network is on our block list",
        Scope.NETBLOCK,
        "550 5.7.1 Unfortunately, messages from [192.0.2.1] weren't sent. Please contact your Internet "
        "service provider since part of their network is on our block list (S3140).",
    ),
    _rule(
        "google-message-id-quota",
        r"have the same Message-ID",
        Scope.MESSAGE,
        "421 4.7.28 exceeded the quota for sending messages that have the same Message-ID:",
    ),
    _rule(
        "google-domain",
        r"from your (DKIM|SPF) domain|reputation of the sending domain",
        Scope.DOMAIN,
        "421 4.7.28 Gmail has detected an unusual rate of email originating from your DKIM domain",
    ),
    _rule(
        "google-content",
        r"containing one of your URL domains|nature of the content or the links",
        Scope.MESSAGE,
        "421 4.7.28 an unusual rate of email containing one of your URL domains",
    ),
    _rule(
        "google-ip",
        r"originating from your IP address|very low reputation of the sending IP|IP not in whitelist",
        Scope.SOURCE,
        "550 5.7.28 an unusual rate of unsolicited mail originating from your IP address",
    ),
    _rule(
        "ptr",
        r"\bPTR record\b",
        Scope.SOURCE,
        "550 5.7.25 The IP address sending this message does not have a PTR record",
    ),
    _rule(
        "outlook-domain-authentication",
        r"\b5\.7\.515\b|sending domain \S+ does not meet",
        Scope.DOMAIN,
        "550 5.7.515 Access denied, sending domain [EXAMPLE.NET] does not meet the required level.",
    ),
    _rule(
        "outlook-banned-ip",
        r"banned sending IP",
        Scope.SOURCE,
        "550 5.7.606 Access denied, banned sending IP [192.0.2.1]",
    ),
    _rule(
        "outlook-rate",
        r"The mail server \[\S+\] has (been temporarily rate|exceeded the max)|\b(S775|S3114|S3115)\b",
        Scope.SOURCE,
        "451 4.7.650 The mail server [192.0.2.1] has been temporarily rate limited (S775)",
    ),
    _rule(
        "outlook-reputation",
        r"\b(RP-00[123]|SC-00[1234]|DY-00[12]|OU-00[12]|IB007)\b",
        Scope.SOURCE,
        "550 SC-001 Mail rejected for policy reasons.",
    ),
    _rule(
        "outlook-busy",
        r"\(AS761\)",
        Scope.PROVIDER,
        "451 4.7.500 Server busy. Please try again later from [192.0.2.1]. (AS761)",
    ),
    _rule(
        "yahoo-ip",
        r"\[(IP)?TSS?\d\d\]|\[BL2\d\]",
        Scope.SOURCE,
        "421 4.7.0 [TSS04] Messages from 192.0.2.1 temporarily deferred due to unexpected volume",
    ),
    _rule(
        "apple-volume",
        r"deferred due to excessive volume|\[HC?ME?1\]",
        Scope.SOURCE,
        "421 4.7.1 Messages to x deferred due to excessive volume",
    ),
    _rule(
        "block-list",
        r"\b(spamhaus|spamcop|barracudacentral|sorbs)\b|\b(your|sending|client) (IP|host|server)\b.{0,40}"
        r"\b(block|list|denied|reject|banned)",
        Scope.SOURCE,
        "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using zen.spamhaus.org",
    ),
)

_TOO_MANY = frozenset({452, 552})
_HOST_PHASES = frozenset({Phase.CONNECT, Phase.GREETING, Phase.EHLO, Phase.STARTTLS, Phase.AUTH})
_MESSAGE_PHASES = frozenset({Phase.MAIL, Phase.DATA, Phase.DOT})

# Enhanced codes of our own replies (code 0) that say: no session that is secure enough (RFC 3463, RFC 7817).
TLS_STATUSES = frozenset({"4.7.5", "4.7.10"})

DELIVERED = Verdict(OutcomeKind.DELIVERED, Scope.RECIPIENT)

# What we refuse ourselves before MAIL, because the host lacks what the message needs: scope message.
NEEDS_8BITMIME = Reply(0, "5.6.3", "the message has 8-bit content and the host does not offer 8BITMIME")
NEEDS_SMTPUTF8 = Reply(0, "5.6.7", "an address is not ASCII and the host does not offer SMTPUTF8")
TOO_LARGE = Reply(0, "5.3.4", "the message is larger than the host's SIZE limit")
BAD_ADDRESS = Reply(0, "5.1.3", "an address cannot be written in a command")


def classify(
    phase: Phase, answer: Reply | FailureReason, *, last_host: bool = True, shared: bool = False
) -> Verdict:
    """The verdict on the last answer to one recipient or session. `last_host`: no other is left to try. `shared`:
    several recipients got this answer at once.
    """
    if isinstance(answer, FailureReason):
        return _failure(phase, answer, last_host)
    kind = answer.code // 100
    if phase is Phase.DOT and kind == 2:
        return DELIVERED
    if kind not in (4, 5):
        # an acceptance where none is possible: not understood
        return Verdict(OutcomeKind.DEFERRED, Scope.SESSION)
    named = identity_rule(str(answer))
    if named is not None:
        bounced = kind == 5 and named.scope in (Scope.DOMAIN, Scope.MESSAGE) and phase not in _HOST_PHASES
        return Verdict(OutcomeKind.BOUNCED if bounced else OutcomeKind.DEFERRED, named.scope)
    if phase in _HOST_PHASES:
        return Verdict(OutcomeKind.DEFERRED, Scope.HOST, next_host=not last_host)
    if answer.code == 421:
        return Verdict(OutcomeKind.DEFERRED, Scope.HOST)
    if phase is Phase.RCPT:
        if answer.code in _TOO_MANY and not answer.enhanced.endswith(".2.2"):
            return Verdict(OutcomeKind.DEFERRED, Scope.RECIPIENT, split=True)
        return Verdict(OutcomeKind.BOUNCED if kind == 5 else OutcomeKind.DEFERRED, Scope.RECIPIENT)
    if phase in _MESSAGE_PHASES:
        if kind == 5 and (shared or phase is Phase.MAIL):
            return Verdict(OutcomeKind.BOUNCED, Scope.SESSION)
        return Verdict(OutcomeKind.BOUNCED if kind == 5 else OutcomeKind.DEFERRED, Scope.MESSAGE)
    return Verdict(OutcomeKind.DEFERRED, Scope.SESSION)


def _failure(phase: Phase, reason: FailureReason, last_host: bool) -> Verdict:
    if reason is FailureReason.BIND:
        return Verdict(OutcomeKind.DEFERRED, Scope.SOURCE)
    if reason is FailureReason.NO_REQUIRETLS:
        # RFC 8689 section 4.2.1: another host may offer it; if none does, the message cannot be sent
        kind = OutcomeKind.BOUNCED if last_host else OutcomeKind.DEFERRED
        return Verdict(kind, Scope.MESSAGE, next_host=not last_host)
    if phase in _HOST_PHASES:
        return Verdict(OutcomeKind.DEFERRED, Scope.HOST, next_host=not last_host)
    return Verdict(OutcomeKind.DEFERRED, Scope.SESSION)


def identity_rule(text: str) -> IdentityRule | None:
    """The rule that says the reply speaks about us, or None."""
    for rule in IDENTITY_RULES:
        if rule.pattern.search(text):
            return rule
    return None
