"""The section `reputation` of fleet.yaml: what a score is made of, and what follows from it.

The defaults for complaints are Google's published limits (support.google.com/mail/answer/81126, 2026-03-21: keep the
spam rate below 0.10 %, never reach 0.30 %). The other numbers are our choice; docs/adr/0020 says why.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.config.types import Count, Duration, Section

Share = Annotated[float, Field(ge=0, le=1)]
Points = Annotated[int, Field(ge=0, le=100, strict=True)]


class ScoreWindow(Section):
    """A window of exponentially decayed counts."""

    half_life: Duration = Field(description="After so long an attempt counts half.")
    minimum: Count = Field(description="With fewer attempts (decayed) the window is not judged.")


class Metric(Section):
    """A share of the attempts that costs points of the score."""

    good: Share = Field(description="Up to this share nothing is subtracted.")
    bad: Share = Field(description="From this share on all `points` are subtracted; linear between.")
    points: Points = Field(description="Points subtracted from 100 at most.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.bad <= self.good:
            raise ValueError("bad: allowed is more than good")
        return self


class MetricsConfig(Section):
    bounces: Metric = Field(
        Metric(good=0.02, bad=0.10, points=60), description="Hard bounces: the share that the sample proves."
    )
    blocks: Metric = Field(
        Metric(good=0.005, bad=0.05, points=100),
        description="Replies that refuse the source or its netblock.",
    )
    complaints: Metric = Field(
        Metric(good=0.001, bad=0.003, points=100), description="Complaints, as a share of the delivered."
    )
    deferrals: Metric = Field(Metric(good=0.10, bad=0.60, points=40), description="Deferrals.")
    tls: Metric = Field(Metric(good=0.02, bad=0.30, points=20), description="Failed TLS handshakes.")


class ProbationConfig(Section):
    interval: Duration = Field(30.0, description="Time between two probes: the trickle.")
    probes: Count = Field(20, description="Attempts that a step of the probation is judged by.")
    stay: Duration = Field(600.0, description="Shortest stay in the trickle.")
    ramp: Annotated[tuple[Share, ...], Field(max_length=20)] = Field(
        (0.1, 0.25, 0.5), description="Shares of the full rate, one after the other, on the way back."
    )
    step: Duration = Field(1800.0, description="Shortest stay at each step of the ramp.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if any(share <= 0 for share in self.ramp) or list(self.ramp) != sorted(self.ramp):
            raise ValueError("ramp: allowed are shares above 0, ascending")
        return self


class ReputationConfig(Section):
    windows: Annotated[tuple[ScoreWindow, ...], Field(min_length=1, max_length=8)] = Field(
        (
            ScoreWindow.model_validate({"half_life": "10m", "minimum": 50}),
            ScoreWindow.model_validate({"half_life": "4h", "minimum": 200}),
            ScoreWindow.model_validate({"half_life": "3d", "minimum": 1000}),
        ),
        description="Windows that are scored; the worst one counts.",
    )
    metrics: MetricsConfig = Field(MetricsConfig(), description="What costs points.")
    degraded_below: Points = Field(80, description="Below this score the source gets less of the traffic.")
    removed_below: Points = Field(50, description="Below this score it leaves the rotation.")
    hysteresis: Points = Field(
        5, description="A degraded source is active again only so far above `degraded_below`."
    )
    degraded_stay: Duration = Field(600.0, description="Shortest stay in the state degraded.")
    removed_stay: Duration = Field(
        4 * 3600.0, description="Shortest stay out of the rotation; doubled each time in a row."
    )
    removed_stay_max: Duration = Field(2 * 86400.0, description="Longest stay out of the rotation.")
    forgive: Duration = Field(86400.0, description="So long in good standing forgives one removal.")
    probation: ProbationConfig = Field(ProbationConfig(), description="The way back.")
    agree_sites: Count = Field(
        2, description="The whole source is removed when so many sites have removed it ..."
    )
    agree_share: Share = Field(
        0.5, description="... and they are this share of the sites that it is judged at."
    )
    floor: Literal["hold", "trickle"] = Field(
        "hold",
        description="When the last source of a stream would leave: its mail waits, or goes on as a trickle. "
        "An alert event is written in either case.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not self.removed_below < self.degraded_below:
            raise ValueError("removed_below: allowed is less than degraded_below")
        if self.degraded_below + self.hysteresis > 100:
            raise ValueError("hysteresis: allowed is at most 100 - degraded_below")
        if self.removed_stay_max < self.removed_stay:
            raise ValueError("removed_stay_max: allowed is at least removed_stay")
        return self
