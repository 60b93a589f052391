"""The network in the simulation."""

from dataclasses import dataclass, field

FLEET = ""  # its name as sender and receiver


@dataclass(slots=True)
class Network:
    """What may happen to a message now."""

    loss: float = 0.0
    slow: float = 0.0  # share of messages that take up to `slow_ms`
    slow_ms: int = 0
    repeat: float = 0.0  # share of messages that arrive twice
    cuts: set[tuple[str, str]] = field(default_factory=set)
