"""What a simulated mailbox provider does: the schema and loader of personalities.yaml.

Owns the words of the file and their checks; knows nothing of sockets. Every model refuses unknown keys,
and all problems of a file are reported at once, each with its path (`PersonalityError.problems`).
Durations, sizes and rates are written with their unit (`30s`, `25MiB`, `100/min`).

Addresses are only ever loopback literals: the sink exists to test, and must never be reachable from outside.
"""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from engine.config.units import Rate, parse_duration, parse_rate, parse_size

SHIPPED = Path(__file__).with_name("personalities.yaml")

DropStage = Literal["rcpt", "data", "body", "accepted"]
DelayStage = Literal["greeting", "ehlo", "mail", "rcpt", "data", "final"]

_REPLY = re.compile(r"[2-5][0-9]{2} [^\r\n]{1,500}(?:\n[2-5][0-9]{2} [^\r\n]{1,500}){0,19}")


class PersonalityError(Exception):
    """The file is not usable. `problems` has one line per error: path, what is wrong, what is allowed."""

    def __init__(self, path: str, problems: tuple[str, ...]) -> None:
        super().__init__(path, problems)
        self.path = path
        self.problems = problems

    def __str__(self) -> str:
        return f"{self.path}: " + "; ".join(self.problems)


def _loopback(text: str) -> str:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        address = None
    if address is None or not address.is_loopback:
        raise ValueError("allowed are loopback addresses only, as in 127.0.0.1 or ::1")
    return str(address)


def _reply(text: str) -> str:
    """Several lines make a multi-line reply, each written with the code: the wire form is made here."""
    lines = text.strip().split("\n")
    if not _REPLY.fullmatch("\n".join(lines)) or len({line[:3] for line in lines}) != 1:
        raise ValueError("allowed is a reply with its code, as in '550 5.1.1 No such user'")
    joined = [f"{line[:3]}-{line[4:]}" for line in lines[:-1]] + [lines[-1]]
    return "\r\n".join(joined)


def _regex(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"allowed is a regular expression: {error}") from None
    return text


Duration = Annotated[float, BeforeValidator(parse_duration)]
Size = Annotated[int, BeforeValidator(parse_size), Field(ge=1)]
RateText = Annotated[Rate, BeforeValidator(parse_rate)]
LoopbackHost = Annotated[str, AfterValidator(_loopback)]
ReplyText = Annotated[str, AfterValidator(_reply)]
Pattern = Annotated[str, AfterValidator(_regex)]
Ratio = Annotated[float, Field(ge=0, le=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class Unknown(_Model):
    """Recipients that do not exist: by pattern (searched in the address) or by hash of the address."""

    ratio: Ratio = 0.0
    pattern: Pattern | None = None
    reply: ReplyText = "550 5.1.1 The email account that you tried to reach does not exist."


class Greylist(_Model):
    """A first attempt is deferred; one that comes `after` or later is accepted. `ratio`: part of the
    recipients.
    """

    after: Duration
    ratio: Ratio = 1.0
    reply: ReplyText = "451 4.7.1 Greylisting in action, please come back later"


class RateLimit(_Model):
    """At most `limit` transactions per client IP in any window of its period, refused ones not counted."""

    limit: RateText
    reply: ReplyText


class Block(_Model):
    """Transactions of these client IPs are refused, once each has had `after` transactions accepted.

    `lasts`: so long after its first refusal a client is accepted again, for good; without it, never.
    """

    clients: Annotated[tuple[LoopbackHost, ...], Field(min_length=1)]
    reply: ReplyText
    after: Annotated[int, Field(ge=0)] = 0
    lasts: Duration | None = None


class ConnectionLimit(_Model):
    """At most `limit` connections open at once per client IP."""

    limit: Annotated[int, Field(ge=1)]
    reply: ReplyText = "421 4.7.0 Too many concurrent SMTP connections; please try again later."


class Crowded(_Model):
    """While one client has more than `connections` open, its final replies come `delay` later; with `reply` they
    refuse its messages. After `times` such replies it is over, for good; without it, never.
    """

    connections: Annotated[int, Field(ge=1)]
    delay: Duration = 0.0
    reply: ReplyText | None = None
    times: Annotated[int, Field(ge=1)] | None = None


class MessageLimit(_Model):
    """After `limit` accepted messages the connection is closed: without a word, or with `reply` to the next
    MAIL.
    """

    limit: Annotated[int, Field(ge=1)]
    reply: ReplyText | None = None


class Drop(_Model):
    """The connection is cut in the middle of a transaction, `times` times for each chosen recipient.

    `at`: after RCPT, after DATA, in the body, or `accepted`: counted as accepted, but the reply is never
    sent (the window in which a duplicate is allowed).
    """

    at: DropStage
    ratio: Ratio = 1.0
    times: Annotated[int, Field(ge=1)] = 1


class Tls(_Model):
    """STARTTLS with this certificate and key (PEM files, relative to the personalities file)."""

    certificate: Path
    key: Path
    required: bool = False


class Personality(_Model):
    """One simulated provider, on one port. `port: 0` takes a free one."""

    port: Annotated[int, Field(ge=0, le=65535)] = 0
    hostname: str = "sink.test"
    size: Size = 50 * 2**20
    max_recipients: Annotated[int, Field(ge=1)] = 1000
    pipelining: bool = True
    chunking: bool = True
    eightbitmime: bool = True
    smtputf8: bool = True
    idle: Duration = 300.0
    unknown: Unknown | None = None
    greylist: Greylist | None = None
    rate: RateLimit | None = None
    block: Block | None = None
    connections: ConnectionLimit | None = None
    crowded: Crowded | None = None
    messages_per_connection: MessageLimit | None = None
    delay: dict[DelayStage, Duration] = Field(default_factory=dict)
    drop: Drop | None = None
    tls: Tls | None = None


class SinkConfig(_Model):
    """The whole file. `log` is the acceptance log, relative to the working directory."""

    host: LoopbackHost = "127.0.0.1"
    log: Path = Path("var/sink/acceptances.jsonl")
    personalities: Annotated[dict[str, Personality], Field(min_length=1)]

    @model_validator(mode="after")
    def _ports_differ(self) -> "SinkConfig":
        ports = [p.port for p in self.personalities.values() if p.port]
        twice = sorted({port for port in ports if ports.count(port) > 1})
        if twice:
            raise ValueError(f"ports used by more than one personality: {', '.join(map(str, twice))}")
        return self


def load_personalities(path: Path | None = None) -> SinkConfig:
    """Read a personalities file, the shipped one by default; raises PersonalityError with every problem."""
    path = path or SHIPPED
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PersonalityError(str(path), (error.strerror or "cannot be read",)) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise PersonalityError(str(path), (f"not YAML: {error}",)) from None
    try:
        config = SinkConfig.model_validate(document)
    except ValidationError as error:
        problems = tuple(
            f"{'.'.join(map(str, item['loc'])) or 'file'}: {item['msg']}" for item in error.errors()
        )
        raise PersonalityError(str(path), problems) from None
    return _with_absolute_files(config, path.resolve().parent)


def _with_absolute_files(config: SinkConfig, folder: Path) -> SinkConfig:
    placed = {}
    for name, personality in config.personalities.items():
        if personality.tls is not None:
            tls = personality.tls
            tls = tls.model_copy(update={"certificate": folder / tls.certificate, "key": folder / tls.key})
            personality = personality.model_copy(update={"tls": tls})
        placed[name] = personality
    return config.model_copy(update={"personalities": placed})
