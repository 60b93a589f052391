"""Bounce rules: read from the YAML files beside this module, checked, in their order.

    rules:
      - name: google-no-such-user       unique
        category: bad-mailbox           engine/bounces/category.py
        scope: recipient                what the reply is about (DESIGN: scope)
        text: [account * does not exist]   phrases, one of which is in the reply (engine/bounces/phrases.py)
        status: [5.1.1, 4.7.500-699]    and its enhanced status is one of these; `x.1.1` is any class
        code: [550]                     and its code is one of these
        class: 5                        and its code (without one its status) is of this class
        hard: false                     default: by the category
        vague: true                     default: false. The reply stays among the unknown ones to look at
        samples: ["550 5.1.1 ..."]      at least one; a test replays each

The first rule that fits wins; `ORDER` has the files from the special to the general. A file that is wrong is a
fault of the build: RuleError.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from engine.bounces.category import HARD, Category
from engine.bounces.phrases import Phrase, compile_phrase
from engine.values.outcome import Scope
from engine.values.reply import Reply

ORDER = (
    "local",
    "google",
    "yahoo",
    "microsoft",
    "apple",
    "providers",
    "sender",
    "gateways",
    "blocklists",
    "servers",
    "wording",
    "status",
)
_STATUS = re.compile(r"([245x])\.(\d{1,3})\.(\d{1,3})(?:-(\d{1,3}))?")
_SAMPLE = re.compile(r"(?:(\d{3})[ -]?)?(?:([245]\.\d{1,3}\.\d{1,3})(?= |$) ?)?(.*)", re.DOTALL)


class RuleError(Exception):
    """A rule file of the package is wrong."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, compiled. `phrases` empty: any text."""

    name: str
    category: Category
    scope: Scope
    hard: bool
    vague: bool
    phrases: tuple[Phrase, ...]
    codes: frozenset[int]
    reply_class: int
    statuses: tuple[tuple[str, int, int, int], ...]
    samples: tuple[str, ...]

    def allows(self, reply: Reply) -> bool:
        """Whether everything but the text fits."""
        if self.codes and reply.code not in self.codes:
            return False
        if self.reply_class and self.reply_class != class_of(reply):
            return False
        return not self.statuses or self._has_status(reply.enhanced)

    def all_statuses(self) -> list[str]:
        """Every enhanced status that `statuses` stands for."""
        return [
            f"{kind}.{subject}.{detail}"
            for c, subject, low, high in self.statuses
            for kind in ("45" if c == "x" else c)
            for detail in range(low, high + 1)
        ]

    def _has_status(self, enhanced: str) -> bool:
        parts = enhanced.split(".")
        if len(parts) != 3:
            return False
        kind, subject, detail = parts[0], int(parts[1]), int(parts[2])
        return any(
            c in ("x", kind) and s == subject and low <= detail <= high for c, s, low, high in self.statuses
        )


def class_of(reply: Reply) -> int:
    """2, 4 or 5: of the code, or of the status where the reply is our own; 0 if there is neither."""
    if reply.code:
        return reply.code // 100
    return int(reply.enhanced[0]) if reply.enhanced else 0


class _RuleEntry(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{1,60}$")]
    category: Category
    scope: Scope
    text: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    code: tuple[int, ...] = ()
    reply_class: Annotated[int, Field(alias="class", ge=0, le=5)] = 0
    hard: bool | None = None
    vague: bool = False
    samples: Annotated[tuple[str, ...], Field(min_length=1)]

    @field_validator("text", mode="before")
    @classmethod
    def _one_or_many(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class _RuleFile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: Annotated[tuple[_RuleEntry, ...], Field(min_length=1)]


def parse_sample(text: str) -> Reply:
    """A sample as the reply it stands for; without a code it is one of our own (code 0)."""
    found = _SAMPLE.fullmatch(text)
    assert found is not None, "the pattern fits any text"
    code, enhanced, rest = found.groups()
    return Reply(int(code or 0), enhanced or "", rest)


def parse_rules(text: str, file: str) -> list[Rule]:
    """Raises RuleError."""
    try:
        entries = _RuleFile.model_validate(yaml.load(text, Loader=_LOADER))
        return [_compile(entry) for entry in entries.rules]
    except (ValidationError, ValueError, yaml.YAMLError) as error:
        raise RuleError(f"{file}: {error}") from error


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _compile(entry: _RuleEntry) -> Rule:
    if not (entry.text or entry.status or entry.code):
        raise ValueError(f"rule {entry.name}: it needs text, status or code")
    hard = entry.category in HARD and entry.scope is Scope.RECIPIENT if entry.hard is None else entry.hard
    return Rule(
        name=entry.name,
        category=entry.category,
        scope=entry.scope,
        hard=hard,
        vague=entry.vague,
        phrases=tuple(compile_phrase(phrase) for phrase in entry.text),
        codes=frozenset(entry.code),
        reply_class=entry.reply_class,
        statuses=tuple(_compile_status(entry.name, status) for status in entry.status),
        samples=entry.samples,
    )


def _compile_status(name: str, text: str) -> tuple[str, int, int, int]:
    found = _STATUS.fullmatch(text)
    if found is None:
        raise ValueError(f"rule {name}: status {text!r}: expected x.y.z or x.y.z-w")
    kind, subject, low, high = found.groups()
    return kind, int(subject), int(low), int(high or low)


@functools.cache
def shipped_rules() -> Sequence[Rule]:
    """All rules of the package, in order; raises RuleError."""
    folder = resources.files(__package__) / "rules"
    files = {
        entry.name.removesuffix(".yaml"): entry for entry in folder.iterdir() if entry.name.endswith(".yaml")
    }
    if set(files) != set(ORDER):
        raise RuleError(f"rule files: found {sorted(files)}, expected {sorted(ORDER)}")
    rules = [rule for name in ORDER for rule in parse_rules(files[name].read_text("utf-8"), f"{name}.yaml")]
    names = [rule.name for rule in rules]
    repeated = {name for name in names if names.count(name) > 1}
    if repeated:
        raise RuleError(f"rules of the same name: {sorted(repeated)}")
    return tuple(rules)
