"""What goes over the wire: fields that are added, parts that are encoded anew, and what is refused."""

import email
import email.policy
import re
from dataclasses import dataclass
from email.message import EmailMessage

import pytest

from engine.delivery.form import Draft, Unsendable, WireMessage, draft_of, finished, is_ready, mended
from engine.delivery.mend import Unmendable, mend
from engine.values.outcome import OutcomeKind, Scope
from native.mime import canonicalise


@dataclass
class Record:
    id: int = 0x0001_0000_0000_002A
    accepted_ms: int = 1_764_096_909_123
    sender: str = "bounce@example.net"


WHOLE = b"From: a@example.com\r\nDate: Tue, 25 Nov 2025 18:55:09 +0000\r\nMessage-ID: <x@example.com>\r\n"


def made(raw: bytes, *, seven_bit: bool = False, record: Record | None = None) -> WireMessage | Unsendable:
    found = mended(draft_of(raw, record or Record(), is_rendered=False), seven_bit=seven_bit)
    return found if isinstance(found, Unsendable) else finished(found)


def wire(raw: bytes, *, seven_bit: bool = False, record: Record | None = None) -> WireMessage:
    found = made(raw, seven_bit=seven_bit, record=record)
    assert isinstance(found, WireMessage), found
    assert all(len(line) <= 998 for line in found.data.split(b"\r\n"))
    return found


def read(message: WireMessage) -> EmailMessage:
    return email.message_from_bytes(message.data, policy=email.policy.SMTP)


def test_what_is_whole_stays_as_it_is() -> None:
    raw = WHOLE + b"\r\n.dot\r\n\r\n  end \r\n"
    message = wire(raw)
    assert message == WireMessage(raw, is_ascii=True, has_utf8_header=False, is_shared=True)


def test_date_and_message_id_are_added_and_are_those_of_every_attempt() -> None:
    raw = b"From: Ann <ann@Example.com>\r\nSubject: x\r\n\r\nbody\r\n"
    message = wire(raw)
    assert message.data == (
        b"Date: Tue, 25 Nov 2025 18:55:09 +0000\r\n"
        b"Message-ID: <000100000000002a.%x@example.com>\r\n" % Record.accepted_ms + raw
    )
    assert not message.is_shared, "each recipient has a Message-ID of its own"
    assert wire(raw) == message
    assert wire(raw, record=Record(id=7)).data != message.data


@pytest.mark.parametrize(
    ("field", "sender", "domain"),
    [
        (b"From: a@x.example\r\n", "b@y.example", b"x.example"),
        (b'from : "Q, <q@z.example>" <a@x.example>, c@d.example\r\n', "b@y.example", b"x.example"),
        (b"From: broken <\r\n", "b@y.example", b"y.example"),
        (b"Subject: no From\r\n", "b@y.example", b"y.example"),
        (b"Subject: no From\r\n", "", b"localhost"),
    ],
)
def test_the_domain_of_message_id(field: bytes, sender: str, domain: bytes) -> None:
    data = wire(field + b"\r\nx\r\n", record=Record(sender=sender)).data
    assert re.search(rb"^Message-ID: <[0-9a-f.]+@(.+)>\r$", data, re.MULTILINE)[1] == domain  # type: ignore[index]


def test_only_what_is_missing_is_added() -> None:
    data = wire(b"DATE: x\r\nSubject: Message-ID: no\r\n\r\nMessage-ID: no\r\n").data
    assert data.count(b"\r\nDate") + data.startswith(b"Date") == 0
    assert data.startswith(b"Message-ID: <")


@pytest.mark.parametrize(
    ("raw", "body"),
    [
        (b"just text\r\nand more\r\n", b"just text\r\nand more\r\n"),
        (b"\r\nFrom: is body\r\n", b"From: is body\r\n"),
        (b"Subject: x\r\nno field\r\nFrom: body\r\n\r\nmore\r\n", b"no field\r\nFrom: body\r\n\r\nmore\r\n"),
        (b"Subject: only a head\r\n", b""),
        (b"Subject: x\nbare\rends\n", b"bare\r\nends\r\n"),
    ],
)
def test_where_the_body_begins(raw: bytes, body: bytes) -> None:
    head, _, found = wire(raw).data.partition(b"\r\n\r\n")
    assert found == body
    assert b"Date: " in head
    assert b"Message-ID: " in head


def test_eight_bits_stay_for_a_host_that_takes_them() -> None:
    raw = WHOLE + b"Content-Type: text/plain; charset=utf-8\r\n\r\ngr\xc3\xbcn\r\n"
    message = wire(raw)
    assert message.data == raw
    assert (message.is_ascii, message.has_utf8_header) == (False, False)


def test_a_head_that_is_utf8_needs_smtputf8_and_one_that_is_not_is_encoded() -> None:
    message = wire(WHOLE + b"Subject: gr\xc3\xbcn\r\n\r\nx\r\n")
    assert (message.is_ascii, message.has_utf8_header) == (False, True)
    message = wire(WHOLE + b"Subject: gr\xfcn\r\n\r\nx\r\n")
    assert message.is_ascii
    assert read(message)["subject"] == "grün"


