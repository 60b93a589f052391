"""What a client submits, and what it gets back."""

from dataclasses import dataclass, field

from engine.values.engagement import Engagement
from engine.values.options import Options
from engine.values.stream import Stream


@dataclass(frozen=True, slots=True)
class Message:
    """A complete RFC 5322 message to one or more recipients.

    Each recipient gets an id of its own. `sender` is the envelope sender ("" is the null reverse-path). `send_at_ms`
    is unix milliseconds, 0 for now. `key` is an optional idempotency key, unique per tenant for seven days: the same
    key with the same recipients is the same message, with other recipients it is refused. `options`
    is empty (no wishes), one value for every recipient, or one per recipient.
    """

    sender: str
    recipients: tuple[str, ...]
    body: bytes
    stream: Stream = Stream.TRANSACTIONAL
    tenant: str = "default"
    campaign: str = ""
    send_at_ms: int = 0
    key: str = ""
    options: tuple[Options, ...] = ()


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file that goes with every message of a campaign. With a `content_id` it is shown in the HTML part, which names
    it as `cid:CONTENT_ID`.
    """

    name: str
    content_type: str
    data: bytes = field(repr=False)
    content_id: str = ""


@dataclass(frozen=True, slots=True)
class CampaignTemplate:
    """One template, many recipients: bodies are rendered at dispatch. Jinja2 source text in the four parts."""

    campaign: str
    tenant: str
    stream: Stream
    sender: str
    header_from: str
    subject: str
    text: str
    html: str = ""
    reply_to: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    attachments: tuple[Attachment, ...] = ()


@dataclass(frozen=True, slots=True)
class CampaignChunk:
    """A numbered, immutable slice of a campaign's recipients: the unit of idempotent submission.

    `fields` has one tuple per recipient, in the order of `field_names`. `digest` is the SHA-256 (first 16 bytes) of
    the slice's content: the same number with another digest is refused. `engagement` is that of all its recipients.
    """

    campaign: str
    tenant: str
    number: int
    digest: bytes
    field_names: tuple[str, ...]
    recipients: tuple[str, ...]
    fields: tuple[tuple[str, ...], ...]
    engagement: Engagement = Engagement.UNKNOWN


@dataclass(frozen=True, slots=True)
class ItemError:
    """Why one item of a batch was refused: index in the batch, field, value (shortened), what is allowed."""

    index: int
    field: str
    value: str
    message: str


KEY_OF_ANOTHER = "stands for a message to other recipients: a new message needs a new key"


@dataclass(frozen=True, slots=True)
class Receipt:
    """The answer to a batch. `region`: where it is, several names with commas between. `ids[i]` are the ids of item i,
    one per recipient, () if it was refused.

    `repeated` is true when the batch had been accepted before under the same key: the ids are those of then.
    `suppressed` are those of the ids that are not sent, because their recipients are on a suppression list.
    `degraded`: it is on one region's disk only, because no other was within reach (`fleet.degraded: accept_local`).
    """

    region: str
    ids: tuple[tuple[int, ...], ...]
    errors: tuple[ItemError, ...] = ()
    repeated: bool = False
    suppressed: tuple[int, ...] = ()
    degraded: bool = False
