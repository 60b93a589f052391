from typing import Any

import pytest

from engine.bounces.tokens import DAY_MS, TokenKeys
from engine.bounces.unsubscribe import has_own_field, header_fields, make_token, verify_token

KEYS = TokenKeys([(1, b"k" * 32)])
NOW_MS = 20_000 * DAY_MS + 7
WHO: dict[str, Any] = {
    "tenant": "acme",
    "stream": 2,
    "address": "grüße+x@example.com",
    "message_id": 1 << 60,
    "accepted_ms": NOW_MS,
}


def check(token: str, now_ms: int = NOW_MS) -> Any:
    return verify_token(KEYS, token, now_ms=now_ms, expire_ms=30 * DAY_MS)


def test_a_token_says_who_unsubscribes_from_what() -> None:
    token = make_token(KEYS, **WHO)
    assert check(token) == ("acme", 2, "grüße+x@example.com", 1 << 60, False)
    assert token == make_token(KEYS, **{**WHO, "accepted_ms": NOW_MS + 5})
    assert check(token, NOW_MS + 32 * DAY_MS).is_expired
    assert not check(token, NOW_MS + 30 * DAY_MS).is_expired


def test_no_other_text_is_a_token() -> None:
    token = make_token(KEYS, **WHO)
    for other in ("", "a", "é", token[:-1], token + "A", token + "=", token[::-1], "A" * 5000, token + "\n"):
        assert check(other) is None
    for position in range(len(token) - 1):
        changed = "A" if token[position] != "A" else "B"
        assert check(token[:position] + changed + token[position + 1 :]) is None
    assert verify_token(TokenKeys([(2, b"k" * 32)]), token, now_ms=NOW_MS, expire_ms=DAY_MS) is None


def test_header_fields() -> None:
    fields = header_fields("https://news.example.com/u/" + "t" * 300)
    lines = fields.split(b"\r\n")
    assert lines[0] == b"List-Unsubscribe:"
    assert lines[1].startswith(b" <https://news.example.com/u/ttt")
    assert lines[2:] == [b"List-Unsubscribe-Post: List-Unsubscribe=One-Click", b""]
    with pytest.raises(ValueError, match="does not fit"):
        header_fields("https://x.example/" + "t" * 1000)


@pytest.mark.parametrize(
    ("message", "has"),
    [
        (b"Subject: x\r\nlist-UNSUBSCRIBE: <https://x>\r\n\r\nb", True),
        (b"List-Unsubscribe : <https://x>\n\nb", True),
        (b"Subject: x\r\n\r\nList-Unsubscribe: in the body", False),
        (b"X-List-Unsubscribe: x\r\n\r\n", False),
        (b"", False),
    ],
)
def test_a_message_may_have_a_field_of_its_own(message: bytes, has: bool) -> None:
    assert has_own_field(message) is has
