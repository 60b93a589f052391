"""Lists of mailboxes: what stands there, and an error for what is ambiguous."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.campaign.mailboxes import split_mailboxes
from engine.values.address import AddressError


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a@b.example", [("", "a@b.example")]),
        ("A B <a@b.example>, c@d.example", [("A B", "a@b.example"), ("", "c@d.example")]),
        ('"B, A" <a@b.example>', [("B, A", "a@b.example")]),
        (r'"A \"x\" \\" <a@b.example>', [(r'A "x" \ '.strip(), "a@b.example")]),
        ("a@b.example (home, (nested) \\) x), c@d.example", [("", "a@b.example"), ("", "c@d.example")]),
        (
            "Team: a@b.example, C <c@d.example>;, e@f.example",
            [("", "a@b.example"), ("C", "c@d.example"), ("", "e@f.example")],
        ),
        ("undisclosed-recipients:;", []),
        ('"a,b"@c.example', [("", '"a,b"@c.example')]),
        ('X <"a>b"@c.example>', [("X", '"a>b"@c.example')]),
        ("Müller, <m@b.example>", [("", "Müller"), ("", "m@b.example")]),
        (" ,, a@b.example,", [("", "a@b.example")]),
        ("x@y.example <a@b.example>", [("x@y.example", "a@b.example")]),
        ("<>", [("", "")]),
        ("[News] A B <a@b.example>", [("[News] A B", "a@b.example")]),
        ("a@[192.0.2.1]", [("", "a@[192.0.2.1]")]),
    ],
)
def test_lists(text: str, expected: list[tuple[str, str]]) -> None:
    assert split_mailboxes(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "A <a@b.example",
        "A <a@b.example> <c@d.example>",
        "A <a@b.example> c@d.example",
        "A <a@b.example <c@d.example>",
        'a@b.example, "open',
        "a@b.example (open",
        "(" * 9 + ")" * 9,
        "a@b.example>",
        "a@b.example)c@d.example",
        "g: a@b.example",
        "a@b.example;",
        "g: h: a@b.example;",
    ],
)
def test_what_is_ambiguous_is_an_error(text: str) -> None:
    with pytest.raises(AddressError):
        split_mailboxes(text)


@given(st.text('ab@. ,;:<>()"\\[]', max_size=30) | st.text(max_size=30))
def test_any_text_ends(text: str) -> None:
    try:
        found = split_mailboxes(text)
    except AddressError:
        return
    assert len(found) <= len(text)
