"""The section `quality` of fleet.yaml: by what a tenant is judged, and when it is moved to a pool apart.

The limits of complaints are Google's published ones (see engine/config/reputation.py); the other numbers are our
choice, docs/adr/0027 says why.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.config.reputation import Metric, Points, ScoreWindow
from engine.config.types import Count, Duration, Section

QualityName = Literal["new", "good", "poor"]


class QualityMetrics(Section):
    """Only what the tenant's own mail causes. Deferrals and blocks of shared sources are not among it."""

    bounces: Metric = Field(
        Metric(good=0.02, bad=0.10, points=60),
        description="Recipients that are refused for good: the share that the sample proves.",
    )
    complaints: Metric = Field(
        Metric(good=0.001, bad=0.003, points=100),
        description="Complaints, as a share of the delivered, as far as the sample proves it; only in the longest "
        "window, because they come hours after the mail.",
    )
    refusals: Metric = Field(
        Metric(good=0.01, bad=0.10, points=100),
        description="Replies that refuse the content or the sending domain, or block a source that is dedicated to the "
        "tenant: the share that the sample proves.",
    )


class QualityConfig(Section):
    windows: Annotated[tuple[ScoreWindow, ...], Field(min_length=1, max_length=8)] = Field(
        (
            ScoreWindow.model_validate({"half_life": "10m", "minimum": 100}),
            ScoreWindow.model_validate({"half_life": "4h", "minimum": 200}),
            ScoreWindow.model_validate({"half_life": "3d", "minimum": 200}),
        ),
        description="Windows in which a tenant is scored; the worst one counts.",
    )
    metrics: QualityMetrics = Field(QualityMetrics(), description="What costs points.")
    poor_below: Points = Field(50, description="Below this score a tenant is poor.")
    hysteresis: Points = Field(
        30,
        description="A poor tenant leaves its class only so far above `poor_below`, and a new one is good from there.",
    )
    poor_stay: Duration = Field(
        86400.0, description="Shortest stay in the class poor; doubled each time in a row."
    )
    poor_stay_max: Duration = Field(14 * 86400.0, description="Longest of these stays.")
    proven: Count = Field(1000, description="Attempts after which a new tenant may be called good.")
    proven_after: Duration = Field(86400.0, description="Shortest stay in the class new.")
    forgive: Duration = Field(
        7 * 86400.0, description="So long in the class good forgives one stay in the class poor."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.poor_below + self.hysteresis > 100:
            raise ValueError("hysteresis: allowed is at most 100 - poor_below")
        if self.poor_stay_max < self.poor_stay:
            raise ValueError("poor_stay_max: allowed is at least poor_stay")
        return self
