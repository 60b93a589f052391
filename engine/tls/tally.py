"""What came of sessions, as far as TLS is concerned, counted: for events, metrics and the reports of RFC 8460.

A pool counts (`Tally`), and sends what it has counted to its region every few seconds. Equal findings are one row, so a
busy host costs one row, not one per session; beyond `MAX_ROWS` kinds between two sendings the rest is counted without
its particulars. A pool that dies takes the last seconds of counts with it: they are statistics, not mail.
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgpack

from engine.tls.policy import Check, HostPolicy, PolicyRefusal, TlsFault, TlsResult

MAX_ROWS = 5000
VERSION = 1


class Finding(NamedTuple):
    """One kind of result. `policy` is a PolicyKind, `published` the policy's text, `verified` "", "name", "dane" or
    "plain" (no TLS, by a written exception), `fault` a Fault or "". `failed`: there was no session.
    """

    domain: str
    policy: str
    published: tuple[str, ...]
    host: str
    address: str
    source_ip: str
    version: str
    cipher: str
    verified: str
    resumed: bool
    fault: str
    text: str
    failed: bool


class Tally:
    """Findings and how often each was made."""

    def __init__(self) -> None:
        self._counts: dict[Finding, int] = {}

    def opened(
        self, domain: str, policy: HostPolicy, host: str, address: str, source_ip: str, tls: TlsResult | None
    ) -> None:
        """A session has been opened."""
        result = tls or TlsResult("", "", "plain" if policy.check is Check.PLAIN else "")
        fault = result.fault or policy.fault
        self._note(
            Finding(
                domain,
                str(policy.kind),
                policy.published,
                host,
                address,
                source_ip,
                result.version,
                result.cipher,
                result.verified,
                result.resumed,
                str(fault.fault) if fault is not None else "",
                fault.text if fault is not None else "",
                failed=False,
            )
        )

    def refused(
        self,
        domain: str,
        policy: HostPolicy | PolicyRefusal,
        host: str,
        address: str,
        source_ip: str,
        fault: TlsFault,
    ) -> None:
        """There is no session, for the sake of the policy."""
        self._note(
            Finding(
                domain,
                str(policy.kind),
                policy.published,
                host,
                address,
                source_ip,
                "",
                "",
                "",
                False,
                str(fault.fault),
                fault.text,
                failed=True,
            )
        )

    def drain(self) -> bytes:
        """What has been counted since the last time, for `decode_findings`; empty if nothing was."""
        if not self._counts:
            return b""
        rows = [(*finding, count) for finding, count in self._counts.items()]
        self._counts = {}
        return bytes(msgpack.packb((VERSION, rows)))

    def _note(self, finding: Finding) -> None:
        if finding not in self._counts and len(self._counts) >= MAX_ROWS:
            finding = finding._replace(domain="", published=(), host="", address="", source_ip="", text="")
        self._counts[finding] = self._counts.get(finding, 0) + 1


def decode_findings(data: bytes) -> Sequence[tuple[Finding, int]]:
    """(finding, how often) of what `drain` gave."""
    version, rows = msgpack.unpackb(data, use_list=False)
    if version != VERSION:
        raise ValueError(f"TLS findings of version {version!r}: this release reads {VERSION}")
    return [(Finding(*row[:-1]), row[-1]) for row in rows]
