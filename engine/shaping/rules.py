"""The automation rules of one provider, compiled. The first that matches a reply is the one that counts it."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.config.shaping import AutomationRule

# For a reply that the reply policy takes for a block of the source and no rule of the provider knows.
GENERIC_BLOCK = AutomationRule.model_validate(
    {
        "name": "blocked",
        "pattern": "^[45]",
        "sample": "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using a list",
        "scope": "source",
        "action": "suspend",
        "duration": "10m",
    }
)
MAX_REPLY = 1100  # a Reply as text: its code, its status, and at most 1,024 characters


@dataclass(frozen=True, slots=True)
class RuleSet:
    """See the module docstring. `max_connections` is the profile's limit for one source; `is_adaptive`: fewer are used
    while the provider does not bear them."""

    rules: tuple[AutomationRule, ...]
    patterns: tuple[re.Pattern[str], ...]
    max_connections: int
    is_adaptive: bool = False

    @classmethod
    def build(
        cls, rules: Sequence[AutomationRule], max_connections: int, *, is_adaptive: bool = False
    ) -> "RuleSet":
        patterns = tuple(re.compile(rule.pattern) for rule in rules)
        return cls(tuple(rules), patterns, max_connections, is_adaptive)

    def match(self, reply: str) -> AutomationRule | None:
        text = reply[:MAX_REPLY]
        for rule, pattern in zip(self.rules, self.patterns, strict=True):
            if pattern.search(text):
                return rule
        return None

    def rule(self, name: str) -> AutomationRule | None:
        """The rule of that name, which may be gone since its order was given."""
        return next((rule for rule in (*self.rules, GENERIC_BLOCK) if rule.name == name), None)
