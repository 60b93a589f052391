"""The signature field: its tags, what it covers, and what is not signed."""

import contextlib
import re
import time
from pathlib import Path

import dkim
import pytest

from engine.config.signing import DkimConfig
from engine.dkim.keys import KeyRing
from engine.dkim.signer import KEPT_BYTES, Signer, SigningError, Unsigned
from tests.support.dkim import dkim_section, records_of, ring_of, verified

NOW_S = int(time.time())
HEAD = (
    b"From: Ann <ann@example.com>\r\nTo: bob@example.org\r\nSubject: hello\r\n"
    b"List-Unsubscribe: <https://example.com/u/1>\r\nList-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n"
)
BODY = b"Hello.\r\n"


def message_of(head: bytes = HEAD, body: bytes = BODY) -> Unsigned:
    return Unsigned(head, body, NOW_S, NOW_S + 86400)


@pytest.fixture
def ring(tmp_path: Path) -> KeyRing:
    return ring_of(tmp_path, "example.com")


def sign_one(ring: KeyRing, message: Unsigned) -> bytes:
    [field] = Signer(ring).sign([message])
    assert not isinstance(field, SigningError), field
    return field


def test_tags(ring: KeyRing) -> None:
    fields = sign_one(ring, message_of()).decode()
    assert fields.count("DKIM-Signature:") == 2
    unfolded = re.sub(r"\r\n[ \t]+", " ", fields)
    for line, algorithm in zip(unfolded.splitlines(), ("rsa-sha256", "ed25519-sha256"), strict=True):
        tags = dict(tag.strip().split("=", 1) for tag in line.partition(":")[2].split(";"))
        assert set(tags) == {"v", "a", "c", "d", "s", "t", "x", "h", "bh", "b"}, "no l="
        assert (tags["a"], tags["c"], tags["d"]) == (algorithm, "relaxed/relaxed", "example.com")
        assert (int(tags["t"]), int(tags["x"])) == (NOW_S, NOW_S + 86400)
        names = tags["h"].replace(" ", "").split(":")
        assert [names.count(n) for n in ("from", "subject", "list-unsubscribe", "list-unsubscribe-post")] == [
            2
        ] * 4
        assert names.count("reply-to") == 1, "oversigned although there is none"


def test_the_same_message_gets_the_same_signature(ring: KeyRing) -> None:
    assert sign_one(ring, message_of()) == sign_one(ring, message_of())


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m.replace(b"hello", b"bye"),
        lambda m: m.replace(b"Hello.", b"Hello!"),
        lambda m: m.replace(b"To: bob", b"To: eve"),
        lambda m: m.replace(b"From:", b"From: eve@example.net\r\nFrom:"),
        lambda m: m.replace(b"To:", b"Reply-To: eve@example.net\r\nTo:"),
        lambda m: m.replace(b"/u/1", b"/u/2"),
        lambda m: m + b"more\r\n",
    ],
)
def test_a_change_breaks_both_signatures(ring: KeyRing, change: object) -> None:
    records = records_of(ring, "example.com")
    message = sign_one(ring, message_of()) + HEAD + b"\r\n" + BODY
    assert verified(message, records, 2)
    changed = change(message)  # type: ignore[operator]
    assert changed != message
    with contextlib.suppress(dkim.DKIMException):
        assert not verified(changed, records, 2)


@pytest.mark.parametrize(
    "name",
    [
        "From",
        "To",
        "Cc",
        "Subject",
        "Date",
        "Message-ID",
        "Reply-To",
        "Sender",
        "MIME-Version",
        "Content-Type",
        "Content-Transfer-Encoding",
        "List-Unsubscribe",
        "List-Unsubscribe-Post",
    ],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_what_people_and_filters_look_at_cannot_be_added(ring: KeyRing, name: str, is_there: bool) -> None:
    field = f"{name}: x\r\n".encode()
    head = HEAD if not is_there or field.partition(b":")[0] in HEAD else HEAD + field
    signed = sign_one(ring, message_of(head)) + head
    end = b"\r\n" + BODY
    records = records_of(ring, "example.com")
    assert verified(signed + end, records, 2)
    with contextlib.suppress(dkim.DKIMException):
        assert not verified(signed + field + end, records, 2)


def test_several_signing_domains_verify(tmp_path: Path) -> None:
    section = dkim_section(tmp_path, "example.com", "esp.example")
    section["domains"][1]["sign_all"] = True
    ring = KeyRing(DkimConfig.model_validate(section), time.monotonic)
    records = records_of(ring, "example.com")
    assert len(records) == 4
    assert verified(sign_one(ring, message_of()) + HEAD + b"\r\n" + BODY, records, 4)


def test_nobody_signs_for_another_domain(ring: KeyRing) -> None:
    assert sign_one(ring, message_of(b"From: a@example.net\r\n")) == b""


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"Subject: x\r\n", "0 From fields"),
        (b"From: a@example.com\r\nfrom: b@example.com\r\n", "2 From fields"),
        (b"From: a@example.com, b@example.net\r\n", "several signing domains"),
        (b"From: nobody\r\n", "From: "),
        (b"From: a@example.com\r\n" + b"X: y\r\n" * 1000, "more than 1000"),
    ],
)
def test_what_is_no_message_is_refused_and_the_rest_of_the_batch_signed(
    ring: KeyRing, head: bytes, said: str
) -> None:
    first, second = Signer(ring).sign([message_of(head), message_of()])
    assert isinstance(first, SigningError)
    assert first.permanent
    assert said in str(first)
    assert isinstance(second, bytes)
    assert second


def test_a_key_that_cannot_be_read_is_not_permanent_and_never_unsigned(tmp_path: Path) -> None:
    section = dkim_section(tmp_path, "example.com")
    Path(section["domains"][0]["keys"][0]["file"]).unlink()
    [found] = Signer(KeyRing(DkimConfig.model_validate(section), time.monotonic)).sign([message_of()])
    assert isinstance(found, SigningError)
    assert not found.permanent


def test_a_body_that_does_not_vary_is_hashed_once(ring: KeyRing) -> None:
    signer = Signer(ring)
    heads = [HEAD.replace(b"bob", b"bob%d" % n) for n in range(20)]
    fields = signer.sign([message_of(head) for head in heads[:10]])
    fields += signer.sign([message_of(head) for head in heads[10:]])
    assert signer.hashed_bodies == 1
    records = records_of(ring, "example.com")
    for field, head in zip(fields, heads, strict=True):
        assert isinstance(field, bytes)
        assert verified(field + head + b"\r\n" + BODY, records, 2)
    signer.sign([message_of(body=b"another\r\n")])
    assert signer.hashed_bodies == 2
    large = b"x" * KEPT_BYTES + b"\r\n"
    for count in (3, 4):
        signer.sign([message_of(body=large)])
        assert signer.hashed_bodies == count, "large ones take no room"
