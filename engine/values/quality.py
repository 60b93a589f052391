"""What a tenant's own mail has earned: the class that decides whose sources it shares."""

from enum import IntEnum


class Quality(IntEnum):
    """The numbers are the scheduler's and are stored: never renumber. Who is not known is new."""

    NEW = 0
    GOOD = 1
    POOR = 2

    def __str__(self) -> str:
        return self.name.lower()

    @classmethod
    def parse(cls, text: str) -> "Quality":
        """ValueError names what is allowed."""
        for quality in cls:
            if str(quality) == text:
                return quality
        raise ValueError(f"quality {text!r}: allowed are {', '.join(str(quality) for quality in cls)}")
