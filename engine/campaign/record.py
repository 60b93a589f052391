"""Rendering at dispatch: a stored record of a campaign becomes its message.

The pool calls a RecordRenderer for each record whose content is [campaign number, [field values]]. Campaigns
are compiled at first use; the most recently used are kept.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, cast

from engine.campaign.render import Renderer
from engine.values.message import Attachment, CampaignTemplate
from engine.values.stream import Stream

MAX_CAMPAIGNS = 256
MAX_ATTACHED_BYTES = 64 << 20  # of the campaigns that are kept, but for the one used last


class StoredCampaign(Protocol):
    """A campaign as the spool holds it (engine/spool/batches.py, CampaignRecord)."""

    @property
    def campaign(self) -> str: ...
    @property
    def tenant(self) -> str: ...
    @property
    def stream(self) -> int: ...
    @property
    def sender(self) -> str: ...
    @property
    def field_names(self) -> Sequence[str]: ...
    @property
    def template(self) -> Mapping[str, object]: ...


class CampaignSource(Protocol):
    """Where campaigns are read from (engine/spool: SpoolReader)."""

    def campaign(self, number: int) -> Any:
        """The StoredCampaign of that number."""


class RecordRenderer:
    """Callable: record -> message. Raises RenderError; what the source raises comes through."""

    def __init__(self, source: CampaignSource, link_of: Callable[[Any], str] = lambda record: "") -> None:
        """`link_of`: the unsubscribe link of a record's recipient, "" for none."""
        self._source = source
        self._link_of = link_of
        self._compiled: OrderedDict[int, tuple[Renderer, tuple[str, ...]]] = OrderedDict()
        self._attached_bytes = 0

    def __call__(self, record: Any) -> bytes:
        number, values = record.content
        if number in self._compiled:
            self._compiled.move_to_end(number)
            renderer, names = self._compiled[number]
        else:
            renderer, names = self._compile(number)
        return renderer.render(
            dict(zip(names, values, strict=True)),
            record.recipient,
            record.id,
            record.accepted_ms,
            unsubscribe_url=self._link_of(record),
        )

    def _compile(self, number: int) -> tuple[Renderer, tuple[str, ...]]:
        stored: StoredCampaign = self._source.campaign(number)
        entry = Renderer(template_of(stored)), tuple(stored.field_names)
        self._compiled[number] = entry
        self._attached_bytes += entry[0].attached_bytes
        while len(self._compiled) > MAX_CAMPAIGNS or (
            self._attached_bytes > MAX_ATTACHED_BYTES and len(self._compiled) > 1
        ):
            _, (oldest, _) = self._compiled.popitem(last=False)
            self._attached_bytes -= oldest.attached_bytes
        return entry


def template_of(stored: StoredCampaign) -> CampaignTemplate:
    """The template that a stored campaign holds."""
    parts = stored.template
    return CampaignTemplate(
        campaign=stored.campaign,
        tenant=stored.tenant,
        stream=Stream(stored.stream),
        sender=stored.sender,
        header_from=str(parts["header_from"]),
        subject=str(parts["subject"]),
        text=str(parts["text"]),
        html=str(parts.get("html", "")),
        reply_to=str(parts.get("reply_to", "")),
        headers=dict(cast(Mapping[str, str], parts.get("headers", {}))),
        attachments=tuple(
            Attachment(*fields) for fields in cast(Sequence[Sequence[Any]], parts.get("attachments", ()))
        ),
    )


def parts_of(template: CampaignTemplate) -> dict[str, object]:
    """The parts of a template as a campaign is stored with them; `template_of` reads them."""
    parts: dict[str, object] = {
        "header_from": template.header_from,
        "subject": template.subject,
        "text": template.text,
        "html": template.html,
        "reply_to": template.reply_to,
        "headers": dict(template.headers),
    }
    if template.attachments:  # without any, the stored form is that of earlier releases
        parts["attachments"] = [(a.name, a.content_type, a.data, a.content_id) for a in template.attachments]
    return parts
