"""The `suppression` section of fleet.yaml: how far an automatic entry reaches."""

from typing import Literal

from pydantic import Field

from engine.config.types import Section
from engine.values.suppression import Level

Reach = Literal["stream", "tenant", "global"]


class SuppressionConfig(Section):
    """`stream`: only mail of the same tenant and stream; `tenant`: all mail of that tenant; `global`: all mail."""

    hard_bounce: Reach = Field(
        "tenant",
        description="List for an address that does not exist any more: a permanent refusal of the recipient. Replies "
        "about the source, netblock, domain, policy or content suppress nobody.",
    )
    complaint: Reach = Field("tenant", description="List for somebody who called a message spam.")
    unsubscribe: Reach = Field("stream", description="List for somebody who unsubscribed.")

    def level(self, what: Literal["hard_bounce", "complaint", "unsubscribe"]) -> Level:
        reach: str = getattr(self, what)
        return Level[reach.upper()]
