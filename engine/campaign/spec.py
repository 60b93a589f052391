"""campaign.yaml: what to send, as whom, to whom. Everything wrong with it is reported at once.

    id: spring-sale              # with the tenant the name of the campaign; another content needs another id
    tenant: shop                 # default: default
    stream: marketing            # default: marketing
    sender: bounces@example.com  # envelope sender
    from: Shop <news@example.com>
    reply_to: help@example.com
    subject: "{{ name }}, spring is here"
    text_file: body.txt.j2       # or text: |
    html_file: body.html.j2      # or html: |
    headers: {List-Unsubscribe: "<https://example.com/u/{{ token }}>"}
    attachments: [{file: terms.pdf}, {file: logo.png, inline: logo}]   # the HTML shows it as cid:logo
    recipients: {file: recipients.csv, address_column: email, format: csv, delimiter: ","}
        # engagement: opens, or {column: last_open, engaged: 2026-09-01, unengaged: 2026-03-01}

Without a text part one is made from the HTML (engine/campaign/plain_text.py); `text: ""` sends HTML alone.
Files are looked for beside campaign.yaml. The templates are checked here; whether the recipients have the
fields that they want, when the file is opened.
"""

import mimetypes
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from engine.campaign.attachments import MAX_BYTES, RenderError
from engine.campaign.engagement import EngagementRule, read_limit, rule_of
from engine.campaign.headers import mailbox
from engine.campaign.plain_text import html_to_text
from engine.campaign.recipients import FORMATS, SUFFIXES, field_name
from engine.campaign.render import Renderer, template_variables
from engine.config.checks import Problem
from engine.config.load import translate
from engine.config.strict_yaml import YamlError, read_yaml
from engine.values.address import parse_address
from engine.values.message import Attachment, CampaignTemplate
from engine.values.stream import Stream

MAX_NAME = 128


class SpecError(Exception):
    """The campaign cannot be sent. `problems` has every reason."""

    def __init__(self, file: str, problems: tuple[Problem, ...]) -> None:
        super().__init__(file, problems)
        self.file = file
        self.problems = problems

    def __str__(self) -> str:
        count = len(self.problems)
        head = f"{self.file}: {count} problem{'s' if count != 1 else ''}"
        return "\n".join([head, *(f"  {problem}" for problem in self.problems)])


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class EngagementSpec(_Section):
    """The column alone, or with the limits of the classes: two numbers or two days."""

    column: str = Field(min_length=1)
    engaged: int | float | str | date = 1
    unengaged: int | float | str | date | None = None

    @field_validator("engaged", "unengaged")
    @classmethod
    def _limit(cls, value: float | str | date | None) -> float | str | date | None:
        if value is not None:
            read_limit(str(value))
        return value

    @model_validator(mode="after")
    def _order(self) -> "EngagementSpec":
        self.rule()
        return self

    def rule(self) -> EngagementRule:
        return rule_of(
            field_name(self.column),
            read_limit(str(self.engaged)),
            None if self.unengaged is None else read_limit(str(self.unengaged)),
        )


class RecipientsSpec(_Section):
    """Where the recipients are."""

    file: str
    address_column: str = ""
    format: str = ""
    delimiter: str = ""
    engagement: EngagementSpec | None = None

    @field_validator("engagement", mode="before")
    @classmethod
    def _engagement(cls, value: object) -> object:
        return {"column": value} if isinstance(value, str) else value

    @field_validator("format")
    @classmethod
    def _format(cls, value: str) -> str:
        if value not in ("", *FORMATS):
            raise ValueError(f"allowed are {', '.join(FORMATS)}")
        return value

    @field_validator("delimiter")
    @classmethod
    def _delimiter(cls, value: str) -> str:
        if value and (len(value) != 1 or value in '"\r\n'):
            raise ValueError("allowed is one character")
        return value


class AttachmentSpec(_Section):
    """A file that goes with every message. `name` and `type`: by default those of the file."""

    file: str
    name: str = ""
    type: str = ""
    inline: str = ""


class CampaignSpec(_Section):
    """The keys of campaign.yaml."""

    id: str
    tenant: str = "default"
    stream: str = "marketing"
    sender: str
    from_: str = Field(alias="from")
    reply_to: str = ""
    subject: str
    text: str = ""
    text_file: str = ""
    html: str = ""
    html_file: str = ""
    headers: dict[str, str] = {}
    attachments: list[AttachmentSpec] = []
    recipients: RecipientsSpec

    @field_validator("id", "tenant")
    @classmethod
    def _name(cls, value: str) -> str:
        if not 1 <= len(value) <= MAX_NAME or not value.isprintable():
            raise ValueError(f"allowed are 1 to {MAX_NAME} printable characters")
        return value

    @field_validator("stream")
    @classmethod
    def _stream(cls, value: str) -> str:
        return str(Stream.parse(value))

    @field_validator("sender")
    @classmethod
    def _sender(cls, value: str) -> str:
        return parse_address(value).text if value else ""

    @field_validator("from_", "reply_to")
    @classmethod
    def _mailbox(cls, value: str) -> str:
        if value and "{" not in value:
            mailbox(value)
        return value


@dataclass(frozen=True, slots=True)
class Campaign:
    """A checked campaign. `field_names` are the fields that the template wants of each recipient, sorted."""

    template: CampaignTemplate
    field_names: tuple[str, ...]
    recipients_path: Path
    address_column: str
    format: str
    delimiter: str
    engagement: EngagementRule | None = None


