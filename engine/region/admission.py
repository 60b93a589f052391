"""What may enter: the boundary check of a submitted batch.

Every item is judged for itself; a bad one is refused with the field, the value and what is allowed, and the others
are accepted. Nothing here touches disk.
"""

from dataclasses import dataclass

from engine.config.schema import LimitsConfig
from engine.spool.batches import AcceptItem
from engine.values.address import AddressError, parse_address
from engine.values.message import ItemError
from engine.values.options import OptionError, Options, spread
from engine.values.stream import Stream
from engine.values.submission import Submission

STREAMS = {int(stream) for stream in Stream}
MAX_NAME = 128
MAX_KEY = 256
SHOWN = 80


@dataclass(frozen=True, slots=True)
class Admitted:
    """`positions[i]` is the index in the batch of `items[i]`."""

    items: list[AcceptItem]
    positions: list[int]
    errors: list[ItemError]


class Admission:
    """Checks items against the limits; remembers domains of addresses it has parsed lately (bounded)."""

    def __init__(self, *, limits: LimitsConfig, streams: frozenset[int], expire_ms: dict[int, int]) -> None:
        self._limits = limits
        self._streams = streams
        self._expire_ms = expire_ms

    def admit(self, submission: Submission, now_ms: int) -> Admitted:
        items: list[AcceptItem] = []
        positions: list[int] = []
        errors: list[ItemError] = []
        for index, (raw, offset) in enumerate(zip(submission.items, submission.offsets, strict=True)):
            try:
                items.append(self._item(raw, offset, now_ms))
            except Refused as refused:
                errors.append(ItemError(index, refused.field, str(refused.value)[:SHOWN], refused.message))
            else:
                positions.append(index)
        return Admitted(items, positions, errors)

    def _item(self, raw: list[object], offset: int, now_ms: int) -> AcceptItem:
        sender, recipients, stream, tenant, campaign, send_at_ms, key, size, options = raw
        if not isinstance(sender, str):
            raise Refused("sender", sender, "expected text")
        if sender:
            sender = _address("sender", sender)[0]
        if not isinstance(recipients, list | tuple) or not recipients:
            raise Refused("recipients", recipients, "expected at least one address")
        if len(recipients) > self._limits.max_recipients:
            raise Refused("recipients", len(recipients), f"at most {self._limits.max_recipients}")
        if stream not in STREAMS or stream not in self._streams:
            raise Refused("stream", stream, "no source of this region serves this stream")
        _name("tenant", tenant, empty=False)
        _name("campaign", campaign, empty=True)
        if not isinstance(key, str) or len(key) > MAX_KEY:
            raise Refused("key", key, f"expected text of at most {MAX_KEY} characters")
        if not isinstance(size, int) or not 0 < size <= self._limits.max_message_size:
            raise Refused("body", size, f"1 to {self._limits.max_message_size} bytes")
        if not isinstance(send_at_ms, int) or send_at_ms < 0:
            raise Refused("send_at_ms", send_at_ms, "expected unix milliseconds, or 0 for now")
        due_ms = max(now_ms, send_at_ms)
        parsed = [_address("recipients", recipient) for recipient in recipients]
        return AcceptItem(
            sender=sender,
            recipients=tuple(address for address, _ in parsed),
            domains=tuple(domain for _, domain in parsed),
            stream=int(str(stream)),
            tenant=str(tenant),
            campaign=str(campaign),
            offset=offset,
            length=size,
            due_ms=due_ms,
            expires_ms=due_ms + self._expire_ms[int(str(stream))],
            key=key,
            options=_options(options, len(parsed)),
        )


class Refused(Exception):
    """One item is refused: the field, its value, and what is allowed."""

    def __init__(self, field: str, value: object, message: str) -> None:
        super().__init__(f"{field}: {value!r}: {message}")
        self.field = field
        self.value = value
        self.message = message


def _address(field: str, text: object) -> tuple[str, str]:
    if not isinstance(text, str):
        raise Refused(field, text, "expected an address as text")
    try:
        address = parse_address(text)
    except AddressError as error:
        raise Refused(field, text, str(error)) from None
    return address.text, address.domain


def _options(raw: object, recipients: int) -> tuple[Options | None, ...]:
    if raw == []:
        return ()
    if not isinstance(raw, list) or not all(isinstance(one, list) and len(one) == 5 for one in raw):
        raise Refused("options", raw, "expected a list of options")
    try:
        return spread([Options(*one) for one in raw], recipients)
    except OptionError as error:
        raise Refused(error.field, error.value, error.message) from None


def _name(field: str, value: object, *, empty: bool) -> None:
    if not isinstance(value, str) or len(value) > MAX_NAME or not (value or empty):
        raise Refused(field, value, f"expected {'0' if empty else '1'} to {MAX_NAME} characters")
    if not value.isprintable():
        raise Refused(field, value, "control characters are not allowed")
