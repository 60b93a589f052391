"""All checks of one domain, in the order in which they are shown. Nothing is changed, nothing is sent.

Diagnostics: whatever is found is a Finding; a DNS that fails is one too. `summary` counts by provider.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from engine.doctor.case import Case
from engine.doctor.check_dkim import check_dkim
from engine.doctor.check_dmarc import check_dmarc
from engine.doctor.check_servers import TlsProbe, check_mx, check_mx_tls
from engine.doctor.check_sources import check_blocklists, check_names
from engine.doctor.check_spf import check_spf
from engine.doctor.check_transport import PolicyProbe, check_bimi, check_mta_sts, check_tls_rpt
from engine.doctor.check_unsubscribe import check_unsubscribe
from engine.doctor.finding import Finding, Level
from engine.doctor.rules import demands


class Prober(TlsProbe, PolicyProbe, Protocol):
    """Both probes."""


async def examine(case: Case, probe: Prober | None = None) -> list[Finding]:
    """Every finding, check by check."""
    found = await asyncio.gather(
        check_spf(case),
        check_dkim(case),
        check_dmarc(case),
        check_mx(case),
        check_names(case),
        check_mx_tls(case, probe),
        check_mta_sts(case, probe),
        check_tls_rpt(case),
        check_bimi(case),
        check_blocklists(case),
    )
    return [*(finding for findings in found for finding in findings), *check_unsubscribe(case)]


def worst(findings: Sequence[Finding]) -> Level:
    return max((finding.level for finding in findings), key=lambda level: level.rank, default=Level.PASS)


def summary(findings: Sequence[Finding]) -> dict[str, list[str]]:
    """For each provider with published rules: the checks whose demands are not met."""
    providers = dict.fromkeys(demand.provider for rows in demands().values() for demand in rows)
    return {
        provider: list(
            dict.fromkeys(
                finding.check
                for finding in findings
                if any(demand.provider == provider and demand.is_must for demand in finding.demands)
            )
        )
        for provider in providers
    }
