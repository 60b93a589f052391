"""What a report says of the one recipient that a message of ours went to.

The token tells which message a report is about, not who did not get it: the mailbox may pass its mail on, or be a list.
So a failure is the recipient's own only if the report names him as the final recipient, or names nobody. Where the
final recipient is another, with or without ours as the original one, a copy that our recipient's host made has failed:
he may well read the others, and is never suppressed for it.

Two addresses are the same mailbox also if only a subaddress (`+tag`) differs, or if one domain lies within the other,
as where a host writes its own name into the address.
"""

from collections.abc import Sequence
from typing import NamedTuple

from engine.bounces.report import Failure
from engine.values.address import AddressError, parse_address


class Tied(NamedTuple):
    """`elsewhere`: the address that has failed in place of our recipient, "" where it is our recipient itself."""

    failure: Failure
    elsewhere: str = ""


def tied(recipient: str, failures: Sequence[Failure], *, is_partial: bool) -> Tied | None:
    """What is said of our recipient. None if a report names only others some of whom did not fail: a list."""
    for failure in failures:
        if failure.addresses and is_same_mailbox(failure.addresses[-1], recipient):
            return Tied(failure)
    for failure in failures:
        if any(is_same_mailbox(address, recipient) for address in failure.addresses):
            return Tied(failure, failure.addresses[-1])
    if is_partial or not failures:
        return None
    unnamed = next((failure for failure in failures if not failure.addresses), None)
    return Tied(unnamed) if unnamed is not None else Tied(failures[0], failures[0].addresses[-1])


def is_same_mailbox(one: str, other: str) -> bool:
    (local, domain), (other_local, other_domain) = _parts(one), _parts(other)
    if local != other_local or not domain or not other_domain:
        return False
    return f".{domain}".endswith(f".{other_domain}") or f".{other_domain}".endswith(f".{domain}")


def _parts(address: str) -> tuple[str, str]:
    """Local part without its subaddress and domain, to be compared."""
    try:
        parsed = parse_address(address)
        local, domain = parsed.local, parsed.domain
    except AddressError:
        local, _, domain = address.rpartition("@")
    local = local.lower()
    return local.partition("+")[0] or local, domain.lower()
