"""What TLS reports are made of (RFC 8460 section 4): sessions counted per UTC day, policy domain and policy.

A failure is a session that its policy objects to, also where the policy is only being tested and the mail went through.
Sessions in plaintext by a written exception are none of the domain's business.

Bounds: `MAX_DOMAINS` a day, `MAX_DETAILS` kinds of failure per policy; what is beyond is counted, in `lost` or in the
policy's sum. The whole is one msgpack value, small enough to be written every minute.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgpack

from engine.tls.policy import Fault
from engine.tls.tally import Finding

DAY_MS = 86_400_000
MAX_DOMAINS = 20_000
MAX_DETAILS = 50
VERSION = 1


class Policy(NamedTuple):
    """`type` is tlsa, sts or no-policy-found; `lines` the policy as published."""

    type: str
    lines: tuple[str, ...]


class Failure(NamedTuple):
    """The particulars of failed sessions."""

    result: str
    source_ip: str
    host: str
    address: str
    reason: str


@dataclass(slots=True)
class Sums:
    """Sessions under one policy. `failed` may be more than the details say."""

    succeeded: int = 0
    failed: int = 0
    failures: dict[Failure, int] = field(default_factory=dict)


class ReportBook:
    """Days (number since 1970) -> domains -> policies -> sums."""

    def __init__(self) -> None:
        self._days: dict[int, dict[str, dict[Policy, Sums]]] = {}
        self.lost = 0

    def note(self, finding: Finding, count: int, now_ms: int) -> None:
        """Count so many sessions in the day of `now_ms`."""
        if not finding.domain or finding.verified == "plain":
            return
        domains = self._days.setdefault(now_ms // DAY_MS, {})
        policies = domains.get(finding.domain)
        if policies is None:
            if len(domains) >= MAX_DOMAINS:
                self.lost += count
                return
            policies = domains[finding.domain] = {}
        sums = policies.setdefault(_policy_of(finding), Sums())
        if not finding.fault:
            sums.succeeded += count
            return
        sums.failed += count
        result = Fault.VALIDATION if finding.fault == Fault.INJECTED else finding.fault
        failure = Failure(str(result), finding.source_ip, finding.host, finding.address, finding.text)
        if failure in sums.failures or len(sums.failures) < MAX_DETAILS:
            sums.failures[failure] = sums.failures.get(failure, 0) + count

    def ended_days(self, now_ms: int) -> list[int]:
        """The days that are over and still here."""
        return sorted(day for day in self._days if day < now_ms // DAY_MS)

    def domains(self, day: int) -> Mapping[str, Mapping[Policy, Sums]]:
        return self._days.get(day, {})

    def forget(self, day: int, domain: str) -> None:
        """The report has been made, or there will be none."""
        domains = self._days.get(day, {})
        domains.pop(domain, None)
        if not domains:
            self._days.pop(day, None)

    def encode(self) -> bytes:
        days = {
            day: {
                domain: [
                    [*policy, sums.succeeded, sums.failed, [[*f, n] for f, n in sums.failures.items()]]
                    for policy, sums in policies.items()
                ]
                for domain, policies in domains.items()
            }
            for day, domains in self._days.items()
        }
        return bytes(msgpack.packb((VERSION, days, self.lost)))

    @classmethod
    def decode(cls, data: bytes) -> "ReportBook":
        """Raises ValueError for a state of another version."""
        version, days, lost = msgpack.unpackb(data, use_list=False, strict_map_key=False)
        if version != VERSION:
            raise ValueError(f"TLS report counts of version {version!r}: this release reads {VERSION}")
        book = cls()
        book.lost = lost
        book._days = {
            day: {d: _policies(rows) for d, rows in domains.items()} for day, domains in days.items()
        }
        return book


def _policies(rows: Any) -> dict[Policy, Sums]:
    return {
        Policy(kind, lines): Sums(succeeded, failed, {Failure(*f[:-1]): f[-1] for f in failures})
        for kind, lines, succeeded, failed, failures in rows
    }


def _policy_of(finding: Finding) -> Policy:
    if finding.policy == "dane":
        return Policy("tlsa", finding.published)
    if finding.policy == "sts" or finding.fault.startswith("sts-"):
        return Policy("sts", finding.published)
    return Policy("no-policy-found", ())
