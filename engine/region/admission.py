"""What may enter: the boundary check of a submitted batch.

Every item is judged for itself; a bad one is refused with the field, the value and what is allowed, and the others
are accepted. Nothing here touches disk.
"""

from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from engine.config.schema import LimitsConfig
from engine.spool.batches import AcceptItem
from engine.values.address import Address, AddressError, parse_address
from engine.values.message import ItemError
from engine.values.options import OptionError, Options, spread
from engine.values.stream import Stream
from engine.values.submission import Submission

STREAMS = {int(stream) for stream in Stream}
MAX_NAME = 128
MAX_KEY = 256
MAX_AHEAD_MS = 3653 * 86_400_000  # ten years: what is later has a wrong unit
SHOWN = 80


@dataclass(frozen=True, slots=True)
class Admitted:
    """`positions[i]` is the index in the batch of `items[i]`."""

    items: list[AcceptItem]
    positions: list[int]
    errors: list[ItemError]


class Admission:
    """Checks items against the limits."""

    def __init__(self, *, limits: LimitsConfig, streams: frozenset[int], expire_ms: dict[int, int]) -> None:
        self._limits = limits
        self._streams = streams
        self._expire_ms = expire_ms

    def admit(self, submission: Submission, now_ms: int) -> Admitted:
        items: list[AcceptItem] = []
        positions: list[int] = []
        errors: list[ItemError] = []
        commons: _Commons = {}
        for index, (raw, offset) in enumerate(zip(submission.items, submission.offsets, strict=True)):
            try:
                items.append(self._item(raw, offset, now_ms, commons))
            except Refused as refused:
                errors.append(ItemError(index, refused.field, str(refused.value)[:SHOWN], refused.message))
            else:
                positions.append(index)
        return Admitted(items, positions, errors)

    def _item(self, raw: list[object], offset: int, now_ms: int, commons: "_Commons") -> AcceptItem:
        sender, recipients, stream, tenant, campaign, send_at_ms, key, size, options = raw
        try:
            common = commons.get((sender, stream, tenant, campaign))
        except TypeError:  # unhashable, so of the wrong type: the checks name the field
            common = None
        if common is None:
            common = self._common(sender, stream, tenant, campaign)
            commons[sender, stream, tenant, campaign] = common
        if not isinstance(recipients, list | tuple) or not recipients:
            raise Refused("recipients", recipients, "expected at least one address")
        if len(recipients) > self._limits.max_recipients:
            raise Refused("recipients", len(recipients), f"at most {self._limits.max_recipients}")
        if not isinstance(key, str) or len(key) > MAX_KEY:
            raise Refused("key", key, f"expected text of at most {MAX_KEY} characters")
        if not isinstance(size, int) or not 0 < size <= self._limits.max_message_size:
            raise Refused("body", size, f"1 to {self._limits.max_message_size} bytes")
        if not isinstance(send_at_ms, int) or send_at_ms < 0:
            raise Refused("send_at_ms", send_at_ms, "expected unix milliseconds, or 0 for now")
        if send_at_ms > now_ms + MAX_AHEAD_MS:
            raise Refused("send_at_ms", send_at_ms, "expected unix milliseconds at most ten years ahead")
        due_ms = max(now_ms, send_at_ms)
        if len(recipients) == 1:
            address = _address("recipients", recipients[0])
            texts: tuple[str, ...] = (address.text,)
            domains: tuple[str, ...] = (address.domain,)
        else:
            parsed = [_address("recipients", recipient) for recipient in recipients]
            texts = tuple([address.text for address in parsed])
            domains = tuple([address.domain for address in parsed])
        return AcceptItem(
            common.sender,
            texts,
            domains,
            common.stream,
            common.tenant,
            common.campaign,
            offset,
            size,
            due_ms,
            due_ms + common.expire_ms,
            key,
            () if options == [] else _options(options, len(texts)),
        )

    def _common(self, sender: object, stream: object, tenant: object, campaign: object) -> "_Common":
        """Check what the items of a batch mostly share."""
        if not isinstance(sender, str):
            raise Refused("sender", sender, "expected text")
        if sender:
            sender = _address("sender", sender).text
        if type(stream) is not int or stream not in STREAMS or stream not in self._streams:
            raise Refused("stream", stream, "no source of this region serves this stream")
        _name("tenant", tenant, empty=False)
        _name("campaign", campaign, empty=True)
        return _Common(sender, stream, str(tenant), str(campaign), self._expire_ms[stream])


class _Common(NamedTuple):
    """Fields that many items of a batch share, checked once."""

    sender: str
    stream: int
    tenant: str
    campaign: str
    expire_ms: int


_Commons: TypeAlias = dict[tuple[object, object, object, object], _Common]


class Refused(Exception):
    """One item is refused: the field, its value, and what is allowed."""

    def __init__(self, field: str, value: object, message: str) -> None:
        super().__init__(f"{field}: {value!r}: {message}")
        self.field = field
        self.value = value
        self.message = message


def _address(field: str, text: object) -> Address:
    if not isinstance(text, str):
        raise Refused(field, text, "expected an address as text")
    try:
        return parse_address(text)
    except AddressError as error:
        raise Refused(field, text, str(error)) from None


def _options(raw: object, recipients: int) -> tuple[Options | None, ...]:
    if not isinstance(raw, list) or not all(isinstance(one, list) and len(one) == 5 for one in raw):
        raise Refused("options", raw, "expected a list of options")
    try:
        wishes = [Options(*one) for one in raw]
        return spread(wishes, recipients)
    except OptionError as error:
        raise Refused(error.field, error.value, error.message) from None


def _name(field: str, value: object, *, empty: bool) -> None:
    if not isinstance(value, str) or len(value) > MAX_NAME or not (value or empty):
        raise Refused(field, value, f"expected {'0' if empty else '1'} to {MAX_NAME} characters")
    if not value.isprintable():
        raise Refused(field, value, "control characters are not allowed")
