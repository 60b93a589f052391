"""Automation rules: what a provider's reply changes, and how it is undone. `shaping` and `providers.NAME.automation`.

A rule names a reply by a pattern and gives a sample that it must match; tools and tests prove each against it
(engine/shaping/linter.py).
"""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, PlainSerializer, PlainValidator, WithJsonSchema, model_validator

from engine.config.types import Count, Duration, Name, Section
from engine.config.units import Rate, parse_rate

Action = Literal["suspend", "slow", "recover", "remove", "alert"]
RuleScope = Literal["source", "netblock", "provider", "domain"]
Factor = Annotated[float, Field(gt=0, le=1)]
Threshold = Annotated[
    Rate,
    PlainValidator(parse_rate),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "title": "rate"}),
]
MAX_THRESHOLD = 1000


class AutomationRule(Section):
    """The first rule of a provider that matches a reply is the one that counts it."""

    name: Name = Field(description="Name of the rule, in events and in `sendfleet shaping`.")
    pattern: str = Field(
        min_length=1,
        max_length=500,
        description="Regular expression searched in `code enhanced text` of a reply.",
    )
    sample: str = Field(min_length=1, description="A reply of the provider that the pattern must match.")
    scope: RuleScope = Field(
        description="What the reply is about: the source, its netblock, or all sources at this provider. "
        "`domain`: our own domain or content; no source is at fault, so only `alert` is allowed."
    )
    threshold: Threshold = Field(
        Rate(1, 60.0), description="So many such replies in a period set the action off."
    )
    action: Action = Field(
        description="`suspend`: nothing is sent. `slow`: rate and connections are multiplied. `recover`: nothing "
        "is sent, then one connection, then one more at a time. `remove`: out of the rotation, back through "
        "probation. `alert`: an event."
    )
    duration: Duration = Field(description="How long; of `slow`: before the rate may rise again.")
    rate: Factor = Field(0.5, description="Factor of `slow` on the rate.")
    connections: Factor = Field(1.0, description="Factor of `slow` on the connections.")
    step_back: bool = Field(
        False, strict=True, description="It also costs a source in warm-up one stage, once a day."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        try:
            matches = re.search(self.pattern, self.sample)
        except re.error as error:
            raise ValueError(f"pattern: not a regular expression: {error}") from None
        if matches is None:
            raise ValueError("pattern: does not match its own sample")
        if self.scope == "domain" and self.action != "alert":
            raise ValueError("action: allowed with the scope domain is alert")
        if self.threshold.count > MAX_THRESHOLD:
            raise ValueError(f"threshold: allowed is a count up to {MAX_THRESHOLD}")
        return self


class AdaptiveConfig(Section):
    """How the number of connections of a source at a site follows what the site answers (engine/shaping/windows.py)."""

    every: Duration = Field(5.0, description="Shortest time between two decisions about a source at a site.")
    answers: Count = Field(20, description="Timed answers that a decision needs.")
    near: Annotated[float, Field(ge=1, le=100)] = Field(
        1.5, description="Answers that take up to so many times the lowest latency are as fast as ever."
    )
    high: Annotated[float, Field(gt=1, le=100)] = Field(
        3.0, description="Answers that take more than so many times the lowest latency are too slow."
    )
    least: Duration = Field(0.5, description="Answers that take less than this are never too slow.")
    deferred: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2,
        description="Share of deferrals that is too much. Those that lie with the recipient do not count; below a "
        "quarter of it there may be more connections.",
    )
    decrease: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.7, description="Factor on the connections in use when answers are too slow or too much is deferred."
    )
    increase_every: Duration = Field(
        15.0, description="Shortest wait before one connection more; doubled when the last one was too many."
    )
    increase_every_max: Duration = Field(600.0, description="Longest such wait.")
    idle: Duration = Field(
        300.0, description="After so long without mail to the site there is one connection more."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.near >= self.high:
            raise ValueError(f"near: allowed is less than high ({self.high:g})")
        if self.increase_every_max < self.increase_every:
            raise ValueError("increase_every_max: allowed is at least increase_every")
        return self


class ShapingConfig(Section):
    floor: Factor = Field(0.05, description="Rate and connections never fall below this share.")
    restart: Factor = Field(
        0.25, description="Share of the rate at which a source begins after a suspension."
    )
    increase: Factor = Field(0.05, description="Share of the full rate that is given back at a time.")
    increase_every: Duration = Field(
        300.0, description="Time between two increases, in which mail must have been delivered."
    )
    recovery_step: Duration = Field(60.0, description="Shortest time with each number of connections.")
    recovery_delivered: Count = Field(
        10, description="Messages that must be delivered with each number of connections."
    )
    adaptive: AdaptiveConfig = Field(
        AdaptiveConfig(),
        description="How the number of connections follows latency and deferrals; `providers.NAME."
        "adaptive_connections: false` turns it off.",
    )
