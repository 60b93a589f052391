"""MTA-STS as values (RFC 8461): the DNS record, the policy text, and which hosts a policy names.

What does not parse is refused with the reason: a policy that is half understood must not be half applied. Unknown keys
are passed over (section 3.2); the last word about hosts is `matches` (section 4.1: a wildcard stands for exactly one
label, the left-most).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

MAX_POLICY = 65536  # bytes; section 3.2 gives no limit, 64 KB is what its authors recommend for senders
MAX_AGE_S = 31_557_600  # section 3.2
MAX_HOSTS = 200
MODES = ("enforce", "testing", "none")

_ID = re.compile(r"[A-Za-z0-9]{1,32}", re.ASCII)
_HOST = re.compile(
    r"(?:\*\.)?[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?(?:\.[a-z0-9_](?:[a-z0-9_-]*[a-z0-9])?)*", re.ASCII
)


class StsInvalid(ValueError):
    """The record or the policy is not one; says why."""


@dataclass(frozen=True, slots=True)
class StsPolicy:
    """A policy of one recipient domain; never that of another. `mx` are host names, or `*.` and a domain."""

    domain: str
    mode: str
    mx: tuple[str, ...]
    max_age_s: int

    def matches(self, host: str) -> bool:
        """Whether mail for the domain may go to this host."""
        rest = host.partition(".")[2]
        return any(pattern == host or (pattern[:2] == "*." and pattern[2:] == rest) for pattern in self.mx)

    def lines(self) -> tuple[str, ...]:
        """As its domain has published it, for reports (RFC 8460 section 4.4)."""
        hosts = (f"mx: {pattern}" for pattern in self.mx)
        return ("version: STSv1", f"mode: {self.mode}", *hosts, f"max_age: {self.max_age_s}")


def record_id(texts: Sequence[str]) -> str | None:
    """The id of the one `v=STSv1` record of a domain, None if there is none or more than one (section 3.1).

    Raises StsInvalid if the one record is malformed.
    """
    found = [text for text in texts if re.match(r"v=STSv1[ \t]*;", text)]
    if len(found) != 1:
        return None
    fields: dict[str, str] = {}
    for part in found[0].split(";")[1:]:
        key, _, value = part.partition("=")
        fields.setdefault(key.strip(), value.strip())
    id_ = fields.get("id", "")
    if not _ID.fullmatch(id_):
        raise StsInvalid(f"the TXT record has the id {id_[:40]!r}: expected 1 to 32 letters and digits")
    return id_


def parse_policy(domain: str, body: bytes) -> StsPolicy:
    """The policy of a domain from the text it serves; raises StsInvalid."""
    if len(body) > MAX_POLICY:
        raise StsInvalid(f"more than {MAX_POLICY} bytes")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise StsInvalid("not UTF-8") from None
    fields: dict[str, str] = {}
    hosts: list[str] = []
    for line in re.split(r"\r?\n", text):
        if not line.strip():
            continue
        key, colon, value = line.partition(":")
        key, value = key.strip(), value.strip()
        if not colon or not key:
            raise StsInvalid(f"line {line[:60]!r}: expected KEY: VALUE")
        if key == "mx":
            hosts.append(value.lower().rstrip("."))
        else:
            fields.setdefault(key, value)
    if fields.get("version") != "STSv1":
        raise StsInvalid(f"version {fields.get('version', '')[:40]!r}: expected STSv1")
    mode = fields.get("mode", "")
    if mode not in MODES:
        raise StsInvalid(f"mode {mode[:40]!r}: expected {', '.join(MODES)}")
    age = fields.get("max_age", "")
    if not re.fullmatch(r"[0-9]{1,10}", age, re.ASCII):
        raise StsInvalid(f"max_age {age[:40]!r}: expected seconds, at most {MAX_AGE_S}")
    if len(hosts) > MAX_HOSTS:
        raise StsInvalid(f"{len(hosts)} mx lines: expected at most {MAX_HOSTS}")
    wrong = next((host for host in hosts if not _HOST.fullmatch(host)), None)
    if wrong is not None:
        raise StsInvalid(f"mx {wrong[:60]!r}: expected a host name, or *. and a domain")
    if not hosts and mode != "none":
        raise StsInvalid(f"no mx, with mode {mode}")
    return StsPolicy(domain, mode, tuple(dict.fromkeys(hosts)), min(int(age), MAX_AGE_S))
