"""The linter of the bounce rules: each rule is reached by each of its samples, and by each of its phrases."""

import pytest

from engine.bounces.category import HARD, Category
from engine.bounces.classifier import Classifier, shipped_classifier
from engine.bounces.rules import Rule, RuleError, parse_rules, parse_sample, shipped_rules
from engine.values.outcome import Scope
from engine.values.reply import Reply

SAMPLES = [(rule, sample) for rule in shipped_rules() for sample in rule.samples]


def test_there_are_enough() -> None:
    assert len(shipped_rules()) >= 300
    assert len(SAMPLES) >= 600
    assert {rule.category for rule in shipped_rules()} == set(Category) - {Category.SUCCESS}


@pytest.mark.parametrize(("rule", "sample"), SAMPLES, ids=lambda value: getattr(value, "name", ""))
def test_a_sample_finds_its_own_rule_first(rule: Rule, sample: str) -> None:
    found = shipped_classifier().match(parse_sample(sample))
    assert found is not None
    assert found.name == rule.name


def synthetic_replies(rule: Rule, text: str) -> list[Reply]:
    codes = rule.codes or ([rule.reply_class * 100 + 50] if rule.reply_class else [450, 550])
    status = next(iter(sorted(rule.all_statuses(), reverse=True)), "")
    return [Reply(code, status, text) for code in codes]


@pytest.mark.parametrize("rule", [rule for rule in shipped_rules() if rule.phrases], ids=lambda r: r.name)
def test_no_phrase_is_shadowed_by_an_earlier_rule(rule: Rule) -> None:
    for phrase in rule.phrases:
        text = " ".join(part.strip() for part in phrase.parts)
        found = [shipped_classifier().match(reply) for reply in synthetic_replies(rule, text)]
        assert rule in found, (text, [other and other.name for other in found])


@pytest.mark.parametrize("rule", [rule for rule in shipped_rules() if rule.hard], ids=lambda r: r.name)
def test_only_rules_about_the_recipient_are_hard(rule: Rule) -> None:
    assert rule.scope is Scope.RECIPIENT
    assert rule.category in HARD


RULE = """
rules:
  - {name: first, category: bad-mailbox, scope: recipient, text: no such user, samples: ["550 no such user"]}
  - {name: second, category: spam-related, scope: message, text: SAMPLE, samples: ["550 SAMPLE"]}
"""


def test_the_linter_sees_a_shadowed_rule() -> None:
    first, second = parse_rules(RULE.replace("SAMPLE", "no such user here"), "x.yaml")
    assert Classifier([first, second]).match(parse_sample(second.samples[0])) is first


def test_the_linter_sees_a_rule_that_misses_its_sample() -> None:
    rules = parse_rules(RULE.replace("text: SAMPLE", "text: something else"), "x.yaml")
    assert Classifier(rules).match(parse_sample(rules[1].samples[0])) is None


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("rules: []", "at least 1 item"),
        ("rules: [{name: a1, category: nonsense, scope: message, text: x, samples: [y]}]", "category"),
        ("rules: [{name: a1, category: other, scope: message, text: x, samples: []}]", "samples"),
        ("rules: [{name: a1, category: other, scope: message, samples: [y]}]", "needs text, status or code"),
        ("rules: [{name: a1, category: other, scope: message, text: 'ab*', samples: [y]}]", "ab*"),
        ("rules: [{name: a1, category: other, scope: message, text: '*', samples: [y]}]", "no word"),
        ("rules: [{name: a1, category: other, scope: message, status: [5.1], samples: [y]}]", "status"),
        ("rules: [{name: a1, category: other, scope: message, text: x, txt: x, samples: [y]}]", "txt"),
    ],
)
def test_a_wrong_file_is_refused_by_name(wrong: str, message: str) -> None:
    with pytest.raises(RuleError, match=r"x\.yaml") as refused:
        parse_rules(wrong, "x.yaml")
    assert message in str(refused.value)
