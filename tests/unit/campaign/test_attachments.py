"""The MIME structure of a campaign's messages with files and images (RFC 2046, 2183, 2387, 2392)."""

import email
import email.policy
from dataclasses import replace
from email.message import EmailMessage

import pytest

from engine.campaign.attachments import RenderError
from engine.campaign.headers import has_short_lines
from engine.campaign.record import RecordRenderer, parts_of, template_of
from engine.campaign.render import Renderer
from engine.spool.batches import CampaignRecord
from engine.values.message import Attachment, CampaignTemplate
from engine.values.stream import Stream

DATA = bytes(range(256)) * 5
PDF = Attachment('Übersicht; "2026".pdf', "application/pdf", DATA)
NOTE = Attachment("note.txt", "text/plain", b"no line end")
LOGO = Attachment("logo.png", "image/png", b"\x89PNG" + DATA, "logo@example.com")
TEMPLATE = CampaignTemplate(
    campaign="c",
    tenant="t",
    stream=Stream.MARKETING,
    sender="b@example.com",
    header_from="Shop <s@example.com>",
    subject="Hi",
    text="Dear {{ name }}\n",
    html='<p>{{ name }} <img src="cid:logo@example.com"></p>',
)


def rendered(*attachments: Attachment, **changes: str) -> EmailMessage:
    renderer = Renderer(replace(TEMPLATE, attachments=attachments, **changes))
    data = renderer.render({"name": "Ann & =_"}, "ann@example.org", 7, 1_700_000_000_000)
    assert data.isascii()
    assert has_short_lines(data)
    message = email.message_from_bytes(data, policy=email.policy.SMTP)
    assert all(not part.defects for part in message.walk())
    return message  # type: ignore[return-value]


def structure(message: EmailMessage) -> object:
    if not message.is_multipart():
        return message.get_content_type()
    return [message.get_content_subtype(), *map(structure, message.iter_parts())]  # type: ignore[arg-type]


def test_structures() -> None:
    both = ["alternative", "text/plain", "text/html"]
    assert structure(rendered()) == both
    assert structure(rendered(PDF)) == ["mixed", both, "application/pdf"]
    assert structure(rendered(PDF, NOTE, html="")) == ["mixed", "text/plain", "application/pdf", "text/plain"]
    shown = ["related", "text/html", "image/png"]
    assert structure(rendered(LOGO, text="")) == shown
    assert structure(rendered(LOGO)) == ["alternative", "text/plain", shown]
    assert structure(rendered(LOGO, NOTE)) == ["mixed", ["alternative", "text/plain", shown], "text/plain"]


def test_files_arrive_with_their_names_and_octets() -> None:
    message = rendered(PDF, NOTE, LOGO)
    pdf, note = message.iter_attachments()
    assert pdf.get_filename() == PDF.name
    assert pdf["content-type"].params["name"] == PDF.name
    assert pdf.get_payload(decode=True) == PDF.data
    assert pdf.get_content_disposition() == "attachment"
    assert note.get_payload(decode=True) == NOTE.data
    [image] = [part for part in message.walk() if part.get_content_type() == "image/png"]
    assert image["content-id"] == "<logo@example.com>"
    assert image.get_content_disposition() == "inline"
    assert image.get_payload(decode=True) == LOGO.data
    body = message.get_body(("html",))
    assert body is not None
    assert "Ann &amp; =_" in body.get_content()


def test_an_empty_file() -> None:
    [part] = rendered(Attachment("e", "application/x-empty", b"")).iter_attachments()
    assert part.get_payload(decode=True) == b""


def test_two_images_need_two_names() -> None:
    with pytest.raises(RenderError, match="each name once"):
        rendered(LOGO, LOGO)


def test_a_template_is_stored_and_read_with_its_attachments() -> None:
    template = replace(TEMPLATE, attachments=(PDF, LOGO))
    stored = CampaignRecord("c", "t", int(Stream.MARKETING), "b@example.com", ["name"], parts_of(template))
    assert template_of(stored) == template
    assert "attachments" not in parts_of(TEMPLATE)


def test_compiled_campaigns_with_large_attachments_are_not_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("engine.campaign.record.MAX_ATTACHED_BYTES", 10_000)
    large = replace(TEMPLATE, attachments=(Attachment("a", "image/png", bytes(5000)),))
    compiled: list[int] = []

    class Source:
        def campaign(self, number: int) -> CampaignRecord:
            compiled.append(number)
            return CampaignRecord(f"c{number}", "t", 2, "b@example.com", ["name"], parts_of(large))

    class Record:
        recipient = "a@example.org"
        id = 1
        accepted_ms = 1

        def __init__(self, number: int) -> None:
            self.content = [number, ["Ann"]]

    render = RecordRenderer(Source())
    for number in (1, 1, 2, 2, 1):
        render(Record(number))
    assert compiled == [1, 2, 1]
    assert render._attached_bytes < 10_000