def load_campaign(path: Path) -> Campaign:
    """Read and check a campaign.yaml; raises SpecError."""
    try:
        data = read_yaml(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(str(path), (Problem("", str(path), f"cannot be read: {error}"),)) from error
    except YamlError as error:
        raise SpecError(
            str(path), (Problem(error.place, str(path), f"not YAML: {error.message}"),)
        ) from error
    if not isinstance(data, Mapping):
        raise SpecError(str(path), (Problem("", data, "allowed is a mapping with id, sender, from, ..."),))
    problems: list[Problem] = []
    spec: CampaignSpec | None = None
    try:
        spec = CampaignSpec.model_validate(data)
    except ValidationError as error:
        problems += [
            Problem(p.path, p.value, p.message.replace("from_", "from"))
            for p in translate(error, CampaignSpec)
        ]
    attachments = _attachments(data, path.parent, problems)
    texts = {part: _content(data, part, path.parent, problems) for part in ("text", "html")}
    if not data.keys() & {"text", "text_file", "html", "html_file"}:
        problems.append(Problem("text", None, "required is a text or an HTML part, here or in a file"))
    recipients_path = _recipients_path(data, path.parent, problems)
    if spec is None or problems:
        raise SpecError(str(path), tuple(problems))
    template = CampaignTemplate(
        campaign=spec.id,
        tenant=spec.tenant,
        stream=Stream.parse(spec.stream),
        sender=spec.sender,
        header_from=spec.from_,
        subject=spec.subject,
        text=texts["text"],
        html=texts["html"],
        reply_to=spec.reply_to,
        headers=spec.headers,
        attachments=attachments,
    )
    if texts["html"] and not data.keys() & {"text", "text_file"}:
        template = _with_text(path, template)
    try:
        field_names = tuple(sorted(template_variables(template)))
        Renderer(template)
    except RenderError as error:
        raise SpecError(str(path), (Problem(error.part, _shown(data, error.part), error.message),)) from None
    return Campaign(
        template=template,
        field_names=field_names,
        recipients_path=recipients_path,
        address_column=spec.recipients.address_column,
        format=spec.recipients.format,
        delimiter=spec.recipients.delimiter,
        engagement=spec.recipients.engagement.rule() if spec.recipients.engagement is not None else None,
    )


def _content(data: Mapping[str, object], part: str, directory: Path, problems: list[Problem]) -> str:
    """The source of a part, written in place or in a file."""
    written, file = data.get(part), data.get(f"{part}_file")
    if written is not None and file is not None:
        problems.append(Problem(f"{part}_file", file, f"allowed is only one of {part} and {part}_file"))
    if isinstance(file, str) and file:
        try:
            return (directory / file).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            problems.append(Problem(f"{part}_file", file, f"cannot be read: {error}"))
    return written if isinstance(written, str) else ""


def _with_text(path: Path, template: CampaignTemplate) -> CampaignTemplate:
    """With a text part made from the HTML; raises SpecError if that is no template."""
    try:
        template_variables(template)
    except RenderError:
        return template  # reported as it is
    with_text = replace(template, text=html_to_text(template.html))
    try:
        template_variables(with_text)
        Renderer(replace(with_text, html="", attachments=()))
    except RenderError as error:
        if error.part != "text":
            return with_text  # an error of its own, reported as such
        reason = f"none can be made from the HTML ({error.message}): write one, or an empty one for none"
        raise SpecError(str(path), (Problem("text", None, reason),)) from None
    return with_text


def _attachments(
    data: Mapping[str, object], directory: Path, problems: list[Problem]
) -> tuple[Attachment, ...]:
    """Entries with the wrong shape are passed over: the schema reports them."""
    entries = data.get("attachments")
    found = []
    for index, entry in enumerate(entries if isinstance(entries, list) else ()):
        file = entry.get("file") if isinstance(entry, Mapping) else None
        if not isinstance(file, str):
            continue
        place = f"attachments[{index}].file"
        path = directory / file
        try:
            if path.stat().st_size > MAX_BYTES:
                problems.append(
                    Problem(place, file, f"larger than all attachments may be ({MAX_BYTES} bytes)")
                )
                continue
            content = path.read_bytes()
        except OSError as error:
            problems.append(Problem(place, file, f"cannot be read: {error.strerror}"))
            continue
        kind = str(entry.get("type") or mimetypes.guess_type(file)[0] or "application/octet-stream")
        found.append(
            Attachment(str(entry.get("name") or path.name), kind, content, str(entry.get("inline") or ""))
        )
    return tuple(found)


def _recipients_path(data: Mapping[str, object], directory: Path, problems: list[Problem]) -> Path:
    section = data.get("recipients")
    file = section.get("file") if isinstance(section, Mapping) else None
    if not isinstance(section, Mapping) or not isinstance(file, str):
        return directory
    path = directory / file
    if not path.exists():
        problems.append(Problem("recipients.file", file, f"there is no such file in {directory.absolute()}"))
    elif not path.is_file():
        reason = "allowed is a file: to go on after an interruption it is read again, which a pipe cannot be"
        problems.append(Problem("recipients.file", file, reason))
    elif not section.get("format") and path.suffix.lower() not in SUFFIXES:
        problems.append(
            Problem("recipients.format", None, f"the file's name does not say it; allowed: {FORMATS}")
        )
    return path


def _shown(data: Mapping[str, object], part: str) -> object:
    """What stands in the file for a part that a template error names."""
    section, _, name = part.partition(".")
    value = data.get(section, data.get(f"{section}_file"))
    return value.get(name) if name and isinstance(value, Mapping) else value
