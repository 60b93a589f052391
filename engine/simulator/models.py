"""How a mailbox provider treats a source: hidden limits, spikes, spam, blocks, and how all that is forgiven.

A model, not knowledge: providers publish neither limits nor weights. The shape follows what they do publish (volume
that grows too fast is rate limited, spam rates from 0.10 % hurt and from 0.30 % block, 4xx that are ignored become 5xx,
silence heals; support.google.com/mail/answer/81126, 2026-03-21; senders.yahooinc.com, 2025-04; mailop, 2026-02-20). The
replies are the providers' own. All other numbers are our choice, and each can be set in a plan.

One record per (provider, source). `answer` judges so many attempts of one source at once.
"""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

from engine.config.strict_yaml import read_yaml
from engine.config.types import Count, Duration, Section
from engine.shaping.linter import parse_sample
from engine.smtp.policy import Phase, classify
from engine.values.outcome import OutcomeKind, Scope
from engine.values.reply import Reply

DAY_S = 86_400.0
HOUR_S = 3_600.0
PLENTY = 50_000_000
WRITTEN = "allowed is `code enhanced text` with a code of class 4 or 5"


def _check_reply(text: str) -> str:
    if parse_sample(text) is None:
        raise ValueError(WRITTEN)
    return text


WrittenReply = Annotated[str, AfterValidator(_check_reply)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class ModelConfig(Section):
    """One provider's behaviour; see engine/simulator/models.py."""

    service: Duration = Field(0.1, description="Time that one message takes on a connection.")
    bears: Count | None = Field(
        None,
        description="Connections of one source that it serves at full speed; beyond them answers take longer, by the "
        "square of how many times so many there are. Default: any number.",
    )
    crowd_defers: Fraction = Field(
        0.0, description="Share of the messages on the connections beyond `bears` that is deferred."
    )
    cold: Count = Field(500, description="Messages a day from a source without history.")
    growth: Annotated[float, Field(gt=1, le=100)] = Field(
        3.0, description="Of the volume it is used to, per day."
    )
    ceiling: Count = Field(PLENTY, description="Messages a day at most from one source.")
    hour_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.4, description="Of the day's limit in one hour."
    )
    neutral: Fraction = Field(0.6, description="Reputation of a source that is not known.")
    soft_below: Fraction = Field(0.4, description="Below this reputation a part of the mail is deferred.")
    block_below: Fraction = Field(0.2, description="Below this one the source is blocked ...")
    block_for: Duration = Field(12 * HOUR_S, description="... for so long.")
    heal: Duration = Field(2 * DAY_S, description="Half-life of a bad reputation without bad mail.")
    inertia: Count = Field(3000, description="Messages after which the reputation is half of what they were.")
    spam_bad: Annotated[float, Field(gt=0, le=1)] = Field(
        0.003, description="Spam rate that is as bad as can be."
    )
    unknown_bad: Annotated[float, Field(gt=0, le=1)] = Field(0.2, description="The same for unknown users.")
    patience: Count = Field(2000, description="Messages beyond a limit that cost all reputation.")
    greylist: Fraction = Field(0.0, description="Share of first attempts that are asked to come again.")
    rate: WrittenReply = "451 4.7.1 Too many messages from [192.0.2.1]; try again later"
    soft: WrittenReply = "451 4.7.1 The sending IP has a poor reputation; try again later"
    block: WrittenReply = "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using a list"
    netblock: WrittenReply = "554 5.7.1 Service unavailable; Client host [192.0.2.1] blocked using a list"
    unknown_user: WrittenReply = "550 5.1.1 The email account that you tried to reach does not exist"
    crowded: WrittenReply = "451 4.7.0 Too many connections from [192.0.2.1]; try again later"
    greylisted: WrittenReply = "450 4.2.0 Greylisted, please come again later"


def _built_in() -> Mapping[str, ModelConfig]:
    """The models of models.yaml, by provider."""
    text = (resources.files(__package__) / "models.yaml").read_text(encoding="utf-8")
    models: Any = read_yaml(text)
    return MappingProxyType({name: ModelConfig.model_validate(model) for name, model in models.items()})


BUILT_IN = _built_in()


class Spoken(NamedTuple):
    """A reply and what the engine makes of it."""

    reply: Reply
    kind: OutcomeKind
    scope: Scope


class Refusals(NamedTuple):
    """So many attempts with one answer."""

    attempts: int
    said: Spoken


def speak(text: str, phase: Phase = Phase.RCPT) -> Spoken:
    """A written reply, judged by the engine's own reply policy; ValueError if it is none."""
    reply = parse_sample(text)
    if reply is None:
        raise ValueError(f"reply {text!r}: {WRITTEN}")
    verdict = classify(phase, reply)
    return Spoken(reply, verdict.kind, verdict.scope)


@dataclass(slots=True)
class Record:
    """What a provider remembers of a source. Times are seconds since the start."""

    reputation: float
    recent: float  # messages a day that it is used to
    at_s: float = 0.0
    day: int = 0
    hour: int = 0
    day_count: int = 0
    hour_count: int = 0
    spam_rate: float = 0.0
    unknown_rate: float = 0.0
    blocked_until_s: float = 0.0


@dataclass(slots=True)
class Listing:
    """An order from the plan: these sources are refused, or `share` of all mail is deferred, until a time."""

    until_s: float
    said: Spoken
    sources: frozenset[int] | None = None  # None: all
    share: float = 1.0


