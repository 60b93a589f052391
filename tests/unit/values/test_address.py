"""Addresses at the boundary: what is taken, in which form, and what is refused."""

import pickle

import pytest

from engine.values.address import Address, AddressError, parse_address

LABEL = "a" * 63


@pytest.mark.parametrize(
    ("text", "expected", "domain"),
    [
        ("user@example.com", "user@example.com", "example.com"),
        ("User@EXAMPLE.Com", "User@example.com", "example.com"),
        ("a.b+c=d'e!f@x.example", "a.b+c=d'e!f@x.example", "x.example"),
        ("u@1.2.example", "u@1.2.example", "1.2.example"),
        ('"user"@example.com', "user@example.com", "example.com"),
        ('"a b"@example.com', '"a b"@example.com', "example.com"),
        ('"a@b"@example.com', '"a@b"@example.com', "example.com"),
        (r'"a\"b"@example.com', r'"a\"b"@example.com', "example.com"),
        (r'"a\ b"@example.com', '"a b"@example.com', "example.com"),
        ("user@Bücher.example", "user@xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("user@xn--bcher-kva.example", "user@xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("user@faß.example", "user@xn--fa-hia.example", "xn--fa-hia.example"),
        ("user@例え。テスト", "user@xn--r8jz45g.xn--zckzah", "xn--r8jz45g.xn--zckzah"),
        ("x" * 64 + "@example.com", "x" * 64 + "@example.com", "example.com"),
        (f"u@{LABEL}.example", f"u@{LABEL}.example", f"{LABEL}.example"),
    ],
)
def test_normal_form(text: str, expected: str, domain: str) -> None:
    assert parse_address(text) == Address(expected, domain, False)


def test_utf8_local_part_is_flagged_and_composed() -> None:
    address = parse_address("bjo\u0308rn@example.com")
    assert address == Address("bj\u00f6rn@example.com", "example.com", True)
    assert address.local == "bj\u00f6rn"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "user",
        "@example.com",
        "user@",
        "user@localhost",
        "user@[192.0.2.1]",
        "user@192.0.2.1",
        "a..b@example.com",
        ".a@example.com",
        "a.@example.com",
        "a b@example.com",
        " user@example.com",
        "user@example.com ",
        "user@example..com",
        "user@-a.example",
        "user@a-.example",
        "user@a_b.example",
        "user@example.com.",
        "a@b@example.com",
        "a,b@example.com",
        "<user@example.com>",
        '"a"b"@example.com',
        '"a@example.com',
        "user@xn--a.example",
        "user@xn--bcher-kvA\u0301.example",
        "x" * 65 + "@example.com",
        f"u@{LABEL}a.example",
        "user@a\u200b.example",
        "us\u200ber@example.com",
        "us\u00a0er@example.com",
        "us\ud800er@example.com",
        "user@exam\u2024ple.com/x",
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(AddressError):
        parse_address(text)


@pytest.mark.parametrize("code", [*range(0x20), 0x7F, *range(0x80, 0xA0), 0x2028, 0x2029])
def test_no_control_character_anywhere(code: int) -> None:
    character = chr(code)
    for text in (
        f"us{character}er@example.com",
        f"user@exam{character}ple.com",
        f"user@example.com{character}",
        f"{character}user@example.com",
        f'"us{character}er"@example.com',
        f'"us\\{character}er"@example.com',
    ):
        with pytest.raises(AddressError):
            parse_address(text)


def test_lengths_are_in_octets_of_the_path() -> None:
    domain = ".".join(["a" * 60] * 4)
    local = "u" * (254 - len(domain) - 1)
    assert len(parse_address(f"{local}@{domain}").text) == 254
    with pytest.raises(AddressError, match="254"):
        parse_address(f"{local}u@{domain}")
    with pytest.raises(AddressError, match="64"):
        parse_address("é" * 33 + "@example.com")
    with pytest.raises(AddressError):
        parse_address("a@" + "b" * 100_000 + ".example")


def test_errors_can_cross_a_process_boundary() -> None:
    with pytest.raises(AddressError) as caught:
        parse_address("nobody")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value) == "no @"
