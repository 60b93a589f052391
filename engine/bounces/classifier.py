"""The classifier: (outcome, scope, reply) -> category, hard or soft, scope.

The reply policy (engine/smtp/policy.py) has decided what becomes of the message; nothing here changes that. What
is refined is the scope: towards "not about the recipient" always, towards "about the recipient" only where a host
refused the message or the recipient; so a refusal of our IP, host or domain never becomes a recipient
problem, whatever its text says.

Matching: each phrase stands in an index under its rarest word, a rule without text under its status or code; the
words of the reply select the few phrases that are looked for (two dict look-ups per word). The time is bounded by
the length of the text, and the memory by the rules and `CACHED` remembered replies.
"""

import functools
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from engine.bounces.category import Category
from engine.bounces.phrases import MIN_PREFIX, Phrase, plain
from engine.bounces.rules import Rule, class_of, shipped_rules
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply

CACHED = 4096
_Candidate: TypeAlias = tuple[int, Phrase]
_ABOUT_MAIL = frozenset({Scope.RECIPIENT, Scope.MESSAGE})


@dataclass(frozen=True, slots=True)
class Classification:
    """`hard`: the address will not take mail again. `rule` is "" if none fits; `known` is false then, or if the
    rule that fits is vague: somebody should look at the reply and write a rule.
    """

    category: Category
    hard: bool
    scope: Scope
    rule: str = ""
    known: bool = True


DELIVERED = Classification(Category.SUCCESS, False, Scope.RECIPIENT)


class Classifier:
    """See the module docstring."""

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.rules = tuple(rules)
        counts = Counter(word for rule in rules for phrase in rule.phrases for word in set(phrase.words))
        by_word: dict[str, list[_Candidate]] = {}
        by_prefix: dict[str, list[_Candidate]] = {}
        by_status: dict[str, list[int]] = {}
        by_code: dict[int, list[int]] = {}
        for number, rule in enumerate(self.rules):
            for phrase in rule.phrases:
                if phrase.words:
                    by_word.setdefault(_rarest(phrase, counts), []).append((number, phrase))
                else:
                    by_prefix.setdefault(phrase.prefixes[0][:MIN_PREFIX], []).append((number, phrase))
            if not rule.phrases:
                for status in rule.all_statuses():
                    by_status.setdefault(status, []).append(number)
                for code in rule.codes if not rule.statuses else ():
                    by_code.setdefault(code, []).append(number)
        self._by_word = by_word
        self._by_prefix = by_prefix
        self._by_status = by_status
        self._by_code = by_code
        self.match = functools.lru_cache(CACHED)(self._match)

    def _match(self, reply: Reply) -> Rule | None:
        """The first rule that fits."""
        text = plain(str(reply))
        best = len(self.rules)
        for word in set(text.split()):
            for candidates in (self._by_word.get(word, ()), self._by_prefix.get(word[:MIN_PREFIX], ())):
                for number, phrase in candidates:
                    if number < best and self.rules[number].allows(reply) and phrase.is_in(text):
                        best = number
        for number in (*self._by_status.get(reply.enhanced, ()), *self._by_code.get(reply.code, ())):
            if number < best and self.rules[number].allows(reply):
                best = number
        return self.rules[best] if best < len(self.rules) else None

    def classify(self, kind: OutcomeKind, scope: Scope, reply: Reply) -> Classification:
        """`scope` is the policy's. For a bounce told by a DSN: BOUNCED, the scope RECIPIENT, its diagnostic."""
        if kind is OutcomeKind.DELIVERED:
            return DELIVERED
        rule = self.match(reply)
        # what we refuse ourselves quotes the message, whose words say nothing about the recipient
        is_ours = reply.code == 0 and scope is Scope.MESSAGE
        if is_ours and rule is not None and 0 not in rule.codes:
            rule = self.match(Reply(0, reply.enhanced, ""))
        if rule is None:
            category = Category.MESSAGE_EXPIRED if kind is OutcomeKind.EXPIRED else Category.OTHER
            return Classification(category, False, scope, known=False)
        if rule.scope is not Scope.RECIPIENT or (scope in _ABOUT_MAIL and not is_ours):
            scope = rule.scope
        hard = (
            kind is OutcomeKind.BOUNCED
            and rule.hard
            and scope is Scope.RECIPIENT
            and class_of(reply) in (0, 5)
        )
        category = Category.MESSAGE_EXPIRED if kind is OutcomeKind.EXPIRED else rule.category
        return Classification(category, hard, scope, rule.name, not rule.vague)


def _rarest(phrase: Phrase, counts: Counter[str]) -> str:
    """The word of the phrase that the fewest phrases have."""
    return min(phrase.words, key=lambda word: (counts[word], -len(word), word))


@functools.cache
def shipped_classifier() -> Classifier:
    """The classifier with the rules of the package; made once per process."""
    return Classifier(shipped_rules())
