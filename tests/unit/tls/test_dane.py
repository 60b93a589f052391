"""TLSA records against real certificate chains, every usable combination and what must not pass."""

from datetime import UTC, datetime

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from engine.routing.answers import Tlsa
from engine.tls.dane import check_chain, usable_records
from engine.tls.der import subject_public_key_info
from engine.tls.policy import Fault
from tests.support.certificates import Identity, authority, make, stranger, tlsa

NOW = datetime.now(UTC)
MIDDLE = make("Middle", issuer=authority(), is_authority=True)
LEAF = make("mx.test", issuer=MIDDLE, send=(MIDDLE, authority()))
OTHER_NAME = make("other.test", issuer=MIDDLE, send=(MIDDLE, authority()))
WILD = make("*.test", issuer=MIDDLE, send=(MIDDLE, authority()))
EXPIRED = make("mx.test", issuer=MIDDLE, days=(-9, -1), send=(MIDDLE, authority()))
ALONE = make("mx.test")
NO_NAME = make("mx.test", issuer=MIDDLE, names=(), send=(MIDDLE, authority()))


def chain_of(identity: Identity) -> list[bytes]:
    return [identity.der, *(one.public_bytes(Encoding.DER) for one in identity.chain)]


def verdict(identity: Identity, *records: Tlsa, names: tuple[str, ...] = ("mx.test",)) -> Fault | None:
    usable = usable_records(records)
    assert usable, "the records are meant to be usable"
    fault = check_chain(usable, chain_of(identity), names, now=NOW)
    return None if fault is None else fault.fault


@pytest.mark.parametrize("identity", [LEAF, OTHER_NAME, EXPIRED, ALONE, NO_NAME])
@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
def test_usage_3_is_the_certificate_or_key_alone(identity: Identity, selector: int, matching: int) -> None:
    assert verdict(identity, tlsa(identity, 3, selector, matching)) is None
    assert verdict(identity, tlsa(make("mx.test"), 3, selector, matching)) is Fault.VALIDATION


@pytest.mark.parametrize("anchor", [MIDDLE, authority()])
@pytest.mark.parametrize("selector", [0, 1])
@pytest.mark.parametrize("matching", [0, 1, 2])
def test_usage_2_is_issued_by_the_anchor_and_checked(anchor: Identity, selector: int, matching: int) -> None:
    record = tlsa(anchor, 2, selector, matching)
    assert verdict(LEAF, record) is None
    assert verdict(WILD, record) is None
    assert verdict(OTHER_NAME, record) is Fault.HOST_MISMATCH
    assert verdict(OTHER_NAME, record, names=("mx.test", "other.test")) is None
    assert verdict(NO_NAME, record) is Fault.HOST_MISMATCH
    assert verdict(EXPIRED, record) is Fault.EXPIRED
    assert verdict(ALONE, record) in (Fault.VALIDATION, Fault.NOT_TRUSTED)


def test_an_anchor_in_the_record_need_not_be_sent() -> None:
    leaf = make("mx.test", issuer=authority())
    assert verdict(leaf, tlsa(authority(), 2, 0, 0)) is None
    assert verdict(leaf, tlsa(authority(), 2, 0, 1)) is Fault.VALIDATION
    assert verdict(leaf, tlsa(stranger(), 2, 0, 0)) is Fault.NOT_TRUSTED


def test_an_anchor_that_is_only_sent_along_vouches_for_nothing() -> None:
    thief = make("mx.test", send=(MIDDLE, authority()))
    assert verdict(thief, tlsa(authority(), 2)) is Fault.NOT_TRUSTED


def test_usage_2_does_not_take_the_servers_own_certificate() -> None:
    assert verdict(LEAF, tlsa(LEAF, 2)) is Fault.VALIDATION


def test_one_good_record_is_enough() -> None:
    assert verdict(LEAF, tlsa(stranger(), 2), tlsa(ALONE, 3), tlsa(LEAF, 3)) is None


def test_the_weaker_digest_does_not_count_beside_the_stronger() -> None:
    stale = tlsa(ALONE, 3, 1, 2)
    assert verdict(LEAF, tlsa(LEAF, 3, 1, 1), stale) is Fault.VALIDATION
    assert verdict(LEAF, tlsa(LEAF, 3, 0, 1), stale) is None, "another selector is another matter"


@pytest.mark.parametrize(
    "record",
    [
        Tlsa(0, 0, 1, bytes(32)),
        Tlsa(1, 1, 1, bytes(32)),
        Tlsa(3, 2, 1, bytes(32)),
        Tlsa(3, 1, 3, bytes(32)),
        Tlsa(3, 1, 1, bytes(31)),
        Tlsa(3, 1, 2, bytes(32)),
        Tlsa(3, 1, 0, b""),
        Tlsa(2, 0, 0, b"no certificate"),
        Tlsa(255, 255, 255, b"x"),
    ],
    ids=str,
)
def test_what_cannot_be_used(record: Tlsa) -> None:
    assert usable_records([record]) == ()


@pytest.mark.parametrize("chain", [[], [b""], [b"\x30\x03abc"], [b"\x30\x84\xff\xff\xff\xff"]])
def test_a_chain_that_is_none(chain: list[bytes]) -> None:
    for usage in (2, 3):
        fault = check_chain([tlsa(LEAF, usage)], chain, ["mx.test"], now=NOW)
        assert fault is not None
        assert fault.fault is Fault.VALIDATION


def test_the_key_as_it_stands_in_the_certificate() -> None:
    for identity in (LEAF, ALONE, authority()):
        assert subject_public_key_info(identity.der) == identity.public_key_info
    for cut in range(len(ALONE.der)):
        with pytest.raises(ValueError, match="not a certificate"):
            subject_public_key_info(ALONE.der[:cut])
