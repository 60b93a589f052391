"""What an examination finds, as values; and how a DNS record is written so that it can be pasted into a zone file."""

from dataclasses import dataclass
from enum import Enum

_STRING = 255  # octets of one character-string (RFC 1035 section 3.3)


class Level(Enum):
    """PASS: as receivers want it. NOTE: not judged, `why` says why not. WARN: works, and should be better.

    FAIL: mail will be refused or distrusted for it, or nobody can tell because the DNS fails.
    """

    PASS = "pass"
    NOTE = "note"
    WARN = "warn"
    FAIL = "fail"

    @property
    def rank(self) -> int:
        return tuple(Level).index(self)


@dataclass(frozen=True, slots=True)
class Demand:
    """That a provider publishes a requirement. `is_must`: mail is refused without it; otherwise advice."""

    provider: str
    is_must: bool
    text: str
    source: str


@dataclass(frozen=True, slots=True)
class Finding:
    """One row. `subject` is what was looked at; `publish` has the zone file lines that would put it right.

    `is_known`: False where the DNS does not answer.
    """

    check: str
    subject: str
    level: Level
    why: str
    publish: tuple[str, ...] = ()
    demands: tuple[Demand, ...] = ()
    is_known: bool = True

    def plain(self) -> dict[str, object]:
        """For JSON."""
        return {
            "check": self.check,
            "subject": self.subject,
            "level": self.level.value,
            "known": self.is_known,
            "why": self.why,
            "publish": list(self.publish),
            "demanded_by": [
                {"provider": d.provider, "must": d.is_must, "text": d.text, "source": d.source}
                for d in self.demands
            ],
        }


def txt_record(name: str, text: str) -> str:
    """A TXT record as a zone file line, in strings of at most 255 octets, special characters escaped."""
    data = text.encode()
    pieces = [data[start : start + _STRING] for start in range(0, len(data), _STRING)] or [b""]
    return f"{name.rstrip('.')}. 3600 IN TXT " + " ".join(f'"{_escaped(piece)}"' for piece in pieces)


def _escaped(piece: bytes) -> str:
    """RFC 1035 section 5.1: backslash before quotes and backslashes, three digits for what is not printable."""
    return "".join(
        f"\\{chr(octet)}" if octet in b'"\\' else chr(octet) if 32 <= octet < 127 else f"\\{octet:03}"
        for octet in piece
    )
