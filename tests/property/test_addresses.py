"""Whatever text comes in: an AddressError, or an address that is safe and stays the same when parsed again."""

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from engine.values.address import AddressError, parse_address

ATEXT = "abcXYZ019!#$%&'*+/=?^_`{|}~-"
LOCALS = st.lists(st.text(ATEXT, min_size=1, max_size=12), min_size=1, max_size=4).map(".".join)
LABELS = st.from_regex(r"\A[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?\Z").filter(lambda label: label[2:4] != "--")
DOMAINS = st.tuples(
    st.lists(LABELS, min_size=1, max_size=4), st.sampled_from(["com", "test", "Example"])
).map(lambda parts: ".".join([*parts[0], parts[1]]))
ANY = st.text(max_size=40) | st.text('ab.@"\\ \r\n\x00[]<>é。', max_size=20)


@given(LOCALS, DOMAINS)
def test_every_plain_address_is_taken(local: str, domain: str) -> None:
    address = parse_address(f"{local}@{domain}")
    assert address == (f"{local}@{domain.lower()}", domain.lower(), False)


@given(ANY | st.tuples(ANY, DOMAINS).map("@".join) | st.tuples(LOCALS, ANY).map("@".join))
def test_what_passes_is_safe_and_stable(text: str) -> None:
    try:
        address = parse_address(text)
    except AddressError:
        return
    assert address.domain.isascii()
    assert address.domain == address.domain.lower()
    assert "." in address.domain
    assert address.text.rpartition("@")[2] == address.domain
    assert len(address.text.encode()) <= 254
    assert len(address.local.encode()) <= 64
    assert not any(unicodedata.category(character) == "Cc" for character in address.text)
    assert address.needs_smtputf8 is not address.local.isascii()
    assert parse_address(address.text) == address
