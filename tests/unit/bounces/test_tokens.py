import pytest

from engine.bounces.tokens import (
    DAY_MS,
    RETURN_PATH,
    TokenKeys,
    verify_return_path,
)

NOW_MS = 20_000 * DAY_MS + 5
EXPIRE_MS = 14 * DAY_MS
ID = (7 << 48) + 12345
OLD, NEW = (1, b"o" * 32), (2, b"n" * 32)


def check(keys: TokenKeys, local: str, now_ms: int = NOW_MS) -> object:
    return verify_return_path(keys, local, now_ms=now_ms, expire_ms=EXPIRE_MS)


def test_a_return_path_names_its_message_in_any_case() -> None:
    keys = TokenKeys([NEW])
    local = keys.sign_return_path(ID, NOW_MS)
    assert len(local) == 36
    assert local == local.lower()
    for form in (local, local.upper()):
        assert check(keys, form) == (ID, False)


def test_no_changed_character_is_accepted() -> None:
    keys = TokenKeys([NEW])
    local = keys.sign_return_path(ID, NOW_MS)
    for position in range(2, len(local)):
        for letter in "abcdefghijklmnopqrstuvwxyz234567":
            if letter != local[position]:
                assert check(keys, local[:position] + letter + local[position + 1 :]) is None


@pytest.mark.parametrize("local", ["", "b+", "b+" + "a" * 34, "b+" + "1" * 34, "postmaster", "b+" + "ſ" * 34])
def test_other_local_parts_are_no_tokens(local: str) -> None:
    assert check(TokenKeys([NEW]), local) is None


def test_keys_are_rotated() -> None:
    local = TokenKeys([OLD]).sign_return_path(ID, NOW_MS)
    assert check(TokenKeys([NEW, OLD]), local) == (ID, False)
    assert check(TokenKeys([NEW]), local) is None
    assert check(TokenKeys([(1, NEW[1])]), local) is None
    assert TokenKeys([NEW, OLD]).sign_return_path(ID, NOW_MS) == TokenKeys([NEW]).sign_return_path(ID, NOW_MS)


@pytest.mark.parametrize(
    ("days", "is_expired"), [(0, False), (14, False), (16, True), (-1, False), (-2, True)]
)
def test_a_return_path_is_good_for_a_time(days: int, is_expired: bool) -> None:
    keys = TokenKeys([NEW])
    local = keys.sign_return_path(ID, NOW_MS)
    assert check(keys, local, NOW_MS + days * DAY_MS) == (ID, is_expired)


def test_a_token_for_one_purpose_is_none_for_another() -> None:
    keys = TokenKeys([NEW])
    token = keys.sign(b"something else", b"payload")
    assert keys.verify(b"something else", token) == b"payload"
    assert keys.verify(RETURN_PATH, token) is None
