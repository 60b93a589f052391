"""What the domain says to those who send to it: MTA-STS, TLS-RPT, BIMI. No provider demands them of a sender."""

import re
from collections.abc import Sequence
from typing import Protocol

from engine.doctor.case import Case
from engine.doctor.dmarc import DnsFailed, find
from engine.doctor.finding import Finding, txt_record
from engine.doctor.rules import failed, noted, passed, unanswered, warned
from engine.doctor.tags import TagError, is_version, parse_tags
from engine.routing.answers import Status
from engine.tls.sts import StsInvalid, parse_policy
from engine.tls.sts_fetch import FetchFailed

MTA_STS = "mta-sts"
TLS_RPT = "tls-rpt"
BIMI = "bimi"
_ID = re.compile(r"[A-Za-z0-9]{1,32}")
_SHORT_AGE_S = 86_400  # a policy kept for less protects little (section 3.2 advises weeks)


class PolicyProbe(Protocol):
    """Fetches the policy of a domain over HTTPS; raises FetchFailed."""

    async def fetch_policy(self, domain: str) -> bytes: ...


async def check_mta_sts(case: Case, probe: PolicyProbe | None) -> list[Finding]:
    domain = case.domain
    name = f"_mta-sts.{domain}"
    answer = await case.questions.text(name)
    if answer.status is Status.FAILED:
        return [unanswered(MTA_STS, name, answer.reason)]
    records = [text for text in answer.texts if is_version(text, "STSv1")]
    if not records:
        publish = txt_record(name, "v=STSv1; id=1")
        why = f"none: others may send to you in plain text. It also needs https://mta-sts.{domain}/.well-known/mta-sts.txt"
        return [warned(MTA_STS, domain, why, publish)]
    if len(records) > 1:
        return [failed(MTA_STS, name, f"{len(records)} records: none of them counts (RFC 8461 section 3.1)")]
    try:
        identifier = parse_tags(records[0]).get("id", "")
    except TagError as error:
        return [failed(MTA_STS, name, str(error))]
    if not _ID.fullmatch(identifier):
        return [failed(MTA_STS, name, f"id={identifier[:40]}: allowed are 1 to 32 letters and digits")]
    if probe is None:
        return [noted(MTA_STS, name, f"id {identifier}; the policy is not fetched without --probe")]
    try:
        body = await probe.fetch_policy(domain)
    except FetchFailed as error:
        return [failed(MTA_STS, f"mta-sts.{domain}", f"the policy cannot be fetched: {error.text}")]
    return [await _policy(case, body)]


async def _policy(case: Case, body: bytes) -> Finding:
    subject = f"mta-sts.{case.domain}"
    try:
        policy = parse_policy(case.domain, body)
    except StsInvalid as error:
        return failed(MTA_STS, subject, f"the policy: {error}")
    answer = await case.questions.mx(case.domain)
    strangers = [host for _, host in sorted(answer.hosts) if host and not policy.matches(host)]
    if strangers:
        why = f"mode {policy.mode}: the MX host {strangers[0]} is not in the policy: mail to it is not delivered"
        return (failed if policy.mode == "enforce" else warned)(MTA_STS, subject, why)
    if policy.mode != "enforce":
        return warned(MTA_STS, subject, f"mode {policy.mode}: nothing is enforced yet")
    if policy.max_age_s < _SHORT_AGE_S:
        return warned(MTA_STS, subject, f"max_age {policy.max_age_s} is less than a day")
    return passed(
        MTA_STS, subject, f"mode enforce, {len(policy.mx)} host patterns, max_age {policy.max_age_s}"
    )


async def check_tls_rpt(case: Case) -> list[Finding]:
    name = f"_smtp._tls.{case.domain}"
    answer = await case.questions.text(name)
    if answer.status is Status.FAILED:
        return [unanswered(TLS_RPT, name, answer.reason)]
    records = [text for text in answer.texts if is_version(text, "TLSRPTv1")]
    if not records:
        publish = txt_record(name, f"v=TLSRPTv1; rua=mailto:tls-reports@{case.domain}")
        return [warned(TLS_RPT, case.domain, "none: nobody tells you when TLS to you fails", publish)]
    if len(records) > 1:
        return [failed(TLS_RPT, name, f"{len(records)} records: none of them counts (RFC 8460 section 3)")]
    try:
        uris = [uri.strip() for uri in parse_tags(records[0]).get("rua", "").split(",")]
    except TagError as error:
        return [failed(TLS_RPT, name, str(error))]
    if not all(uri.lower().startswith(("mailto:", "https://")) for uri in uris):
        return [failed(TLS_RPT, name, f"rua={_listed(uris)}: allowed are mailto: and https: addresses")]
    return [passed(TLS_RPT, name, f"reports to {_listed(uris)}")]


async def check_bimi(case: Case) -> list[Finding]:
    name = f"default._bimi.{case.domain}"
    answer = await case.questions.text(name)
    if answer.status is Status.FAILED:
        return [unanswered(BIMI, name, answer.reason)]
    records = [text for text in answer.texts if is_version(text, "BIMI1")]
    if not records:
        return [
            noted(
                BIMI, case.domain, "no logo is published; it is optional, and wants p=quarantine or p=reject"
            )
        ]
    try:
        tags = parse_tags(records[0])
    except TagError as error:
        return [warned(BIMI, name, str(error))]
    logo = tags.get("l", "")
    if not logo:
        return [passed(BIMI, name, "the domain declines to have a logo")]
    if not logo.lower().startswith("https://"):
        return [warned(BIMI, name, f"l={logo[:80]}: allowed is an https: address")]
    try:
        dmarc = await find(case.questions, case.domain)
    except DnsFailed as error:
        return [unanswered(BIMI, name, str(error))]
    if dmarc is None or dmarc.policy_for(case.domain) == "none":
        return [warned(BIMI, name, "no logo is shown while DMARC is p=none or missing")]
    mark = "" if tags.get("a") else "; without a mark certificate (a=) some providers show none"
    return [passed(BIMI, name, f"{logo[:80]}{mark}")]


def _listed(items: Sequence[str]) -> str:
    return ", ".join(items)[:120] or "(empty)"
