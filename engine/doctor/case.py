"""What is examined: one sending domain of a fleet, and whom to ask about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.campaign.spec import Campaign
from engine.config.schema import FleetConfig
from engine.config.signing import DkimConfig
from engine.doctor.questions import Questions


@dataclass(frozen=True, slots=True)
class Sender:
    """A source as receivers see it. `ip` is its public address, which behind NAT is not the configured one."""

    name: str
    ip: str
    ehlo: str

    def __str__(self) -> str:
        return f"{self.name} {self.ip}"


@dataclass(frozen=True, slots=True)
class Case:
    """`domain` is that of the From header, `return_path` the one that bounces go to: SPF is about the latter.

    `selectors` are looked at besides those of the `dkim` section; `senders` are the sources with a public address.
    """

    domain: str
    return_path: str
    config: FleetConfig
    questions: Questions
    senders: tuple[Sender, ...] = ()
    dkim: DkimConfig | None = None
    selectors: tuple[str, ...] = ()
    campaigns: Mapping[str, Campaign] = field(default_factory=dict)
