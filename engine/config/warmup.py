"""The section `warmup` of fleet.yaml: stage tables for new sources, and the rules for going from stage to stage.

A table is a list of stages; a stage is the most that a source may send to one provider in a UTC day, and in an hour.
"""

from typing import Annotated, Any, Self

from pydantic import Field, model_serializer, model_validator

from engine.config.reputation import Points, Share
from engine.config.types import Count, Name, Section


class Stage(Section):
    """Written as the daily cap alone (`500`), or as `{day: 500, hour: 100}`."""

    day: Count = Field(description="Messages per UTC day.")
    hour: Count | None = Field(None, description="Messages per hour. Default: `hourly_share` of `day`.")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"day": value}
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.hour is not None and self.hour > self.day:
            raise ValueError("hour: allowed is at most day")
        return self

    @model_serializer
    def _write(self) -> int | dict[str, int]:
        return self.day if self.hour is None else {"day": self.day, "hour": self.hour}


Stages = Annotated[tuple[Stage, ...], Field(min_length=1, max_length=366)]


class WarmupTable(Section):
    source: str = Field("fleet.yaml", min_length=5, description="Where the numbers are from, and when read.")
    stages: Stages = Field(description="The stages, one per day that is used.")
    providers: dict[Name, Stages] = Field({}, description="Other stages for single providers.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, stages in {"stages": self.stages, **self.providers}.items():
            days = [stage.day for stage in stages]
            if days != sorted(days):
                raise ValueError(f"{name}: allowed are stages that do not shrink")
        return self

    def stages_of(self, provider: str) -> tuple[Stage, ...]:
        return self.providers.get(provider, self.stages)


class WarmupConfig(Section):
    tables: dict[Name, WarmupTable] = Field(
        {},
        description="Tables of your own, beside `conservative` and `standard`; named by `sources[].warmup`.",
    )
    delivered: Share = Field(
        0.9, description="The next stage comes only if this share of the day's cap was delivered ..."
    )
    min_score: Points = Field(
        80, description="... and the reputation score at the provider is at least this."
    )
    hourly_share: Annotated[float, Field(gt=0, le=1)] = Field(
        0.2, description="Hourly cap of a stage that gives none, as a share of its daily cap."
    )
    idle_days: Count = Field(30, description="So many days without mail cost nothing; then the stage decays.")
    idle_step_days: Count = Field(7, description="Each further so many days without mail cost one stage.")
    stalled_days: Count = Field(10, description="So many days in a row at one stage are an alert.")