TEXT = "Grüße aus Köln\r\n.dot = trailing \r\n" + "lang " * 300 + "\r\n"


@pytest.mark.parametrize("kind", ["text/plain; charset=utf-8", "text/html; charset=utf-8"])
def test_text_becomes_quoted_printable(kind: str) -> None:
    raw = WHOLE + f"Content-Type: {kind}\r\nContent-Transfer-Encoding: 8bit\r\n\r\n{TEXT}".encode()
    message = wire(raw, seven_bit=True)
    assert message.is_ascii
    found = read(message)
    assert found["content-transfer-encoding"] == "quoted-printable"
    assert found.get_payload(decode=True) == TEXT.encode()
    assert found["mime-version"] == "1.0"


def test_other_content_and_other_scripts_become_base64() -> None:
    for kind, content in (
        ("application/pdf", b"%PDF\xff\xfe\r\n\x01"),
        ("text/plain; charset=utf-8", "Привет".encode()),
    ):
        raw = (
            WHOLE
            + f"Content-Type: {kind}\r\nContent-Transfer-Encoding: 8bit\r\n\r\n".encode()
            + content
            + b"\r\n"
        )
        found = read(wire(raw, seven_bit=True))
        assert found["content-transfer-encoding"] == "base64"
        assert found.get_payload(decode=True) == content + b"\r\n"


def test_text_without_a_type_gets_one() -> None:
    found = read(wire(WHOLE + "\r\ngrün\r\n".encode(), seven_bit=True))
    assert found["content-type"] == 'text/plain; charset="utf-8"' or "utf-8" in found["content-type"]
    assert found.get_content() == "grün\n" or found.get_content() == "grün\r\n"
    found = read(wire(WHOLE + b"\r\ngr\xfcn\r\n", seven_bit=True))
    assert "unknown-8bit" in found["content-type"]
    assert found.get_payload(decode=True) == b"gr\xfcn\r\n"


def nested() -> bytes:
    message = EmailMessage(policy=email.policy.SMTP.clone(cte_type="8bit"))
    message["From"] = "a@example.com"
    message["Subject"] = "outer"
    message.set_content("Grüße\r\n", cte="8bit")
    message.add_alternative("<p>Grüße</p>\r\n", subtype="html", cte="8bit")
    message.add_attachment(b"\x00\xff", maintype="image", subtype="png", filename="b.png")
    inner = EmailMessage(policy=email.policy.SMTP.clone(cte_type="8bit"))
    inner["Subject"] = "inner"
    inner.set_content("innen grün\r\n", cte="8bit")
    message.add_attachment(inner)
    return bytes(message)


def test_the_parts_of_a_multipart_are_encoded_each_for_itself() -> None:
    raw = nested()
    assert not raw.isascii()
    message = wire(raw, seven_bit=True)
    assert message.is_ascii

    def leaves(data: bytes) -> list[tuple[str, object]]:
        parsed = email.message_from_bytes(data, policy=email.policy.SMTP)
        return [
            (part.get_content_type(), part.get_payload(decode=True))
            for part in parsed.walk()
            if not part.is_multipart()
        ]

    assert leaves(message.data) == leaves(raw)
    assert len(leaves(raw)) == 4
    assert {part["content-transfer-encoding"] for part in read(message).walk()} <= {
        None,
        "7bit",
        "quoted-printable",
        "base64",
    }


def test_long_lines_are_mended_also_where_eight_bits_may_stay() -> None:
    raw = WHOLE + b"Content-Type: text/plain; charset=utf-8\r\n\r\n" + "ü".encode() + b"x" * 3000 + b"\r\n"
    found = read(wire(raw))
    assert found.get_payload(decode=True) == "ü".encode() + b"x" * 3000 + b"\r\n"


@pytest.mark.parametrize(
    "value",
    [
        "word " * 400,
        "wörd " * 400,
        "x" * 2000,
        "=?utf-8?q?gr=C3=BCn?= und " + "blau " * 300,
    ],
)
def test_long_header_lines_are_folded(value: str) -> None:
    found = read(wire(WHOLE + f"Subject: {value.strip()}\r\n\r\nx\r\n".encode(), seven_bit=True))
    assert found["subject"] == value.strip().replace("=?utf-8?q?gr=C3=BCn?=", "grün")


