"""Message ids: one message to one recipient.

An id is an unsigned 64-bit integer, `region_number << 48 | seq`; seq starts at 1, is dense and never reused, so the
ids that a region accepted are one contiguous range and can be audited one by one. The text form is 16 hex digits.
"""

SEQ_BITS = 48
SEQ_MASK = (1 << SEQ_BITS) - 1
MAX_REGION_NUMBER = (1 << 15) - 1


def make_id(region_number: int, seq: int) -> int:
    """Return the id; both parts must be in range (region 1..32767, seq 1..2^48-1)."""
    if not 1 <= region_number <= MAX_REGION_NUMBER:
        raise ValueError(f"region number {region_number}: allowed are 1 to {MAX_REGION_NUMBER}")
    if not 1 <= seq <= SEQ_MASK:
        raise ValueError(f"sequence {seq}: allowed are 1 to {SEQ_MASK}")
    return region_number << SEQ_BITS | seq


def region_of(message_id: int) -> int:
    return message_id >> SEQ_BITS


def seq_of(message_id: int) -> int:
    return message_id & SEQ_MASK


def format_id(message_id: int) -> str:
    return f"{message_id:016x}"


def parse_id(text: str) -> int:
    """Parse the 16 hex digits of `format_id`; raises ValueError that names the text."""
    if len(text) != 16:
        raise ValueError(f"message id {text!r}: expected 16 hex digits")
    try:
        return int(text, 16)
    except ValueError:
        raise ValueError(f"message id {text!r}: expected 16 hex digits") from None
