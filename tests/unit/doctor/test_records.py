"""The records that are tag lists: DKIM keys, DMARC with its tree walk, MTA-STS policies, zone file lines."""

import asyncio
import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from engine.dkim.keys import signing_key
from engine.doctor import dmarc
from engine.doctor.finding import txt_record
from engine.doctor.keys import KeyRecordError, parse_key
from engine.doctor.tags import TagError, parse_tags
from tests.support.zones import ZoneResolver

RSA = generate_private_key(public_exponent=65537, key_size=2048)
SHORT = generate_private_key(public_exponent=65537, key_size=1024).public_key()


def text_of(public: bytes) -> str:
    return base64.b64encode(public).decode()


def test_a_key_record_of_ours_is_read_back() -> None:
    for private in (RSA, Ed25519PrivateKey.generate()):
        ours = signing_key("example.com", "s1", private)
        found = parse_key(ours.record())
        assert found.data == ours.public
        assert found.bits == (2048 if private is RSA else 256)
        assert not found.is_testing


def test_rsa_keys_in_both_forms_and_with_spaces() -> None:
    public = RSA.public_key()
    info = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    bare = public.public_bytes(Encoding.DER, PublicFormat.PKCS1)
    assert parse_key(f"p={text_of(info)}").data == info
    assert parse_key(f"k=rsa; p={text_of(bare)};").data == info
    spaced = text_of(info)[:40] + " \t" + text_of(info)[40:]
    assert parse_key(f"v=DKIM1; t=s:y; p={spaced}").is_testing
    assert parse_key(f"p={text_of(SHORT.public_bytes(Encoding.DER, PublicFormat.PKCS1))}").bits == 1024


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("v=DKIM1; k=rsa", "p= is missing"),
        ("v=DKIM1; p=", "revoked"),
        ("p=AAAA; v=DKIM1", "first tag"),
        ("v=DKIM2; p=AAAA", "DKIM1"),
        ("v=DKIM1; p=AAAA", "no RSA key"),
        ("v=DKIM1; p=*", "not base64"),
        ("v=DKIM1; k=ed25519; p=AAAA", "3 bytes"),
        ("v=DKIM1; k=dsa; p=AAAA", "k=dsa"),
        ("v=DKIM1; s=tlsrpt; p=AAAA", "not for email"),
        ("v=DKIM1; h=sha1; p=AAAA", "sha256"),
        ("v=DKIM1; p=AA; p=BB", "twice"),
        ("hello", "not tag=value"),
    ],
)
def test_unusable_key_records(record: str, reason: str) -> None:
    with pytest.raises(KeyRecordError, match=reason):
        parse_key(record)


def test_tags() -> None:
    assert parse_tags(" a = b=c ; d=;") == {"a": "b=c", "d": ""}
    for text in ("a=b;;c=d", "=x", "a=b;c", ";"):
        with pytest.raises(TagError):
            parse_tags(text)


WALK = """
_dmarc.example.com       TXT v=DMARC1; p=reject; sp=quarantine; aspf=s
_dmarc.two.com           TXT v=DMARC1; p=none
_dmarc.two.com           TXT v=DMARC1; p=reject
_dmarc.bank              TXT v=DMARC1; p=reject; psd=y
_dmarc.own.one.net       TXT v=DMARC1; p=none; psd=n
_dmarc.one.net           TXT v=DMARC1; p=none
_dmarc.down.org          FAIL -
_dmarc.odd.net           TXT v=DMARC1; p=nothing; pct=200; rua=mailto:a@\x1b[31m.z
_dmarc.worse.net         TXT v=DMARC1; p=reject;;
_dmarc.late.net          TXT p=reject; v=DMARC1
"""


def find(domain: str) -> dmarc.DmarcRecord | None:
    return asyncio.run(dmarc.find(ZoneResolver(WALK), domain))


def test_the_record_of_a_domain() -> None:
    record = find("news.example.com")
    assert record is not None
    assert (record.domain, record.policy_for("news.example.com"), record.policy_for("example.com")) == (
        "example.com",
        "quarantine",
        "reject",
    )
    assert record.is_strict("aspf")
    assert not record.is_strict("adkim")
    assert find("two.com") is None, "several records are none"
    assert find("late.net") is None, "the version comes first"
    assert find("nothing.test") is None
    odd = find("odd.net")
    assert odd is not None
    assert [defect.partition("=")[0] for defect in odd.defects] == ["p", "pct", "rua"]
    assert dmarc.report_domains(odd) == [], "nothing that is no domain is shown or asked for"
    worse = find("worse.net")
    assert worse is not None
    assert (worse.policy, len(worse.defects)) == ("reject", 1)
    with pytest.raises(dmarc.DnsFailed):
        find("down.org")


@pytest.mark.parametrize(
    ("domain", "home"),
    [
        ("a.b.c.d.e.f.g.h.example.com", "example.com"),
        ("example.com", "example.com"),
        ("mail.shop.bank", "shop.bank"),
        ("x.own.one.net", "own.one.net"),
        ("y.one.net", "one.net"),
        ("nothing.test", "nothing.test"),
    ],
)
def test_the_organizational_domain(domain: str, home: str) -> None:
    assert asyncio.run(dmarc.organizational_domain(ZoneResolver(WALK), domain)) == home


@pytest.mark.parametrize(
    ("other", "strict", "aligned"),
    [
        ("example.com", True, True),
        ("bounce.example.com", False, True),
        ("bounce.example.com", True, False),
        ("example.net", False, False),
    ],
)
def test_alignment(other: str, strict: bool, aligned: bool) -> None:
    resolver = ZoneResolver(WALK)
    assert asyncio.run(dmarc.is_aligned(resolver, "example.com", other, strict=strict)) is aligned


def test_owners_of_one_suffix_are_not_aligned() -> None:
    assert not asyncio.run(dmarc.is_aligned(ZoneResolver(WALK), "a.bank", "b.bank", strict=False))


def test_a_long_record_is_written_in_strings() -> None:
    line = txt_record("a.test", "x" * 300)
    assert line == f'a.test. 3600 IN TXT "{"x" * 255}" "{"x" * 45}"'
    assert txt_record("a.test.", 'a "b" \\ \n') == 'a.test. 3600 IN TXT "a \\"b\\" \\\\ \\010"'
