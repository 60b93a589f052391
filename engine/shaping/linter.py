"""Proves automation rules against their samples: `sendfleet shaping check`, and a test over the shipped profiles.

Finds: a sample that is no reply; a rule that is shadowed (an earlier rule matches its sample); a name given twice; a
reply about the source that the reply policy would turn into a bounce of its recipient, or that it takes for one about
our domain, and the other way round.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from engine.config.shaping import AutomationRule
from engine.shaping.rules import MAX_REPLY
from engine.smtp.policy import Phase, classify
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply

NAMED = frozenset({Scope.SOURCE, Scope.NETBLOCK, Scope.PROVIDER, Scope.DOMAIN})
_SAMPLE = re.compile(
    r"(?P<code>[45][0-9]{2}) (?:(?P<enhanced>[245]\.[0-9]{1,3}\.[0-9]{1,3}) )?(?P<text>\S.*)"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """What is wrong with a rule."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


def parse_sample(sample: str) -> Reply | None:
    """The reply that a sample writes out, as the engine would see it; None if it is not one."""
    match = _SAMPLE.fullmatch(sample)
    if match is None or len(sample) > MAX_REPLY:
        return None
    return Reply(int(match["code"]), match["enhanced"] or "", match["text"])


def lint(rules: Sequence[AutomationRule]) -> list[Finding]:
    """All findings about the rules of one provider, in their order."""
    findings: list[Finding] = []
    names: set[str] = set()
    for index, rule in enumerate(rules):
        if rule.name in names:
            findings.append(Finding(rule.name, "the name is given twice"))
        names.add(rule.name)
        findings += (Finding(rule.name, message) for message in _problems(rules, index))
    return findings


def _problems(rules: Sequence[AutomationRule], index: int) -> Iterator[str]:
    rule = rules[index]
    reply = parse_sample(rule.sample)
    if reply is None:
        yield "the sample is no reply: allowed is one line `code enhanced text` with a code of class 4 or 5"
        return
    if re.search(rule.pattern, str(reply)) is None:
        yield "the pattern can never match: the engine sees the sample as another text"
    for earlier in rules[:index]:
        if re.search(earlier.pattern, str(reply)):
            yield f"shadowed: its sample is counted by the earlier rule {earlier.name}"
            break
    verdict = classify(Phase.DOT, reply)
    if rule.scope != "domain" and verdict.kind is OutcomeKind.BOUNCED:
        yield f"the reply policy takes the sample for a bounce, the rule for a matter of the {rule.scope}"
    elif (rule.scope == "domain") != (verdict.scope is Scope.DOMAIN) and verdict.scope in NAMED:
        yield (
            f"the reply policy takes the sample for a matter of the {verdict.scope}, the rule for one of the "
            f"{rule.scope}"
        )
