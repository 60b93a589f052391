"""Written units: durations `5m`, sizes `25MiB`, rates `100/min`.

A value without a unit is refused, because `timeout: 5` means seconds to one reader and minutes to the next.
Every parser has a formatter that gives back text it would parse to the same value: the configuration travels
to other processes as JSON and must not change on the way.
"""

import re
from dataclasses import dataclass

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_PERIODS = {
    "s": 1.0,
    "sec": 1.0,
    "m": 60.0,
    "min": 60.0,
    "h": 3600.0,
    "hour": 3600.0,
    "d": 86400.0,
    "day": 86400.0,
}
_BYTES = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
}
_NUMBER_UNIT = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,9})?)\s*([A-Za-z]+)", re.ASCII)
_RATE = re.compile(r"([0-9]{1,12})\s*/\s*([0-9]{0,9})([a-z]+)", re.ASCII)

MAX_SECONDS = 3650 * 86400.0  # times and intervals are nanoseconds in 64 bits inside
DURATION_FORM = "a number with a unit: ms, s, m, h or d, as in 5m"
SIZE_FORM = "a number with a unit: B, KiB, MiB, GiB or TiB, as in 25MiB"
RATE_FORM = "a count per period: s, min, h or day, as in 100/min"


@dataclass(frozen=True, slots=True)
class Rate:
    """`count` events in each `period_s` seconds."""

    count: int
    period_s: float

    def __str__(self) -> str:
        return format_rate(self)


def parse_duration(text: object) -> float:
    """Return seconds; raises ValueError that says what is allowed."""
    match = _NUMBER_UNIT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or match[2] not in _SECONDS:
        raise ValueError(f"allowed is {DURATION_FORM}")
    if match[2] == "ms":
        return float(match[1]) / 1000
    return float(match[1]) * _SECONDS[match[2]]


def format_duration(seconds: float) -> str:
    """The shortest text that `parse_duration` turns back into `seconds`."""
    for unit in ("d", "h", "m", "s"):
        count = seconds / _SECONDS[unit]
        if (count >= 1 and count.is_integer()) or (unit == "s" and count == 0):
            return f"{int(count)}{unit}"
    milliseconds = seconds * 1000
    if milliseconds.is_integer() and milliseconds / 1000 == seconds:
        return f"{int(milliseconds)}ms"
    return f"{seconds:.9f}".rstrip("0").rstrip(".") + "s"


def parse_size(text: object) -> int:
    """Return bytes; raises ValueError that says what is allowed."""
    match = _NUMBER_UNIT.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or match[2] not in _BYTES:
        raise ValueError(f"allowed is {SIZE_FORM}")
    number, unit = match[1], _BYTES[match[2]]
    return int(number) * unit if number.isdecimal() else round(float(number) * unit)


def format_size(size: int) -> str:
    for unit in ("TiB", "GiB", "MiB", "KiB"):
        if size and size % _BYTES[unit] == 0:
            return f"{size // _BYTES[unit]}{unit}"
    return f"{size}B"


def parse_rate(text: object) -> Rate:
    """Return the rate of `100/min` or `5/10s`; raises ValueError that says what is allowed."""
    if isinstance(text, Rate):
        return text
    match = _RATE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or match[3] not in _PERIODS:
        raise ValueError(f"allowed is {RATE_FORM}")
    rate = Rate(count=int(match[1]), period_s=int(match[2] or 1) * _PERIODS[match[3]])
    if rate.count < 1 or rate.period_s <= 0:
        raise ValueError(f"allowed is {RATE_FORM}, both above zero")
    if rate.period_s > MAX_SECONDS:
        raise ValueError(f"allowed is a period of at most {format_duration(MAX_SECONDS)}")
    return rate


def format_rate(rate: Rate) -> str:
    for unit, name in (("day", "day"), ("h", "h"), ("min", "min")):
        if rate.period_s == _PERIODS[unit]:
            return f"{rate.count}/{name}"
    if rate.period_s == 1:
        return f"{rate.count}/s"
    return f"{rate.count}/{int(rate.period_s)}s"