def test_addresses_and_parameters_without_eight_bits() -> None:
    raw = 'From: Jürgen <j@bücher.example>\r\nTo: =?utf-8?q?M=C3=BCller?= <m@example.org>, "Ä, B" <ä@example.org>\r\n'
    with pytest.raises(Unmendable, match="To: an address has no ASCII form"):
        mend(raw.encode(), b"", keep_8bit=False)
    fine = raw.replace("ä@", "a@") + (
        'Content-Type: application/pdf; name="Übersicht €.pdf"; x=y\r\n'
        'Content-Disposition: attachment;\r\n filename="' + "Ü" * 60 + '.pdf"\r\n'
    )
    head, _ = mend(fine.encode(), b"", keep_8bit=False)
    assert head.isascii()
    found = email.message_from_bytes(head + b"\r\n", policy=email.policy.SMTP)
    assert found["from"].addresses[0].addr_spec == "j@xn--bcher-kva.example"
    assert found["from"].addresses[0].display_name == "Jürgen"
    assert [a.display_name for a in found["to"].addresses] == ["Müller", "Ä, B"]
    assert (
        found.get_param("name") == "Übersicht €.pdf"
        or found["content-type"].params["name"] == "Übersicht €.pdf"
    )
    assert found["content-type"].params["x"] == "y"
    assert found.get_filename() == "Ü" * 60 + ".pdf"


@pytest.mark.parametrize(
    ("head", "body", "reason", "enhanced"),
    [
        (
            b"Content-Type: multipart/signed; boundary=b\r\n",
            b"--b\r\n\r\n\xff\r\n--b--\r\n",
            "signed",
            "5.6.3",
        ),
        (b"Content-Type: multipart/mixed\r\n", b"\xff\r\n", "without a boundary", "5.6.3"),
        (b"Content-Type: multipart/mixed; boundary=b\r\n", b"--b\r\n\r\n\xff\r\n", "does not end", "5.6.3"),
        (b"Content-Transfer-Encoding: x-uuencode\r\n", b"\xff\r\n", "x-uuencode", "5.6.3"),
        (b"Content-Type: message/partial\r\n", b"\xff\r\n", "message/partial", "5.6.3"),
        (b"From: \xc3\xa4@example.com\r\n", b"\r\n", "no ASCII form", "5.6.7"),
        (b"Content-Type: a/b; " + b"\xff" * 3 + b"=1\r\n", b"\r\n", "not ASCII", "5.6.0"),
    ],
)
def test_what_cannot_be_mended_is_bounced_with_the_reason(
    head: bytes, body: bytes, reason: str, enhanced: str
) -> None:
    found = made(head + b"\r\n" + body, seven_bit=True)
    assert isinstance(found, Unsendable)
    assert (found.verdict.kind, found.verdict.scope) == (OutcomeKind.BOUNCED, Scope.MESSAGE)
    assert reason in found.reply.text
    assert found.reply.enhanced == enhanced


def test_parts_inside_each_other_have_a_limit() -> None:
    head, body = b"", b"\xff\r\n"
    for depth in range(30):
        body = b"--%d\r\n%b\r\n%b\r\n--%d--\r\n" % (depth, head, body, depth)
        head = b"Content-Type: multipart/mixed; boundary=%d\r\n" % depth
    with pytest.raises(Unmendable, match="more than 20 parts"):
        mend(head, body, keep_8bit=False)


SMUGGLING = [
    b"\n.\n", b"\n.\r", b"\r.\n", b"\r.\r", b"\n.\r\n", b"\r.\r\n", b"\r\n.\r\r\n", b"\r\r\n.\r\r\n", b"\r\n\0.\r\n",
]  # fmt: skip


@pytest.mark.parametrize("sequence", SMUGGLING)
@pytest.mark.parametrize("seven_bit", [False, True])
def test_no_end_of_data_can_stand_inside_a_message(sequence: bytes, seven_bit: bool) -> None:
    """FACTS: the outbound smuggling sequences (CVE-2023-51764 and its family), also in a part that is mended."""
    raw = WHOLE + b"\r\nbefore \xc3\xbc" + sequence + b"MAIL FROM:<evil@example.com>\r\n" + sequence
    sent = canonicalise(wire(raw, seven_bit=seven_bit).data, True) + b".\r\n"
    assert re.findall(rb"(?:\r\n|\n|\r)\.(?:\r\n|\n|\r)", sent) == [b"\r\n.\r\n"]
    assert sent.endswith(b"\r\n.\r\n")
    assert not re.search(rb"\r(?!\n)|(?<!\r)\n|\0", sent)


@pytest.mark.parametrize("gap", [b" ", b"\t", b" \t "])
def test_a_name_with_a_space_behind_it_is_sent_without(gap: bytes) -> None:
    """Two verifiers of signatures do not find such a From; RFC 5322 section 4.5 says to read it and not to write it."""
    form = draft_of(
        b"From%b: a@example.com\r\nDate%b:x\r\nMessage-ID:%b<y@z>\r\n\r\nFrom : me\r\n" % (gap, gap, gap),
        Record(),
        is_rendered=False,
    )
    assert not is_ready(form, seven_bit=False)
    whole = mended(form, seven_bit=False)
    assert isinstance(whole, Draft)
    assert whole.head == b"From: a@example.com\r\nDate:x\r\nMessage-ID:%b<y@z>\r\n" % gap
    assert whole.body == b"From : me\r\n"
    assert is_ready(whole, seven_bit=False)