@dataclass(slots=True)
class Mailboxes:
    """One provider. `history`: messages a day that it is used to, per source number."""

    config: ModelConfig
    history: Mapping[int, int]
    rng: random.Random
    records: dict[int, Record] = field(default_factory=dict)
    listings: list[Listing] = field(default_factory=list)
    replies: dict[str, Spoken] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("rate", "soft", "block", "netblock", "unknown_user", "greylisted", "crowded"):
            self.replies[name] = speak(getattr(self.config, name))

    def record(self, source: int) -> Record:
        found = self.records.get(source)
        if found is None:
            used_to = self.history.get(source, PLENTY)
            known = self.config.neutral if used_to == 0 else 0.95
            found = self.records[source] = Record(known, float(used_to))
        return found

    def refuses(self, source: int, now_s: float) -> Listing | None:
        self.listings = [listing for listing in self.listings if listing.until_s > now_s]
        for listing in self.listings:
            if listing.sources is None or source in listing.sources:
                return listing
        return None

    def answer(
        self,
        source: int,
        now_s: float,
        attempts: int,
        first: int,
        unknown: float,
        complaints: float,
        *,
        connections: int = 1,
    ) -> list[Refusals]:
        """The refusals among so many attempts (`first` of them are first ones), in order; the others are delivered.

        `unknown` and `complaints` are the shares that the mail has. They come over so many `connections` at once.
        """
        config = self.config
        record = self.record(source)
        self._pass_time(record, now_s)
        parts: list[Refusals] = []
        left = attempts
        listing = self.refuses(source, now_s)
        if record.blocked_until_s > now_s:
            return [Refusals(attempts, self.replies["block"])]
        if listing is not None:
            count = attempts if listing.share >= 1 else draw(self.rng, attempts, listing.share)
            if count:
                parts.append(Refusals(count, listing.said))
                left -= count
        limit = self.day_limit(record)
        room = min(limit - record.day_count, math.ceil(limit * config.hour_share) - record.hour_count)
        beyond = max(0, left - max(0, room))
        if beyond:
            parts.append(Refusals(beyond, self.replies["rate"]))
            record.reputation = max(0.0, record.reputation - beyond / config.patience)
            left -= beyond
        if record.reputation < config.soft_below and left:
            count = draw(self.rng, left, 1 - record.reputation / config.soft_below)
            if count:
                parts.append(Refusals(count, self.replies["soft"]))
                left -= count
        if config.bears is not None and connections > config.bears and left:
            count = draw(self.rng, left, config.crowd_defers * (1 - config.bears / connections))
            if count:
                parts.append(Refusals(count, self.replies["crowded"]))
                left -= count
        again = draw(self.rng, min(first, left), config.greylist) if config.greylist else 0
        if again:
            parts.append(Refusals(again, self.replies["greylisted"]))
            left -= again
        bad = draw(self.rng, left, unknown)
        if bad:
            parts.append(Refusals(bad, self.replies["unknown_user"]))
        record.day_count += left
        record.hour_count += left
        self._learn(record, now_s, left, bad, draw(self.rng, left - bad, complaints))
        return parts

    def latency_s(self, connections: int) -> float:
        """How long an answer takes while a source has so many connections open."""
        bears = self.config.bears
        return self.config.service * (1.0 if bears is None else max(1.0, connections / bears) ** 2)

    def day_limit(self, record: Record) -> int:
        config = self.config
        used_to = max(float(config.cold), config.growth * record.recent)
        return round(min(config.ceiling, used_to) * min(1.0, 0.5 + 0.7 * record.reputation))

    def _pass_time(self, record: Record, now_s: float) -> None:
        config = self.config
        passed_s = now_s - record.at_s
        if passed_s > 0:
            if record.reputation < config.neutral:
                gap = config.neutral - record.reputation
                record.reputation = config.neutral - gap * 0.5 ** (passed_s / config.heal)
            record.at_s = now_s
        day, hour = int(now_s // DAY_S), int(now_s // HOUR_S)
        if day != record.day:
            record.recent = max(float(record.day_count), record.recent * 0.9 ** (day - record.day))
            record.day, record.day_count = day, 0
        if hour != record.hour:
            record.hour, record.hour_count = hour, 0

    def _learn(self, record: Record, now_s: float, mail: int, unknown: int, spam: int) -> None:
        config = self.config
        if not mail:
            return
        weight = 1 - 0.5 ** (mail / config.inertia)
        record.spam_rate += (spam / mail - record.spam_rate) * weight
        record.unknown_rate += (unknown / mail - record.unknown_rate) * weight
        bad = record.spam_rate / config.spam_bad + record.unknown_rate / config.unknown_bad
        record.reputation += (max(0.0, 1.0 - bad) - record.reputation) * weight
        if record.reputation < config.block_below:
            record.blocked_until_s = now_s + config.block_for
            # when it is over, it begins anew
            record.reputation = min(1.0, config.soft_below + 0.1)
            record.spam_rate = record.unknown_rate = 0.0


def draw(rng: random.Random, count: int, share: float) -> int:
    """How many of `count` it is when each is it with probability `share`: binomial, by its normal limit if large."""
    if share <= 0 or count <= 0:
        return 0
    if share >= 1:
        return count
    mean = count * share
    spread = mean * (1 - share)
    if spread > 25:
        return min(count, max(0, round(rng.gauss(mean, math.sqrt(spread)))))
    if share > 0.5:
        return count - draw(rng, count, 1 - share)
    # waiting times between hits are geometric: one draw per hit, not per message
    hits, place, scale = -1, 0, math.log1p(-share)
    while place <= count:
        hits += 1
        place += int(math.log(1.0 - rng.random()) / scale) + 1
    return hits
