"""What an answer of a DNS blocklist means (RFC 5782), and what is known of one source.

Never a listing: a code that the configuration does not name, where it names some; an answer outside of 127.0.0.0/8 (a
resolver that invents addresses); 127.255.255.0/24, by which a list refuses to serve. Silence changes nothing. Pure.
"""

import ipaddress
from collections.abc import Sequence
from enum import StrEnum
from typing import NamedTuple

from engine.config.blocklists import LISTINGS, REFUSALS, BlocklistZone

TEST_LISTED = "2.0.0.127"  # 127.0.0.2 is on every list, 127.0.0.1 on none (RFC 5782 section 5)
TEST_CLEAR = "1.0.0.127"


class Meaning(StrEnum):
    LISTED = "listed"
    CLEAR = "clear"
    REFUSED = "refused"
    SILENT = "silent"


class Reading(NamedTuple):
    """`text`: what it is listed for, or why the list says nothing."""

    meaning: Meaning
    text: str = ""


def query_name(address: str, zone: str) -> str:
    """The name to ask for: octets or nibbles in reverse order."""
    pointer = ipaddress.ip_address(address).reverse_pointer
    return f"{pointer.removesuffix('.in-addr.arpa').removesuffix('.ip6.arpa')}.{zone}"


def read_answer(zone: BlocklistZone, addresses: Sequence[str]) -> Reading:
    """The meaning of the addresses that a list gave; none is CLEAR."""
    if not addresses:
        return Reading(Meaning.CLEAR)
    parsed = [ipaddress.ip_address(address) for address in addresses]
    refusals = sorted(str(address) for address in parsed if address in REFUSALS)
    if refusals:
        return Reading(Meaning.REFUSED, f"it refuses to answer ({', '.join(refusals)})")
    codes = sorted(str(address) for address in parsed if address in LISTINGS)
    if not codes:
        return Reading(Meaning.REFUSED, f"{addresses[0]} is no answer of a blocklist")
    if zone.codes:
        codes = [code for code in codes if code in zone.codes]
        if not codes:
            return Reading(Meaning.CLEAR)
    meanings = [f"{code} {zone.codes[code]}" if zone.codes else code for code in codes]
    return Reading(Meaning.LISTED, f"{zone.zone} ({', '.join(meanings)})")


class Listed:
    """The lists that name one source."""

    __slots__ = ("by_zone",)

    def __init__(self) -> None:
        self.by_zone: dict[str, str] = {}

    def note(self, zone: str, reading: Reading) -> bool:
        """Take in what a list says; whether that changes anything. Refusals and silence do not."""
        if reading.meaning is Meaning.LISTED:
            before = self.by_zone.get(zone)
            self.by_zone[zone] = reading.text
            return before != reading.text
        if reading.meaning is Meaning.CLEAR:
            return self.by_zone.pop(zone, None) is not None
        return False

    def keep(self, zones: Sequence[str]) -> None:
        """Lists that are not asked any more have no say."""
        self.by_zone = {zone: text for zone, text in self.by_zone.items() if zone in zones}

    @property
    def text(self) -> str:
        """All of it in one line, "" if no list names the source."""
        return "; ".join(text for _, text in sorted(self.by_zone.items()))
