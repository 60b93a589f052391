"""The pattern language of the bounce rules."""

import pytest

from engine.bounces.phrases import MAX_TEXT, PhraseError, compile_phrase, plain


@pytest.mark.parametrize(
    ("phrase", "text", "found"),
    [
        ("user unknown", "550 5.1.1 <a@b>: User-Unknown!", True),
        ("user unknown", "superuser unknown", False),
        ("user unknown", "user is unknown", False),
        ("user * unknown", "user is unknown", True),
        ("user * unknown", "user unknown", True),
        ("user * unknown", "unknown user", False),
        ("block*", "Blocked by policy", True),
        ("block*", "an unblocked road", False),
        ("your ip * block*", "Your IP 192.0.2.1 is on a blocklist", True),
        ("[TSS04]", "421 4.7.0 [TSS04] Messages", True),
        ("5.7.28", "421 4.5.7.28", True),
        ("5.7.28", "421 5.7.280", False),
        ("doesn't exist", "doesn_t exist", True),
        ("boîte pleine", "BOÎTE PLEINE", True),
        ("a a", "a a", True),
        ("a * a", "a", False),
    ],
)
def test_a_phrase(phrase: str, text: str, found: bool) -> None:
    assert compile_phrase(phrase).is_in(plain(text)) is found


@pytest.mark.parametrize("source", ["", "*", "---", "ab*", "a*b", "***"])
def test_a_phrase_that_says_nothing_is_refused(source: str) -> None:
    with pytest.raises(PhraseError, match="phrase"):
        compile_phrase(source)


def test_time_is_linear_whatever_text_and_phrase() -> None:
    """A pattern of this kind as a regular expression would not end within the age of the universe."""
    phrase = compile_phrase(" ".join(["a *"] * 60) + " z")
    text = plain("a " * 1_000_000)
    assert len(text) <= MAX_TEXT + 2
    assert not phrase.is_in(text)
