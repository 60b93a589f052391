"""The section `alerts` of fleet.yaml: when the fleet calls for somebody. See docs/monitoring.md."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from engine.config.types import Count, Duration, Section

Share = Annotated[float, Field(gt=0, le=1)]
Severity = Literal["warning", "critical"]
MAX_LOOKS = 1000  # that are remembered for one window: engine/metrics/look.py


class AlertConfig(Section):
    """`after` holds for the condition without a break."""

    enabled: bool = Field(True, description="Whether it is looked for.", strict=True)
    severity: Severity = Field("warning", description="How bad it is.")
    after: Duration = Field(60.0, description="It fires when the condition has held for so long.")


class CriticalAlert(AlertConfig):
    severity: Severity = Field("critical", description="How bad it is.")


class QueueDepthAlert(AlertConfig):
    after: Duration = Field(900.0, description="It fires when the condition has held for so long.")
    above: Count = Field(500_000, description="Messages of a region that are due and wait for their turn.")


class StallAlert(CriticalAlert):
    after: Duration = Field(
        600.0, description="It fires when nothing was delivered for so long, while there was mail."
    )
    deferrals: Count = Field(
        20,
        description="Mail that is due counts in any case; mail that was put off, if it was put off so often.",
    )


class CpuAlert(AlertConfig):
    after: Duration = Field(600.0, description="It fires when the condition has held for so long.")
    above: Share = Field(
        0.9,
        description="Share of one core that a region's or a pool's process uses (each runs on one), or of all "
        "cores that the node does.",
    )


class MemoryAlert(CriticalAlert):
    after: Duration = Field(300.0, description="It fires when the condition has held for so long.")
    above: Share = Field(0.9, description="Share of the node's memory, or of what its control group allows.")


class DiskAlert(CriticalAlert):
    above: Share = Field(
        0.85, description="Share of the size of the index at which nothing more is accepted."
    )
    reserves: Annotated[float, Field(ge=1)] = Field(
        4.0,
        description="Free space below so many times `spool.min_free` with the room to defer what is queued.",
    )


class ConnectionsAlert(AlertConfig):
    after: Duration = Field(900.0, description="It fires when the condition has held for so long.")
    above: Share = Field(
        0.95, description="Share of a source's sessions at a provider that are open, while more are wanted."
    )


class FilesAlert(CriticalAlert):
    above: Share = Field(0.8, description="Share of the files and sockets that a process may have open.")


class LagAlert(AlertConfig):
    after: Duration = Field(120.0, description="It fires when the condition has held for so long.")
    above: Duration = Field(2.0, description="Time for which an event loop has not answered.")


class TlsAlert(AlertConfig):
    after: Duration = Field(30.0, description="It fires when the condition has held for so long.")
    above: Share = Field(0.05, description="Share of the sessions whose policy was not met.")
    at_least: Count = Field(20, description="Sessions whose policy was not met, at least.")
    window: Duration = Field(600.0, description="Time over which both are counted.")


class ReputationAlert(AlertConfig):
    after: Duration = Field(30.0, description="It fires when the condition has held for so long.")


class FloorAlert(CriticalAlert):
    after: Duration = Field(30.0, description="It fires when the condition has held for so long.")


class WarmupAlert(AlertConfig):
    above: Count = Field(2, description="Days in a row on which a stage was held.")


class RegionAlert(CriticalAlert):
    after: Duration = Field(15.0, description="It fires when the condition has held for so long.")


class ReplicationAlert(CriticalAlert):
    pass


class DegradedAlert(AlertConfig):
    after: Duration = Field(10.0, description="It fires when the condition has held for so long.")
    above: Count = Field(
        1, description="Receipts, one for a batch, that were given without a copy, at least."
    )
    window: Duration = Field(600.0, description="Time over which they are counted.")


class ClockAlert(AlertConfig):
    after: Duration = Field(10.0, description="It fires when the condition has held for so long.")
    above: Duration = Field(
        5.0, description="Time between the machine's wall clock and the engine's, which never jumps."
    )


class AlertsConfig(Section):
    """One entry for each rule of engine/alerts/rules.py."""

    enabled: bool = Field(True, description="Whether the fleet watches itself.", strict=True)
    interval: Duration = Field(10.0, description="Time between two looks, at least 1s.")
    quiet: Duration = Field(
        60.0,
        description="An alert is over when its value has been at least 10 % better than its limit for so long.",
    )
    queue_depth: QueueDepthAlert = Field(QueueDepthAlert(), description="Mail gathers.")
    stall: StallAlert = Field(StallAlert(), description="Mail is due for a provider, and none is delivered.")
    cpu: CpuAlert = Field(CpuAlert(), description="Processors are busy.")
    memory: MemoryAlert = Field(MemoryAlert(), description="Memory runs out.")
    disk: DiskAlert = Field(DiskAlert(), description="The spool runs out of room.")
    connections: ConnectionsAlert = Field(
        ConnectionsAlert(), description="Limits of connections hold mail back."
    )
    files: FilesAlert = Field(FilesAlert(), description="A process runs out of files and sockets.")
    lag: LagAlert = Field(LagAlert(), description="An event loop is late.")
    tls: TlsAlert = Field(TlsAlert(), description="Policies of TLS are not met.")
    reputation: ReputationAlert = Field(
        ReputationAlert(), description="A source has left the rotation somewhere."
    )
    floor: FloorAlert = Field(FloorAlert(), description="A stream has no source in the rotation somewhere.")
    warmup: WarmupAlert = Field(WarmupAlert(), description="A warm-up does not get on.")
    region: RegionAlert = Field(
        RegionAlert(),
        description="A region does not answer, or has no lease, or waits to go on without copies.",
    )
    replication: ReplicationAlert = Field(
        ReplicationAlert(), description="No other region takes copies. Only with `fleet.replicas`."
    )
    degraded: DegradedAlert = Field(
        DegradedAlert(), description="Mail was accepted without a copy. Only with `degraded: accept_local`."
    )
    clock: ClockAlert = Field(ClockAlert(), description="The machine's clock has jumped.")

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.interval < 1:
            raise ValueError("interval: allowed is at least 1s")
        if self.looked_back > self.interval * MAX_LOOKS:
            raise ValueError(
                f"interval: allowed is at least a {MAX_LOOKS}th of tls.window, degraded.window and stall.after, which "
                "it looks back"
            )
        return self

    @property
    def looked_back(self) -> float:
        """The longest time over which a rule counts, seconds."""
        return max(self.tls.window, self.degraded.window, self.stall.after)
