"""Phrases: the pattern language of the bounce rules. Linear in the length of the text, whatever the pattern.

A text is made plain first: lower case, everything that is no letter or digit becomes one space, a space at both
ends. `550 5.1.1 <a@b>: User unknown` is ` 550 5 1 1 a b user unknown `. A phrase is words in that form:

    user unknown          these words in a row
    account * disabled    `account`, and anywhere behind it `disabled`
    block*                a word that begins so (three letters at least)

Regular expressions were refused: 500 of them per reply are slow, one of them can be catastrophic, and most of
what they say here is punctuation. A phrase is matched by one `str.find` per part, each from where the last ended.
"""

import re
from dataclasses import dataclass

MAX_TEXT = 2048
MIN_PREFIX = 3
_SEPARATORS = re.compile(r"[\W_]+")
_PHRASE_SEPARATORS = re.compile(r"[^\w*]+|_+")


class PhraseError(ValueError):
    """A phrase that cannot be compiled."""


def plain(text: str) -> str:
    """The text as phrases see it, cut at `MAX_TEXT` characters."""
    return f" {_SEPARATORS.sub(' ', text[:MAX_TEXT].lower()).strip()} "


@dataclass(frozen=True, slots=True)
class Phrase:
    """`parts` stand in the text in this order; `words` and `prefixes` are what it needs to be there at all."""

    parts: tuple[str, ...]
    words: tuple[str, ...]
    prefixes: tuple[str, ...]

    def is_in(self, text: str) -> bool:
        """`text` is plain."""
        position = 0
        for part in self.parts:
            position = text.find(part, position)
            if position < 0:
                return False
            position += len(part) - 1  # the space at the end may begin the next part
        return True


def compile_phrase(source: str) -> Phrase:
    """Raises PhraseError that names the phrase."""
    tokens = _PHRASE_SEPARATORS.sub(" ", source.lower()).split()
    parts: list[str] = []
    words: list[str] = []
    prefixes: list[str] = []
    part: list[str] = []

    def end(closing: str) -> None:
        if part:
            parts.append(" " + " ".join(part) + closing)
            part.clear()

    for token in tokens:
        if token == "*":
            end(" ")
        elif token.endswith("*"):
            prefix = token[:-1]
            if len(prefix) < MIN_PREFIX or "*" in prefix:
                raise PhraseError(f"phrase {source!r}: {token!r}: allowed is `*` after {MIN_PREFIX} letters")
            prefixes.append(prefix)
            part.append(prefix)
            end("")
        elif "*" in token:
            raise PhraseError(f"phrase {source!r}: {token!r}: allowed is `*` alone or at a word's end")
        else:
            words.append(token)
            part.append(token)
    end(" ")
    if not parts:
        raise PhraseError(f"phrase {source!r}: it has no word")
    return Phrase(tuple(parts), tuple(words), tuple(prefixes))
