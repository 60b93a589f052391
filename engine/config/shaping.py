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
