"""Bounce categories, by the names that PowerMTA gave them and that reports of the trade use.

`HARD` are the categories in which a permanent refusal means that this address will not take mail again; in all
others a refusal says something about us, the message or the moment. A rule may say otherwise for itself.
"""

from enum import StrEnum


class Category(StrEnum):
    """The values are stored in events and written in rules: never rename."""

    SUCCESS = "success"
    BAD_MAILBOX = "bad-mailbox"
    BAD_DOMAIN = "bad-domain"
    INACTIVE_MAILBOX = "inactive-mailbox"
    INVALID_SENDER = "invalid-sender"
    QUOTA_ISSUES = "quota-issues"
    MESSAGE_EXPIRED = "message-expired"
    NO_ANSWER_FROM_HOST = "no-answer-from-host"
    BAD_CONNECTION = "bad-connection"
    BAD_CONFIGURATION = "bad-configuration"
    ROUTING_ERRORS = "routing-errors"
    POLICY_RELATED = "policy-related"
    PROTOCOL_ERRORS = "protocol-errors"
    SPAM_RELATED = "spam-related"
    CONTENT_RELATED = "content-related"
    RELAYING_ISSUES = "relaying-issues"
    VIRUS_RELATED = "virus-related"
    OTHER = "other"


HARD = frozenset({Category.BAD_MAILBOX, Category.BAD_DOMAIN, Category.INACTIVE_MAILBOX})
