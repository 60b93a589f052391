"""The sink: a loopback SMTP server that plays mailbox providers, for demos, tests and drills."""

from engine.sink.log import Acceptance, Connection, Refusal, SinkLog
from engine.sink.personality import Personality, PersonalityError, SinkConfig, load_personalities
from engine.sink.process import SinkProcess
from engine.sink.server import run

__all__ = [
    "Acceptance",
    "Connection",
    "Personality",
    "PersonalityError",
    "Refusal",
    "SinkConfig",
    "SinkLog",
    "SinkProcess",
    "load_personalities",
    "run",
]
