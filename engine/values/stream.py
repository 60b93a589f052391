"""Streams: the purpose of a message. Each stream has its own egress pool and its own lane."""

from enum import IntEnum


class Stream(IntEnum):
    """The numeric value is the lane priority in the scheduler: lower is served first."""

    TRANSACTIONAL = 0
    NOTIFICATION = 1
    MARKETING = 2

    @classmethod
    def parse(cls, text: str) -> "Stream":
        try:
            return cls[text.upper()]
        except KeyError:
            allowed = ", ".join(s.name.lower() for s in cls)
            raise ValueError(f"stream {text!r}: allowed are {allowed}") from None

    def __str__(self) -> str:
        return self.name.lower()
